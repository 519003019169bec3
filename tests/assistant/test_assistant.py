"""An assistant that answers in pieces gives what it gives whole, and remembers what it may."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

import instil
from instil.assistant.assistant import Assistant
from instil.data.tokenizers import Tokenizer
from instil.errors import DataError
from instil.generate.answer import AnswerStream


@pytest.fixture(scope="module")
def assistant(tiny_folder: Path) -> Assistant:
    return instil.load(tiny_folder, max_new_tokens=12)


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pieces_are_the_answer(assistant: Assistant, header: bool, temperature: float) -> None:
    options = {"header": header, "temperature": temperature}
    whole = assistant.respond("Name three colours.", "red", **options)
    pieces = list(assistant.stream("Name three colours.", "red", **options))
    assert "".join(pieces) == whole
    assert all(pieces)
    assert len(pieces) > 1


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (["\n", "###", " Resp", "onse:\n", " Red", " ", "and blue", "\n"], "Red and blue"),
        (["###", " Re"], "### Re"),  # begins like the header and is not
        (["### Response:"], ""),
        ([" Red ### Response: blue"], "Red ### Response: blue"),
        ([], ""),
    ],
)
def test_a_header_that_the_model_writes_is_not_shown(said: list[str], shown: str) -> None:
    class Pieces:
        def decode(self, ids: list[int]) -> str:
            return "".join(said[index] for index in ids)

    flow = AnswerStream(cast(Tokenizer, Pieces()), header="\n\n### Response:\n")
    pieces = [flow.push(index) for index in range(len(said))]
    assert "".join(pieces) + flow.finish() == shown


def test_a_stream_left_early_and_an_interrupt_leave_it_usable(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = assistant.respond("Go.")
    flow = assistant.stream("Stay.")
    next(flow)
    flow.close()
    assert assistant.respond("Go.") == wanted
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(assistant.decoder, "logits", lambda hidden: (_ for _ in ()).throw(KeyboardInterrupt))
        assistant.respond_all([{"instruction": "Go."}, {"instruction": "Come."}])
    assert assistant.respond("Go.") == wanted


def test_the_preamble_is_computed_once_for_all_requests(assistant: Assistant) -> None:
    rows = [{"instruction": "Name a colour."}, {"instruction": "Name a fruit."}]
    first = assistant.respond_all(rows)
    before = assistant.engine.tokens
    again = assistant.respond_all([{"instruction": "Spell a word."}, {"instruction": "Sing a song."}])
    prompts = sum(one.prompt_tokens for one in again)
    assert assistant.engine.tokens - before < prompts
    assert [one.text for one in assistant.respond_all(rows)] == [one.text for one in first]


def test_a_prompt_that_is_too_long_is_refused_with_numbers(assistant: Assistant) -> None:
    says = r"the prompt has [\d,]+ tokens; the model's context is [\d,]+"
    with pytest.raises(DataError, match=says):
        next(assistant.stream("word " * 5000))
    with pytest.raises(DataError, match=says):
        assistant.respond("Say it.", "word " * 5000)
    rows = [{"instruction": "word " * 5000}, {"instruction": "Go."}]
    assert [one.finish == "no_room" for one in assistant.respond_all(rows)] == [True, False]
