"""Every shape that rows come in, and every way in which a file of rows has none, or two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from instil.data.shapes.mapping import Renames
from instil.data.shapes.reading import InMemory, Rejected, ShapedRows
from instil.data.sources import examples_from
from instil.errors import DataError
from instil.records import Example, Turn


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASKED, ANSWERED = said("user", "Why?"), said("assistant", "So.")
PLAIN = Example("Why?", "So.", row=0)
WITH_SYSTEM = Example("Why?", "So.", row=0, history=(Turn("system", "Be brief."),))


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"instruction": "Why?", "output": "So."}, PLAIN),
        ({"instruction": "Why?", "input": "this", "output": "So."}, Example("Why?", "So.", "this", row=0)),
        ({"instruction": "Why?", "output": "So.", "system": "Be brief.", "history": []}, WITH_SYSTEM),
        ({"instruction": "Why?", "output": "So.", "system": " ", "history": None}, PLAIN),
        (
            {"instruction": "Why?", "output": "So.", "history": [["One?", "1."], ["Two?", "2."]]},
            Example("Why?", "So.", row=0, history=(
                Turn("user", "One?"), Turn("assistant", "1."), Turn("user", "Two?"), Turn("assistant", "2."))),
        ),
        ({"question": "Why?", "answer": "So."}, PLAIN),
        ({"context": "this", "question": "Why?", "answer": "So."}, Example("Why?", "So.", "this", row=0)),
        ({"article": "this", "question": "Why?", "answer": "So."}, Example("Why?", "So.", "this", row=0)),
        ({"instruction": "Why?", "context": "", "response": "So.", "category": "qa"}, PLAIN),
        ({"INSTRUCTION": "Why?", "RESPONSE": "So."}, PLAIN),
        ({"QUESTION": "Why?", "ANSWER": "So.", "SYSTEM_PROMPT": "Be brief."}, WITH_SYSTEM),
        ({"id": "1", "system_prompt": "Be brief.", "question": "Why?", "response": "So."}, WITH_SYSTEM),
        ({"article": "Why?", "summary": "So."}, PLAIN),
        ({"prompt": "Why?", "generation": "So."}, PLAIN),
        ({"prompt": "Why?", "completion": "So."}, PLAIN),
        ({"query": "Why?", "response": "So."}, PLAIN),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, PLAIN),
        ({"prompt": [said("system", "Be brief."), ASKED], "completion": [ANSWERED]}, WITH_SYSTEM),
        ({"prompt": [ASKED], "completion": "So."}, PLAIN),
        ({"text": "Why? So."}, Example("", "Why? So.", row=0)),
        ({"text": "Why? So.", "url": "x"}, Example("", "Why? So.", row=0)),
        ({"messages": [ASKED, ANSWERED]}, PLAIN),
        ({"messages": [ASKED, ANSWERED], "system": "Be brief."}, WITH_SYSTEM),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, PLAIN),
        ({"instruction": "Why?", "output": "So.", "text": "Why? So.", "prompt": "Form: Why?"}, PLAIN),
        ({"instruction": "Why?", "output": "So.", "messages": None, "answer": None}, PLAIN),
        ({"question": "Why?", "answer": "So.", "chosen": "So.", "rejected": "No."}, PLAIN),
    ],
)  # fmt: skip
def test_every_shape_is_read(row: dict[str, Any], wanted: Example) -> None:
    source = examples_from([row])
    assert source.examples == (wanted,)
    if not wanted.text_only:
        assert examples_from([row], need_output=False).examples == (wanted,)


@pytest.mark.parametrize(
    ("row", "note"),
    [
        ({"question": "Why?", "answer": "So."}, "rows have the shape question/answer: question is the instruction, "
         "answer is the output"),
        ({"system_prompt": "Be brief.", "question": "Why?", "response": "So."},
         "rows have the shape question/response: question is the instruction, response is the output, "
         "system_prompt is the system"),
        ({"INSTRUCTION": "Why?", "RESPONSE": "So."},
         "rows have the shape INSTRUCTION/RESPONSE: INSTRUCTION is the instruction, RESPONSE is the output"),
        ({"instruction": "Why?", "context": "this", "output": "So."},
         "rows have the shape instruction/output: context is the input"),
        ({"messages": [ASKED, ANSWERED]}, "rows are conversations (messages)"),
        ({"text": "Why?"}, "rows are texts (text): all of a text is trained on, and there is no question to answer"),
    ],
)  # fmt: skip
def test_a_shape_that_is_not_the_usual_one_is_said(row: dict[str, Any], note: str) -> None:
    assert examples_from([row, row]).notes == (note,)


def test_the_usual_shape_needs_no_word_and_other_keys_are_named() -> None:
    rows = [{"instruction": "Why?", "output": "So.", "id": 1, "prompt": "x", "empty": None}] * 2
    assert examples_from(rows).notes == ("key 'id' of 2 rows is not used", "key 'prompt' of 2 rows is not used")
    rows = [{"messages": [ASKED, {**ANSWERED, "mood": 1}], "instruction": "x"}]
    assert examples_from(rows).notes[1:] == (
        "key 'instruction' of 1 row is not used",
        "key 'mood' of messages of 1 row is not used",
    )
    rows = [{"messages": [{**ASKED, "name": "Ann", "thinking": "x"}, {**ANSWERED, "name": None}]}]
    assert examples_from(rows).notes[1:] == (
        "key 'name' of messages of 1 row is not used",
        "key 'thinking' of messages of 1 row is not used",
    )


def test_found_and_wanted_keys_are_named_once() -> None:
    with pytest.raises(DataError) as caught:
        examples_from([{"title": "a", "body": "b", "n": n} for n in range(500)], "rows.json")
    text = str(caught.value)
    assert text == (
        "rows.json: no shape that is known; found the keys\n"
        "  body, n, title (500 rows, the first is row 0)\n"
        "wanted instruction and output, question and answer, prompt and completion, messages, or text\n"
        "say which key is what, such as --map question=instruction,reply=output"
    )
    assert "skip_bad" not in text
    with pytest.raises(DataError) as caught:
        examples_from([{"title": "a", f"k{n}": "b"} for n in range(500)] + [3], "rows.json", skip_bad=True)
    text = str(caught.value)
    assert "  ... and 495 more\n  no keys (1 row that are no objects)\n" in text
    assert text.count("\n") == 9


@pytest.mark.parametrize("order", [1, -1])
def test_all_rows_are_looked_at_before_a_shape_is_chosen(order: int) -> None:
    """One row of another shape at the beginning decides nothing."""
    rows = [{"question": "Why?", "answer": "So."}, *[{"messages": [ASKED, ANSWERED]}] * 3][::order]
    odd = 0 if order == 1 else 3
    with pytest.raises(DataError) as caught:
        examples_from(rows, "rows.json")
    assert str(caught.value) == (
        "rows.json: 1 of 4 rows cannot be used (rows are counted from 0); "
        "they have 2 shapes: 3 rows messages, 1 row question/answer:\n"
        f"  row {odd}: has the shape question/answer; wanted messages, as most rows have it\n"
        "mend them, or leave them out with --set data.skip_bad=true"
    )
    source = examples_from(rows, skip_bad=True)
    assert [row.row for row in source.examples] == [n for n in range(4) if n != odd]
    assert [one.row for one in source.rejected] == [odd]
    assert source.skipped == (f"row {odd}: has the shape question/answer; wanted messages, as most rows have it",)


def test_rows_without_a_shape_beside_others_are_named_once_a_kind() -> None:
    rows = [{"messages": [ASKED, ANSWERED]}] * 5 + [{"foo": 1}] * 30 + [{"bar": 1, "foo": 2}]
    with pytest.raises(DataError) as caught:
        examples_from(rows, "rows.json")
    text = str(caught.value)
    assert text.startswith("rows.json: 31 of 36 rows cannot be used")
    assert text.count("has the keys foo; wanted messages") == 1
    assert text.count("has the keys bar, foo; wanted messages") == 1
    assert "and 10 more: has the keys foo" in text


def test_leaving_rows_out_is_not_advised_where_none_would_be_left() -> None:
    for rows in ([{"instruction": "a"}] * 3, [{"messages": [ASKED]}] * 3, [3, 4], [{"text": " "}], [{"text": 3}]):
        with pytest.raises(DataError) as caught:
            examples_from(rows, "rows.json")
        assert "skip_bad" not in str(caught.value)
        assert "rows.json: none of its" in str(caught.value)
    with pytest.raises(DataError, match="no rows"):
        examples_from([])


def test_what_cannot_be_set_is_not_advised() -> None:
    rows = [{"instruction": "a", "output": "b"}, {"q": "a", "a": "b"}]
    with pytest.raises(DataError) as caught:
        examples_from(rows)
    assert "--map q=instruction,a=output" in str(caught.value)
    assert "data.skip_bad" in str(caught.value)
    with pytest.raises(DataError) as caught:
        examples_from(rows, offers=())
    assert "--map" not in str(caught.value)
    assert str(caught.value).endswith("\nmend them")


def test_two_answers_are_not_chosen_between() -> None:
    with pytest.raises(DataError, match=r"--map prompt=instruction,answer=output$"):
        examples_from([{"prompt": "Why?", "answer": "So.", "response": "Hm."}])
    rows = [{"prompt": "Why?", "answer": "So.", "response": "Hm."}]
    (row,) = examples_from(rows, mapping=["response=output"]).examples
    assert (row.instruction, row.output) == ("Why?", "Hm.")


def test_preference_pairs_are_known_as_such() -> None:
    rows = [{"prompt": "Why?", "chosen": "So.", "rejected": "No."}] * 2
    with pytest.raises(DataError, match=r"these are preference pairs; add --method dpo") as caught:
        examples_from(rows)
    assert "--map" not in str(caught.value)
    with pytest.raises(DataError, match="these are preference pairs"):
        examples_from([{"instruction": "Why?", "chosen": "So.", "rejected": "No."}] * 2)


def test_an_unwanted_answer_is_not_trained_on() -> None:
    rows = [{"prompt": "Why?", "completion": word, "label": word == "So."} for word in ("So.", "No.")]
    with pytest.raises(DataError, match=r"row 1: label is false, .* --method dpo"):
        examples_from(rows)
    assert [row.output for row in examples_from(rows, skip_bad=True).examples] == ["So."]
    assert len(examples_from([{"prompt": "Why?", "completion": "So.", "label": 0}])) == 1  # of a kind, it may be


@pytest.mark.parametrize("key", ["images", "image", "videos", "audios"])
def test_rows_with_images_are_refused_by_name(key: str) -> None:
    rows = [{"instruction": "Why?", "output": "So.", key: []}, {"instruction": "Why?", "output": "So.", key: ["a.png"]}]
    with pytest.raises(DataError, match=f"row 1: has {key}; only text is read"):
        examples_from(rows)


@pytest.mark.parametrize(
    ("history", "says"),
    [
        ("x", "history is a text that is not JSON"),
        ({"a": 1}, "history is object; wanted a list of"),
        ([["a", "b"], ["a"]], r"history\[1\] is list; wanted \[question, answer\]"),
        (["ab"], r"history\[0\] is string"),
        ([["a", ""]], r"the answer of history\[0\] is empty"),
        ([[3, "a"]], r"the question of history\[0\] is number"),
        ([said("user", "a")], "history: message 1 is the user's after the user's"),
    ],
)
def test_a_history_is_of_questions_with_answers(history: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        examples_from([{"instruction": "Why?", "output": "So.", "history": history}])


def test_rows_to_be_answered_take_what_there_is() -> None:
    rows = [{"question": "Why?"}, {"question": "How?", "answer": "So."}]
    assert [row.output for row in examples_from(rows, need_output=False).examples] == ["", "So."]
    (row,) = examples_from([{"messages": [ASKED, ANSWERED, said("user", "And?")]}], need_output=False).examples
    assert (row.instruction, row.output, len(row.history)) == ("And?", "", 2)
    with pytest.raises(DataError, match="--map text=instruction"):
        examples_from([{"text": "Why?"}], need_output=False)


class Placed:
    """Rows of a file that can be read twice, and count how many there are at once."""

    def __init__(self, count: int) -> None:
        self.count, self.passes = count, 0

    def __iter__(self) -> Iterator[Any]:
        from types import SimpleNamespace

        self.passes += 1
        for number in range(self.count):
            row = {"question": f"{number}?", "answer": "" if number % 5 == 3 else "So."}
            yield SimpleNamespace(value=row, where=f"rows.jsonl line {number + 1}")


def test_rows_stream_in_two_passes_and_say_where_they_stand() -> None:
    rows = Placed(20)
    shaped = ShapedRows(rows, "rows.jsonl", "answers")
    assert (rows.passes, shaped.count, shaped.shapes) == (1, 20, {"question/answer": 20})
    made = list(shaped)
    assert rows.passes == 2
    rejected = [one for one in made if isinstance(one, Rejected)]
    assert rejected[0] == Rejected(3, "answer is empty", "rows.jsonl line 4")
    assert [one.row for one in made if isinstance(one, Example)] == [n for n in range(20) if n % 5 != 3]
    with pytest.raises(DataError, match=r"  rows 3, 8, 13, 18: answer is empty \(the first is rows.jsonl line 4\)\n"):
        shaped.refuse(rejected, 16)
    notes = shaped.notes
    assert list(shaped) == made  # as often as one likes
    assert shaped.notes == notes


def test_notes_are_of_one_reading() -> None:
    rows = [InMemory({"instruction": "no", "q": "Why?", "output": "So.", "id": n}) for n in range(3)]
    shaped = ShapedRows(rows, "rows", "answers", Renames(["q=instruction"]))
    for _ in range(2):
        assert len(list(shaped)) == 3
        assert shaped.notes == (
            "--map q=instruction takes the place of a key of 3 rows",
            "key 'id' of 3 rows is not used",
        )
