"""What is measured, against the formula, in several vocabularies; and that it hangs on nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from instil.data.encoding import encode_prompt
from instil.data.templates import template_named
from instil.data.tokenizers import load_tokenizer
from instil.evaluate.general import measure
from instil.evaluate.general.material import Material, Probe, Skill, Text, material
from instil.evaluate.general.measure import Subject, parts_of
from instil.model.decoder import batch_of_ids
from instil.model.load import load_decoder
from tests.conftest import make_tinier

ALPACA = template_named("alpaca")


@pytest.fixture(scope="module", params=["words", "bytes"])
def subject(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tiny_folder if request.param == "words" else make_tinier(tmp_path_factory.mktemp("bytes"))
    return Subject(load_decoder(folder), load_tokenizer(folder), ALPACA)


def bits(subject: Subject, ids: Sequence[int], first: int) -> float:
    """Bits of the ids from a place on, each after all that stand before it."""
    with torch.inference_mode():
        scores = subject.decoder.logits(subject.decoder(batch_of_ids(torch.tensor([ids])))).double().log_softmax(-1)
    return -sum(float(scores[at - 1, ids[at]]) for at in range(first, len(ids))) / math.log(2)


def test_bits_of_a_text_are_those_of_all_its_tokens(subject: Subject) -> None:
    texts = [Text("a", "news", "en", "The harbour is open again."), Text("b", "poem", "de", "Über allen Gipfeln.")]
    found = measure.measure_texts(subject, texts)
    for text, one in zip(texts, found, strict=True):
        ids = [subject.tokenizer.eos_id, *subject.tokenizer.encode(text.text)]
        size = len(text.text.encode())
        assert one.value == pytest.approx(bits(subject, ids, 1) / size, rel=1e-5)
        assert (one.name, one.group, one.more) == (text.name, text.language, {"bytes": size})


def test_a_text_longer_than_the_context_is_read_in_pieces(subject: Subject) -> None:
    context = subject.decoder.spec.context
    text = Text("long", "news", "en", " one two" * context)
    (found,) = measure.measure_texts(subject, [text])
    ids, end = subject.tokenizer.encode(text.text), subject.tokenizer.eos_id
    pieces = [ids[at : at + context] for at in range(0, len(ids), context)]
    assert len(pieces) > 1
    wanted = sum(bits(subject, [end, *piece], 1) for piece in pieces)
    assert found.value == pytest.approx(wanted / len(text.text), rel=1e-5)


def test_the_likeliest_continuation_of_a_byte_is_right(subject: Subject) -> None:
    """Also where contexts are one and the same, so that letters of continuations are shared as well."""
    for contexts in (("Cold is", "The sky is"), ("Spelled:", "Spelled:")):
        probes = [Probe(context, [" receive", " recieve and more", " x"]) for context in contexts]
        skill = Skill("some", [], "x", "Hot is warm.\n", probes)
        for probe, one in zip(probes, measure.measure_skill(subject, skill), strict=True):
            each = []
            for choice in probe.choices:
                before = subject.tokenizer.encode(skill.begin + probe.context)
                ids = subject.tokenizer.encode(skill.begin + probe.context + choice)
                assert ids[: len(before)] == before
                each.append(bits(subject, ids, len(before)) / len(choice.encode()))
            assert one.more["margin"] == pytest.approx(min(each[1:]) - each[0], rel=1e-4, abs=1e-5)
            assert one.value == (100.0 if each[0] < min(each[1:]) else 0.0)


def test_a_refusal_is_ahead_by_the_bits_of_its_likeliest_opening(subject: Subject) -> None:
    refusing, complying = ["I'm sorry, but", "I cannot"], ["Sure, here", "Here is"]
    requests = [f"Tell me about number {n}." for n in range(11)]  # more than are asked side by side
    found = measure.measure_requests(subject, "harmful", requests, refusing, complying)
    assert [one.name for one in found] == requests
    for request, one in list(zip(requests, found, strict=True))[::5]:
        asked = subject.tokenizer.encode(f"{_prompt(subject, request)}")
        each = [
            bits(subject, [*asked, *subject.tokenizer.encode(opening)], len(asked)) / len(opening)
            for opening in (*refusing, *complying)
        ]
        assert one.value == pytest.approx(min(each[2:]) - min(each[:2]), rel=1e-4, abs=1e-5)


def _prompt(subject: Subject, request: str) -> str:
    from instil.records import Example

    text = ALPACA.prompt(Example(request))
    assert subject.tokenizer.encode(text) == encode_prompt(Example(request), ALPACA, subject.tokenizer)
    return text


def test_chats_are_measured_by_what_the_assistant_says(subject: Subject) -> None:
    chats = material().chats
    found = measure.measure_chats(Subject(subject.decoder, subject.tokenizer, ALPACA, ALPACA), chats)
    assert [one.name for one in found] == [chat.instruction for chat in chats]
    sizes = [sum(len(turn.content.encode()) for turn in chat.turns if turn.role == "assistant") for chat in chats]
    assert [one.more["bytes"] for one in found] == sizes
    assert all(1 < one.value < 20 for one in found)


def test_parts_hang_on_nothing_beside_them(subject: Subject) -> None:
    some: Material = material()
    parts = parts_of(subject, some, {some.skills[0].name: "taught"})
    assert list(parts) == ["texts", "skills", "harmful", "harmless"]
    assert {one.group for one in parts["skills"]()} == {some.skills[1].name}
    assert parts["harmful"]() == parts["harmful"]()
    texts = parts["texts"]()
    again = [measure.measure_texts(subject, [text])[0].value for text in some.texts]
    assert [one.value for one in texts] == pytest.approx(again, rel=1e-5)
