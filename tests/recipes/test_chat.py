"""Conversations: what the model is asked, what is taken back, and what is kept for training."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import instil
from instil.assistant.conversation import conversation_of
from instil.cli import app
from instil.data.sources import read_source
from instil.errors import DataError, SettingsError, UserError
from instil.recipes.chat import Conversation, Side
from instil.records import Turn


@pytest.fixture
def talk(tiny_folder: Path, tmp_path: Path) -> Conversation:
    assistant = instil.load(tiny_folder, template="plain", max_new_tokens=6)
    return Conversation([Side("", assistant)], assistant.options, tmp_path)


def said(talk: Conversation, *questions: str) -> list[str]:
    """Ask, and let every side answer."""
    for question in questions:
        talk.ask(question)
        for side in talk.sides:
            for _ in talk.answer(side):
                pass
    return talk.sides[0].said


def test_every_turn_is_put_to_the_model_and_earlier_ones_are_not_computed_again(talk: Conversation) -> None:
    talk.system = "Be brief."
    first, second = said(talk, "One, two, three and four?", "Five?")
    assistant = talk.sides[0].assistant
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One, two, three and four?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Five?"},
    ]
    assert talk.messages(talk.sides[0])[:-1] == messages
    before = assistant.engine.tokens
    assert assistant.chat(messages) == second
    assert assistant.engine.tokens - before <= 8  # the new question alone, and the answer
    with pytest.raises(DataError, match=r"tokens; the model's context is 512"):
        assistant.chat([{"role": "user", "content": "one " * 600}])


def test_what_is_taken_back_is_gone(talk: Conversation) -> None:
    first = list(said(talk, "One?"))
    said(talk, "Two?")
    assert talk.undo() == "Two?"
    assert (talk.asked, talk.sides[0].said) == (["One?"], first)
    again = said(talk, "Two?")
    talk.clear()
    assert (talk.asked, talk.sides[0].said) == ([], [])
    assert again == []
    with pytest.raises(UserError, match="nothing was asked yet"):
        talk.undo()


def test_a_second_try_is_another_answer_and_one_of_both_can_be_chosen(talk: Conversation, tmp_path: Path) -> None:
    (greedy,) = said(talk, "One?")
    talk.options = talk.options.changed(temperature=50.0)
    before = talk.retry()
    assert before == [greedy]
    for _ in talk.answer(talk.sides[0]):
        pass
    talk.tried_again(before)
    (other,) = talk.sides[0].said
    assert other != greedy
    file = talk.better(1)
    row = json.loads(file.read_text())
    assert row["prompt"] == [{"role": "user", "content": "One?"}]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == (greedy, other)
    assert talk.sides[0].said == [greedy]  # the conversation goes on from it
    assert file == tmp_path / "pairs.jsonl"
    talk.ask("Two?")
    with pytest.raises(UserError, match="no two answers to choose between"):
        talk.better(1)


def test_a_kept_conversation_is_a_row_for_training(talk: Conversation) -> None:
    with pytest.raises(UserError, match="no answer to keep"):
        talk.keep()
    talk.system = "Be brief."
    answers = list(said(talk, "One?", "Two?"))
    file = talk.keep()
    talk.keep()
    rows = read_source(str(file)).examples
    assert len(rows) == 2
    assert (rows[0].instruction, rows[0].output) == ("Two?", answers[1])
    assert rows[0].history == (Turn("system", "Be brief."), Turn("user", "One?"), Turn("assistant", answers[0]))


def test_a_question_that_got_no_answer_is_left_out(talk: Conversation) -> None:
    side = talk.sides[0]
    talk.asked, side.said = ["One?", "Two?"], [""]
    assert talk.messages(side) == [{"role": "user", "content": "Two?"}]
    assert list(talk.answer(side))
    assert side.said[0] == ""


def test_settings_are_changed_and_checked(talk: Conversation) -> None:
    talk.set("max_new_tokens", "2")
    talk.set("generate.temperature", "1")
    assert (talk.options.max_new_tokens, talk.options.temperature) == (2, 1.0)
    with pytest.raises(SettingsError, match="no setting 'temprature'; known: max_new_tokens, temperature"):
        talk.set("temprature", "1")
    with pytest.raises(SettingsError, match=r"generate\.temperature='hot'"):
        talk.set("temperature", "hot")


def test_an_answer_that_is_left_is_what_it_is_until_then(talk: Conversation) -> None:
    whole = said(talk, "One?")[0]
    talk.undo()
    talk.ask("One?")
    pieces = talk.answer(talk.sides[0])
    begun = next(pieces)
    pieces.close()
    assert talk.sides[0].said == [begun]
    assert whole.startswith(begun)
    assert whole != begun


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "messages is an empty list"),
        ([{"role": "wizard", "content": "x"}], r"messages\[0\] has the role 'wizard'.*known are"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
            "the last of messages is",
        ),
        ([{"role": "user", "content": " \n"}], r"messages\[0\] \(user\): content is"),
        ([{"role": "user", "content": 5}], r"messages\[0\] \(user\): content is number"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "only text is read"),
        (["x"], r"messages\[0\] is string"),
    ],
)
def test_messages_that_cannot_be_used(messages: list[Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        conversation_of(messages)


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "Hi "}, {"type": "input_text", "text": "you."}]
    found = conversation_of([{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}])
    assert (found.instruction, found.history) == ("Hi \nyou.", (Turn("system", "Be brief."),))


def test_the_command_line(plain_run: Path, tmp_path: Path) -> None:
    typed = "\n".join(
        [
            "Double 2.", "/versus", "And 3?", "/better 2", "/keep", "/versus", "/set temperature 0.5", "/undo",
            "/retry", "/system Be brief.", "/nope", "/better 3", "/set nope 1", "/help", "", "/clear", "/keep", "/quit",
        ]
    )  # fmt: skip
    words = ["chat", str(plain_run), "--folder", str(tmp_path), "--set", "generate.max_new_tokens=4"]
    before = signal.getsignal(signal.SIGINT)
    found = CliRunner().invoke(app, words, input=f"{typed}\n", catch_exceptions=False)
    assert found.exit_code == 0
    assert signal.getsignal(signal.SIGINT) is before
    assert "[tuned] " in found.stdout
    assert "[base] " in found.stdout
    for line in (
        "which the run was tuned from", "a row more in", "the base model is gone", "taken back: And 3?",
        "no command /nope", "/better 3: wanted 1 or 2", "no setting 'nope'", "there is no answer to keep",
    ):  # fmt: skip
        assert line in found.stderr, line
    assert "/versus" in found.stdout
    kept = json.loads((tmp_path / "kept.jsonl").read_text())
    pairs = json.loads((tmp_path / "pairs.jsonl").read_text())
    assert [message["content"] for message in kept["messages"]][::2] == ["Double 2.", "And 3?"]
    assert kept["messages"][-1]["content"] == pairs["chosen"][0]["content"] != pairs["rejected"][0]["content"]
