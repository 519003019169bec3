"""Rows made from rows: what cannot be read leaves the old row whole, and is named."""

from __future__ import annotations

import json

import pytest

from instil.records import Example
from instil.settings.asking import MakeOptions
from instil.synthesis.editing import EditResult, What, passive, reflect
from instil.synthesis.prompts import PASSIVE, PASSIVE_TASKS, REFLECT_ANSWER, REFLECT_INSTRUCTION
from tests.synthesis.replies import Model

ROWS = [Example(f"Say what {n} is doubled.", f"It is {2 * n}.", f"n = {n}", row=n) for n in range(4)]


def reflected(model: Model, what: What = "both", at_once: int = 8) -> EditResult:
    return reflect(ROWS, what, model, "me", MakeOptions(), at_once)


def test_instruction_and_answer_are_improved_one_after_the_other() -> None:
    model = Model()
    edited = reflected(model)
    assert (edited.made, edited.requests, edited.rejected) == (4, 8, [])
    row = edited.rows[2].as_json()
    assert row["instruction"] == "Say what 2 is doubled. Write one short sentence."
    assert row["input"] == "n = 2"
    assert row["output"] == "It is 4. So it is."
    assert row["provenance"] == {
        "way": "reflect", "made_by": "me", "prompt": [REFLECT_INSTRUCTION.id, REFLECT_ANSWER.id],
        "seed": 123, "from": [2],
    }  # fmt: skip
    shown = json.loads(model.asked[-1].text.splitlines()[-1])
    assert "one short sentence" in shown["instruction"]  # the answer is improved for the new instruction
    assert shown["output"] == "It is 6."
    assert "output" not in json.loads(model.asked[0].text.splitlines()[-1])


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_how_many_are_asked_at_once_changes_nothing(at_once: int) -> None:
    assert reflected(Model(), at_once=at_once) == reflected(Model())
    assert passive(ROWS, Model(), "me", MakeOptions(), at_once) == passive(ROWS, Model(), "me", MakeOptions(), 8)


def test_one_part_alone() -> None:
    edited = reflected(Model(), "answer")
    assert [row.example.instruction for row in edited.rows] == [row.instruction for row in ROWS]
    assert edited.rows[0].example.output == "It is 0. So it is."
    edited = reflected(Model(), "instruction")
    assert [row.example.output for row in edited.rows] == [row.output for row in ROWS]
    assert edited.requests == 4


@pytest.mark.parametrize(("said", "reason"), [
    (None, "the reply is empty"),
    ("Improved answer: It is two.", "the reply is not JSON"),
    ('{"flaws": "none"}', "the reply has no 'output'"),
    ('{"flaws": "none", "output": ""}', "'output' of the reply is empty"),
    ('{"flaws": "none", "output": " "}', "'output' of the reply is empty"),
    ('{"flaws": "none", "output": "As an AI, I refuse."}', "the answer is a refusal"),
])  # fmt: skip
def test_an_answer_that_cannot_be_read_leaves_the_old_one_whole(said: str | None, reason: str) -> None:
    edited = reflected(Model({1: said}), "answer")
    assert edited.rows[1].as_json() == {**ROWS[1].as_json(), "provenance": {"way": "kept", "from": [1]}}
    assert [(left.number, left.reason) for left in edited.rejected] == [(1, f"answer kept: {reason}")]
    assert edited.made == 3


def test_a_new_instruction_without_an_answer_leaves_the_whole_row() -> None:
    edited = reflected(Model({5: "no JSON"}))
    assert edited.rows[1].example == ROWS[1]
    assert edited.rows[1].provenance["way"] == "kept"
    assert edited.rejected[0].reason == "row kept: its new instruction has no answer: the reply is not JSON"


def test_an_instruction_that_cannot_be_read_stays_and_its_answer_is_improved() -> None:
    edited = reflected(Model({1: "no JSON"}))
    assert edited.rows[1].example.instruction == ROWS[1].instruction
    assert edited.rows[1].example.output == "It is 2. So it is."
    assert edited.rows[1].provenance["prompt"] == [REFLECT_ANSWER.id]
    assert edited.rejected[0].reason == "instruction kept: the reply is not JSON"


def test_a_new_instruction_that_repeats_another_rows_is_not_taken() -> None:
    rows = [Example("Say what it is doubled.", "2", row=0), Example("Tell me the double.", "2", row=1)]
    same = json.dumps({"flaws": "", "instruction": "Say what it is DOUBLED!"})
    edited = reflect(rows, "instruction", Model({1: same}), "me", MakeOptions(), 8)
    assert edited.rows[1].example == rows[1]
    assert edited.rejected[0].reason == "instruction kept: it repeats row 0"


def test_what_is_good_already_is_kept() -> None:
    good = {n: json.dumps({"flaws": "", "output": row.output}) for n, row in enumerate(ROWS)}
    edited = reflected(Model({**good}), "answer")
    assert (edited.made, edited.rejected) == (0, [])
    assert [row.provenance["way"] for row in edited.rows] == ["kept"] * 4


def test_each_row_is_followed_by_one_of_the_passive_voice() -> None:
    edited = passive(ROWS, Model(), "me", MakeOptions(), 8)
    assert [row.example for row in edited.rows[::2]] == ROWS
    new = edited.rows[3].as_json()
    assert new["instruction"] in PASSIVE_TASKS
    assert (new["input"], new["output"]) == ("It is 2.", "By somebody It is 2.")
    assert new["provenance"] == {
        "way": "passive", "made_by": "me", "prompt": PASSIVE.id, "seed": 123, "from": [1]
    }  # fmt: skip


@pytest.mark.parametrize(("said", "reason"), [
    ('{"passive": ""}', "the model finds no passive for it"),
    ('{"passive": "It is 2"}', "its passive is the sentence itself"),
    (json.dumps({"passive": "long " * 40}), "its passive is more than twice as long"),
    ("It was done.", "the reply is not JSON"),
    (None, "the reply is empty"),
])  # fmt: skip
def test_a_sentence_without_a_passive_is_named(said: str | None, reason: str) -> None:
    edited = passive(ROWS, Model({1: said}), "me", MakeOptions(), 8)
    assert len(edited.rows) == 7
    assert [(left.number, left.reason) for left in edited.rejected] == [(1, reason)]


def test_answers_that_are_no_sentence_are_not_asked_about() -> None:
    outputs = ["One line.\nTwo lines.", "Word.", "long " * 80, "The cook made it.", "The cook made it!"]
    rows = [Example(f"Task {n}", output, row=n) for n, output in enumerate(outputs)]
    model = Model()
    edited = passive(rows, model, "me", MakeOptions(), 2)
    assert len(model.asked) == 1
    assert [left.number for left in edited.rejected] == [0, 1, 2, 4]
    assert edited.rejected[3].reason == "an earlier row has the same sentence"
