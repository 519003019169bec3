"""Masks and weights of conversations: every answer by position, its end with it, and as often as its message counts."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import groupby, pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instil.data.byte_level import END_OF_TEXT, byte_level
from instil.data.collate import collate, collate_shared
from instil.data.encoding import encode, encode_prompt, mask_notes
from instil.data.loader import Loader
from instil.data.templates import Piece, Template, find_template
from instil.data.templates.template import Rendered
from instil.data.tokenizers import FastTokenizer
from instil.model.find import find_model
from instil.records import Encoded, Example, Pair, Turn
from instil.settings.options import TrainOptions
from instil.tasks.pairs.batches import collate_pairs
from instil.tasks.pairs.encoding import encode_pair
from instil.train.loop import train
from instil.train.losses import nll_sum
from tests.conftest import smollm2
from tests.parity.test_layouts import with_gradients
from tests.train.test_training import decoder

SMOLLM_FILE = find_model("smollm2-135m")
SMOLLM = smollm2()
NAMES = ("alpaca", "alpaca-stanford", "phi3", "chatml", "plain", "model")
SPELLABLE = st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"])
TEXT = st.text(SPELLABLE, min_size=1, max_size=12).map(lambda text: text + " <|im_end|><|endoftext|>")
WEIGHT = st.sampled_from([0.0, 0.25, 1.0, 1.0])


@cache
def template_of(name: str) -> Template:
    return find_template(name, SMOLLM_FILE, SMOLLM)


@st.composite
def conversations(draw: st.DrawFn) -> Example:
    history = [Turn("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        history += [Turn("user", draw(TEXT)), Turn("assistant", draw(TEXT), weight=draw(WEIGHT))]
    return Example(draw(TEXT), draw(TEXT), row=5, history=tuple(history), weight=draw(WEIGHT))


def learnt(row: Encoded) -> list[tuple[list[int], float]]:
    """The trained stretches, each with how often it counts."""
    places = zip(row.ids, row.trained, row.weights or map(float, row.trained), strict=True)
    groups = [list(group) for counts, group in groupby(places, lambda place: place[1:]) if counts[0]]
    return [([index for index, *_ in group], group[0][2]) for group in groups]


@settings(max_examples=40, deadline=None)
@given(row=conversations(), last=st.booleans())
@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_answers_and_their_ends_are_trained(name: str, row: Example, last: bool) -> None:
    template = template_of(name)
    encoded = encode(row, template, SMOLLM, turns="last" if last else "all")
    prompt = encode_prompt(row, template, SMOLLM)
    assert list(encoded.ids[: encoded.prompt_length]) == prompt
    answers = [turn for turn in row.turns if turn.role == "assistant"][-1 if last else 0 :]
    wanted = [turn for turn in answers if turn.weight > 0]
    found = learnt(encoded)
    assert [weight for _, weight in found] == [turn.weight for turn in wanted]
    for (ids, _), turn in zip(found, wanted, strict=True):
        assert ids[-1] == 2  # both <|im_end|> and SmolLM2's own end
        assert 2 not in ids[:-1]  # a text that spells it is none
        if turn is wanted[-1] and row.weight:
            assert SMOLLM.decode(ids) == turn.content
        else:
            assert SMOLLM.decode(ids).strip() in turn.content  # an id across its border may be missing
    missing = sum(len(turn.content) - len(SMOLLM.decode(ids)) for (ids, _), turn in zip(found, wanted, strict=True))
    assert (missing > 0) <= (encoded.straddling > 0)
    messages = sum(turn.role in ("assistant", "user", "system") for turn in row.turns)
    ends = messages if name in ("chatml", "model") else len([turn for turn in row.turns if turn.role == "assistant"])
    added = name == "model" and not (row.history and row.history[0].role == "system")  # its own system message
    assert encoded.ids.count(2) == ends + added


@settings(max_examples=25, deadline=None)
@given(row=conversations())
@pytest.mark.parametrize("name", NAMES)
def test_all_means_all_but_what_counts_nothing(name: str, row: Example) -> None:
    encoded = encode(row, template_of(name), SMOLLM, "all")
    assert encoded.ids == encode(row, template_of(name), SMOLLM).ids
    left = sum(not trained for trained in encoded.trained)
    nothing = [turn for turn in row.turns if turn.role == "assistant" and turn.weight == 0]
    assert (left > 0) == bool(nothing)


def merging() -> FastTokenizer:
    """Bytes, with a merge of a line break and an "a", and of "a" and a line break: ids that lie across borders."""
    from tokenizers import pre_tokenizers

    ids = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merged = {**ids, "\u010aa": 256, "a\u010a": 257, END_OF_TEXT: 258}
    fast = byte_level(merged, [("\u010a", "a"), ("a", "\u010a")], "gpt-2", {END_OF_TEXT: 258})
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return FastTokenizer(fast, END_OF_TEXT)


def test_an_id_across_a_border_is_no_target_and_counted() -> None:
    tokenizer, template = merging(), template_of("plain")
    row = Example("y", "abc", row=7, history=(Turn("user", "x"), Turn("assistant", "abc")))
    encoded = encode(row, template, tokenizer)
    # The earlier "\na" is one id, as in any program that reads a history; the last answer is cut apart from its prompt.
    trained = [tokenizer.token(index) for index, counts in zip(encoded.ids, encoded.trained, strict=True) if counts]
    assert trained == ["b", "c", END_OF_TEXT, "a", "b", "c", END_OF_TEXT]
    assert encoded.ids.count(256) == 1
    assert encoded.straddling == 1
    assert list(encoded.ids[: encoded.prompt_length]) == encode_prompt(row, template, tokenizer)
    assert mask_notes([encoded]) == ["1 id across the border of what is trained on is not trained on: rows 7"]
    read = replace(row, history=(row.history[0], replace(row.history[1], weight=0)))
    assert encode(read, template, tokenizer).straddling == 0
    assert encode(row, template, tokenizer, turns="last").straddling == 0


def test_an_answer_that_joins_what_follows_is_masked_there() -> None:
    """No template here ends an earlier answer with plain text, but the mask does not rely on it."""
    pieces = [
        Piece("y"),
        Piece("ba", trained=True, weight=0.5),
        Piece("\n"),
        Piece("b", trained=True, answer=True),
        Piece("", control=True, trained=True),
    ]
    template = SimpleNamespace(rendered=lambda *how: Rendered(pieces), writes_begin=True)
    encoded = encode(Example("y", "b"), template, merging())  # type: ignore[arg-type]
    tokens = [merging().token(index) for index in encoded.ids]
    assert tokens == ["y", "b", "a\u010a", "b", END_OF_TEXT]
    assert encoded.trained == (False, True, False, True, True)
    assert encoded.weights == (0.0, 0.5, 0.0, 1.0, 1.0)
    assert encoded.straddling == 1


ROWS = [
    Encoded((1, 2, 3, 4, 5), (False, True, True, True, True), weights=(0.0, 0.5, 0.0, 1.0, 0.25)),
    Encoded((1, 2, 3, 6), (False, True, True, True)),
    Encoded((1, 2, 7, 8, 9), (False, True, False, True, True), weights=(0.0, 2.0, 0.0, 0.125, 1.0)),
]


def test_weights_count_in_every_layout() -> None:
    """By hand, and the losses and gradients of both layouts (E1)."""
    padded, shared = collate(ROWS, 0), collate_shared(ROWS)
    wanted = sum(sum(row.counts[1:]) for row in ROWS)
    assert padded.trained_tokens == shared.trained_tokens == wanted == 7.875
    assert padded.weights_S.tolist() == [0.5, 1.0, 0.25, 1.0, 1.0, 1.0, 2.0, 0.125, 1.0]
    assert shared.weights_S.tolist()[0] == 3.5  # of the id that all three rows predict from their common beginning
    model = decoder()
    one = with_gradients(model, nll_sum(model, padded))
    other = with_gradients(model, nll_sum(model, shared))
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    apart = torch.zeros((), dtype=torch.float64)
    for row in ROWS:
        for at, (_, following) in enumerate(pairwise(row.ids)):
            alone = Encoded(row.ids[: at + 2], (*[False] * (at + 1), True))
            apart += row.counts[at + 1] * nll_sum(model, collate([alone], 0)).detach()
            assert following == alone.ids[-1]
    torch.testing.assert_close(one[0], apart, rtol=1e-12, atol=1e-12)


def test_a_mask_and_its_weights_are_as_long_as_the_ids() -> None:
    with pytest.raises(ValueError, match="2 ids but 2 mask entries and 1 weights"):
        Encoded((1, 2), (True, True), weights=(1.0,))


def test_pairs_know_turns_and_weights() -> None:
    history = (Turn("user", "x"), Turn("assistant", "earlier", weight=0.5))
    pair = Pair(Example("y", row=3, history=history), "good", "bad")
    template = template_of("chatml")
    both = encode_pair(pair, template, SMOLLM)
    assert [weight for _, weight in learnt(both.chosen)] == [0.5, 1.0]
    last = encode_pair(pair, template, SMOLLM, turns="last")
    assert [weight for _, weight in learnt(last.chosen)] == [1.0]
    assert both.chosen_scored == last.chosen_scored == range(both.chosen.prompt_length, len(both.chosen.ids))
    for layout in ("padded", "shared"):
        batch = collate_pairs([both], 0, layout=layout)  # type: ignore[arg-type]
        assert batch.trained_tokens == sum(both.chosen.counts)


def test_a_step_divides_once_by_the_summed_weight() -> None:
    """In one batch and in micro-batches alike, of training and of validation."""
    options = TrainOptions(epochs=2, batch_size=3, learning_rate=1e-2, eval_every=0)
    one = train(decoder(), Loader(ROWS, 3, pad_id=0), options, validation=[collate(ROWS, 0)])
    many = train(
        decoder(), Loader(ROWS, 3, pad_id=0, micro_batch=1), options, validation=[collate([r], 0) for r in ROWS]
    )
    for field in ("train_loss", "val_loss"):
        first, second = ([getattr(record, field) for record in found.records[1:]] for found in (one, many))
        assert first == pytest.approx(second, rel=1e-9)
    total = float(nll_sum(decoder(), collate(ROWS, 0)).detach())
    assert one.records[1].train_loss == pytest.approx(total / 7.875, rel=1e-9)
