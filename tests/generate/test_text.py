"""Text that comes in pieces: whole characters, nothing of a stop text, and together the whole answer."""

from __future__ import annotations

from itertools import zip_longest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instil.data.templates import template_named
from instil.generate.answer import answer, stream, without_header
from instil.generate.engine import Engine
from instil.generate.text import BROKEN, TextStream
from instil.records import Example
from instil.settings.options import GenerateOptions
from tests.conftest import gpt2
from tests.generate.test_engine import Parrot

TOKENIZER = gpt2()


@settings(max_examples=100, deadline=None)
@given(
    st.text(min_size=1).filter(lambda text: BROKEN not in text),
    st.lists(st.text("ab#\u00e4", min_size=1, max_size=3), max_size=1),
)
def test_pieces_are_the_text_up_to_the_first_stop(text: str, stop: list[str]) -> None:
    flow = TextStream(TOKENIZER, stop)
    pieces = [flow.push(token) for token in TOKENIZER.encode(text)]
    assert all(BROKEN not in piece for piece in pieces)
    wanted = min([text[:at] for one in stop if (at := text.find(one)) >= 0], key=len, default=text)
    assert "".join(pieces) + flow.finish() == flow.text == wanted
    assert flow.stopped == (wanted != text)


def test_a_character_of_several_ids_comes_whole() -> None:
    ids = TOKENIZER.encode("\U0001f9d1")
    assert len(ids) > 2
    flow = TextStream(TOKENIZER)
    assert [flow.push(token) for token in ids] == [*[""] * (len(ids) - 1), "\U0001f9d1"]
    cut = TextStream(TOKENIZER)
    assert cut.push(ids[0]) == ""
    assert cut.finish() == BROKEN  # what was said is shown, even where it is no character


def test_what_may_become_a_stop_text_waits() -> None:
    flow = TextStream(TOKENIZER, ["###"])
    said = [flow.push(token) for token in TOKENIZER.encode("one # two ## end")]
    assert "".join(said) + flow.finish() == "one # two ## end"
    flow = TextStream(TOKENIZER, ["###"])
    assert flow.push(TOKENIZER.encode("a")[0]) == "a"
    assert flow.push(TOKENIZER.encode("##")[0]) == ""
    assert flow.push(TOKENIZER.encode("#")[0]) == ""
    assert flow.stopped
    assert flow.push(TOKENIZER.encode("b")[0]) == flow.finish() == ""


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it() -> None:
    template, options = template_named("alpaca"), GenerateOptions(stop=("Bo", "nothing"))
    (said,) = answer(Parrot(TOKENIZER, "Ada, Bob, Cid"), TOKENIZER, template, [Example("Go.")], options)
    assert (said.text, said.finish) == ("Ada,", "stop")
    assert TOKENIZER.decode(said.ids) == "Ada, Bob"


@pytest.mark.parametrize(
    ("said", "stop", "wanted"),
    [
        ("\nParis\nRome", "\n", "\nParis"),
        ("\n\n  Paris\n", "\n", "\n\n  Paris"),
        (" Paris is", " ", " Paris"),
        ("\n### More", "\n###", ""),
        ("\n\n### More", "\n###", "\n"),
        ("### More", "###", ""),
        ("\n \n", "\n", "\n \n"),
        ("\n\nA\n\nB", "\n\n", "\n\nA"),
        ("\u200b\nParis\n", "\n", "\u200b\nParis"),
        ("Paris", "\n", "Paris"),
    ],
)
def test_a_stop_text_counts_from_the_first_visible_character_on(said: str, stop: str, wanted: str) -> None:
    flow = TextStream(TOKENIZER, [stop])
    pieces = [flow.push(token) for token in TOKENIZER.encode(said)]
    assert "".join(pieces) + flow.finish() == flow.text == wanted
    header = TextStream(TOKENIZER, [stop], header="\n\n### Response:\n")
    for token in TOKENIZER.encode(f"\n\n### Response:{said}"):
        header.push(token)
    assert header.text == f"\n\n### Response:{wanted}"


@pytest.mark.parametrize("options", [{}, {"temperature": 0.01, "seed": 3}])
def test_an_answer_that_begins_with_a_line_end_is_not_empty(options: dict[str, float]) -> None:
    template, chosen = template_named("alpaca"), GenerateOptions(stop=("\n",), **options)
    text = "\nAda, Bob\nCid"
    (said,) = answer(Parrot(TOKENIZER, text), TOKENIZER, template, [Example("Go.")], chosen)
    assert (said.text, said.finish) == ("Ada, Bob", "stop")
    pieces = stream(Engine(Parrot(TOKENIZER, text)), TOKENIZER, [1, 2, 3], TOKENIZER.stop_ids, chosen)
    assert "".join(pieces) == "Ada, Bob"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("\n    return x\n", "    return x"),
        ("    if x:\n        y()\n", "    if x:\n        y()"),
        ("\tx = 1", "\tx = 1"),
        ("\n\n  - item", "  - item"),
        (" Paris.", "Paris."),
        ("\n Paris.\n Rome.", "Paris.\n Rome."),
        ("\u3000\u3000Paris", "Paris"),
        ("  \n\n", ""),
        ("", ""),
        ("### Response:\n    x = 1", "    x = 1"),
        ("\n\n### Response:\nParis", "Paris"),
    ],
)
def test_the_first_lines_indentation_is_kept_and_nothing_else_around(said: str, shown: str) -> None:
    assert without_header(said, "\n\n### Response:\n") == shown
    if "###" not in said:
        assert without_header(said, "") == shown


@pytest.mark.parametrize("stop", [(), ("C",)])
def test_streaming_gives_what_answering_gives(stop: tuple[str, ...]) -> None:
    options = GenerateOptions(stop=stop)
    engine = Engine(Parrot(TOKENIZER, "Ada, B\u00f6b, Cid"))
    pieces = list(stream(engine, TOKENIZER, [1, 2, 3], TOKENIZER.stop_ids, options))
    assert "".join(pieces) == ("Ada, B\u00f6b," if stop else "Ada, B\u00f6b, Cid")
    assert len(pieces) > 3


def test_nothing_of_a_stop_text_is_shown_before_its_last_character() -> None:
    flow = TextStream(TOKENIZER, ["ab\U0001f9ff"])
    said = [flow.push(token) for token in TOKENIZER.encode("hello ab\U0001f9ff more")]
    assert "".join(said) == flow.text == "hello "


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("\n\n### Response:\nParis.\n\n### More", "\n\n### Response:\nParis.\n\n"),
        ("Paris ### More", "Paris "),
        ("### Resp", "### Resp"),
    ],
)
def test_stop_texts_are_looked_for_after_the_header(said: str, shown: str) -> None:
    flow = TextStream(TOKENIZER, ["###"], header="\n\n### Response:\n")
    pieces = [flow.push(token) for token in TOKENIZER.encode(said)]
    assert "".join(pieces) + flow.finish() == flow.text == shown


def test_two_streams_at_a_time() -> None:
    options = GenerateOptions()
    engine = Engine(Parrot(TOKENIZER, "Ada, Bob, Cid, Dan, Eve"))
    alone = "".join(stream(engine, TOKENIZER, [1, 2, 3], TOKENIZER.stop_ids, options))
    one, two = (stream(engine, TOKENIZER, [1, 2, 3], TOKENIZER.stop_ids, options) for _ in range(2))
    pairs = list(zip_longest(one, two, fillvalue=""))
    assert "".join(a for a, _ in pairs) == "".join(b for _, b in pairs) == alone


def test_leaving_a_stream_early_frees_its_row() -> None:
    engine = Engine(Parrot(TOKENIZER, "Ada, Bob, Cid, Dan"))
    flow = stream(engine, TOKENIZER, [1, 2, 3], TOKENIZER.stop_ids, GenerateOptions())
    assert "Ada".startswith(next(flow))
    flow.close()
    assert [(one.finish) for _, one in engine.step()] == ["cancelled"]
    assert not engine._active
