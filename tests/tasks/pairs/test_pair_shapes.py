"""Preference pairs in the forms of TRL and LlamaFactory, and answers that are only labelled good or bad."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from instil.data.sources import examples_from
from instil.errors import DataError
from instil.records import Example, Pair, Turn
from instil.tasks.pairs.source import PairSource, pairs_from, read_pairs


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def gpt(text: str) -> dict[str, Any]:
    return {"from": "gpt", "value": text}


SYSTEM = {"role": "system", "content": "Be."}
PLAIN = Pair(Example("Why?", row=0), "So.", "No.")
WITH_SYSTEM = Pair(Example("Why?", row=0, history=(Turn("system", "Be."),)), "So.", "No.")
EARLIER = (Turn("user", "One?"), Turn("assistant", "1."))
TEXTS = {"chosen": "So.", "rejected": "No."}
LISTS = {"chosen": [assistant("So.")], "rejected": [assistant("No.")]}


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"prompt": "Why?", **TEXTS}, PLAIN),
        ({"question": "Why?", "system": "Be.", **TEXTS}, WITH_SYSTEM),
        ({"instruction": "Why?", "input": "this", **TEXTS}, Pair(Example("Why?", "", "this", row=0), "So.", "No.")),
        ({"instruction": "Why?", "history": [["One?", "1."]], **TEXTS},
         Pair(Example("Why?", row=0, history=EARLIER), "So.", "No.")),
        ({"prompt": [user("Why?")], **LISTS}, PLAIN),
        ({"prompt": [SYSTEM, user("Why?")], **LISTS}, WITH_SYSTEM),
        ({"prompt": [user("Why?")], **TEXTS}, PLAIN),
        ({"prompt": "Why?", **LISTS}, PLAIN),
        ({"chosen": [user("Why?"), assistant("So.")], "rejected": [user("Why?"), assistant("No.")]}, PLAIN),
        ({"chosen": [SYSTEM, user("Why?"), assistant("So.")],
          "rejected": [SYSTEM, user("Why?"), assistant("No.")]}, WITH_SYSTEM),
        ({"chosen": [user("One?"), assistant("1."), user("Why?"), assistant("So.")],
          "rejected": [user("One?"), assistant("1."), user("Why?"), assistant("No.")]},
         Pair(Example("Why?", row=0, history=EARLIER), "So.", "No.")),
        ({"prompt": "Why?", "prompt_id": "3", "messages": [user("Why?"), assistant("So.")],
          "chosen": [user("Why?"), assistant("So.")], "rejected": [user("Why?"), assistant("No.")]}, PLAIN),
        ({"conversations": [{"from": "human", "value": "Why?"}], "chosen": gpt("So."), "rejected": gpt("No.")}, PLAIN),
        ({"messages": [user("One?"), assistant("1."), user("Why?")], "chosen": assistant("So."),
          "rejected": assistant("No.")}, Pair(Example("Why?", row=0, history=EARLIER), "So.", "No.")),
        ({"conversations": json.dumps([user("Why?")]), **TEXTS}, PLAIN),
        ({"messages": [user("Why?")], "system": "Be.", **TEXTS}, WITH_SYSTEM),
        ({"prompt": "Why?", "tools": '[{"name": "f"}]', **TEXTS},
         Pair(Example("Why?", row=0, tools='[{"name": "f"}]'), "So.", "No.")),
    ],
)  # fmt: skip
def test_every_form_is_read(row: dict[str, Any], wanted: Pair) -> None:
    assert pairs_from([row, row]).pairs[0] == wanted


def refused(*rows: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        pairs_from(rows)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chosen": [user("Why?"), assistant("So.")], "rejected": [user("How?"), assistant("No.")]},
         "no message in common, so there is no prompt"),
        ({"chosen": [user("One?"), assistant("1."), user("Why?"), assistant("So.")],
          "rejected": [user("One?"), assistant("2."), user("Why?"), assistant("No.")]},
         "part after message 1, and then chosen has assistant, user, assistant; wanted one message of the assistant"),
        ({"chosen": [user("Why?"), assistant("So."), user("And?")], "rejected": [user("Why?"), assistant("No.")]},
         "chosen has assistant, user"),
        ({"prompt": [user("Why?")], "chosen": [assistant(None, tool_calls=[{"name": "f"}])],
          "rejected": [assistant("No.")]}, "chosen has tool_calls; preferences are between texts"),
        ({"prompt": [user("Why?")], "chosen": [assistant("So.")],
          "rejected": [assistant("No.", reasoning_content="Hm.")]}, "rejected has thoughts in a key of their own"),
        ({"prompt": [user("Why?")], "chosen": [assistant("So.", weight=0)], "rejected": [assistant("No.")]},
         "chosen has the weight 0"),
        ({"prompt": "Where?", "chosen": [user("Why?"), assistant("So.")], "rejected": [user("Why?"), assistant("No.")]},
         "prompt is not what the two conversations begin with"),
        ({"prompt": [user("Why?"), assistant("So.")], **LISTS}, "prompt ends with an answer"),
        ({"prompt": [SYSTEM], **LISTS}, "no message of a user"),
        ({"prompt": "Why?", "chosen": [], "rejected": []}, "chosen is list; wanted text"),
        ({"prompt": "Why?", "chosen": [assistant("So.")], "rejected": "No."}, "chosen is list; wanted text"),
        ({"chosen": "So.", "rejected": "No."}, "instruction is missing"),
        ({"prompt": "Why?", "chosen": "So."}, "rejected is missing"),
    ],
)  # fmt: skip
def test_pairs_that_are_none_are_refused_by_name(row: dict[str, Any], says: str) -> None:
    message = refused(row)
    assert "row 0: " in message
    assert says in message
    assert "skip_bad" not in message


def test_one_pair_that_lacks_its_prompt_is_named() -> None:
    assert "row 1: prompt is missing" in refused({"prompt": "Why?", **TEXTS}, TEXTS)


def labelled(*rows: tuple[str, str, Any], key: str = "label") -> PairSource:
    return pairs_from([{"prompt": asked, "completion": said, key: label} for asked, said, label in rows])


def test_labelled_answers_to_one_prompt_make_pairs() -> None:
    source = labelled(("Why?", "No.", False), ("How?", "Thus.", True), ("Why?", "So.", True), ("How?", "Not.", False))
    assert source.pairs == (
        Pair(Example("How?", row=1), "Thus.", "Not."),
        Pair(Example("Why?", row=2), "So.", "No."),
    )
    assert source.notes[-1] == "2 pairs are made of 4 labelled answers, each of a good and a bad one"
    assert labelled(("Why?", "So.", 1), ("Why?", "No.", 0), key="kto_tag").pairs[0].rejected == "No."
    rows = [{"messages": [user("Why?"), assistant(text)], "label": text == "So."} for text in ("So.", "No.")]
    assert pairs_from(rows).pairs == (PLAIN,)
    apart = [{**rows[0], "system": "Be."}, rows[1]]
    assert "no answer with the label" in refused(*apart)  # two prompts


def test_labelled_answers_without_another_are_refused_by_name() -> None:
    rows = [("Why?", "So.", True), ("Why?", "No.", False), ("Why?", "Yes.", True), ("How?", "Thus.", True)]
    with pytest.raises(DataError, match="rows 2, 3: no answer with the label false to the same prompt is left"):
        labelled(*rows)
    with pytest.raises(DataError, match="none of its 2 rows") as caught:
        labelled(("Why?", "So.", True), ("How?", "Not.", False))
    assert "row 1: no answer with the label true" in str(caught.value)
    assert "skip_bad" not in str(caught.value)
    with pytest.raises(DataError, match="row 2: label is string; wanted true or false"):
        labelled(*rows[:2], ("Why?", "So.", "good"))
    rows_ = [{"prompt": a, "completion": b, "label": c} for a, b, c in rows]
    source = pairs_from(rows_, skip_bad=True)
    assert (len(source), [one.row for one in source.rejected]) == (1, [2, 3])


def test_pairs_of_two_shapes_are_counted() -> None:
    rows = [{"prompt": "Why?", **TEXTS}] * 3 + [{"question": "Why?", **TEXTS}]
    assert "they have 2 shapes: 3 rows prompt, chosen, rejected, 1 row question, chosen, rejected" in refused(*rows)


def test_two_equal_conversations_have_a_prompt_and_prefer_nothing() -> None:
    same = [user("Why?"), assistant("So.")]
    rows = [{"chosen": same, "rejected": same}]
    assert "row 0: chosen and rejected are equal, so it prefers nothing" in refused(*rows)
    assert pairs_from(rows, keep_equal=True).pairs == (Pair(Example("Why?", row=0), "So.", "So."),)


def test_pairs_that_are_left_out_are_told_with_their_places(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "completion": said, "label": said != "No."} for said in ("So.", "No.", "Yes.")]
    rows += [{"prompt": "How?", "completion": "Thus.", "label": label} for label in (True, False)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n\n".join(map(json.dumps, rows)))
    source = read_pairs(file, skip_bad=True)
    assert [(one.row, one.where) for one in source.rejected] == [(2, "rows.jsonl line 5"), (3, "rows.jsonl line 7")]
    assert "2 pairs are made of 4 labelled answers, each of a good and a bad one" in source.notes


def test_numbers_of_pairs_are_a_part_of_the_hash_where_some_are_left_out() -> None:
    good, bad = [{"prompt": f"Say {n}.", **TEXTS} for n in range(4)], {"prompt": "No answers."}
    hashes = [pairs_from(some, skip_bad=True).sha256 for some in ([bad, *good], [*good, bad], good)]
    assert hashes[1] == hashes[2] != hashes[0]


@pytest.mark.parametrize(("good", "bad"), [("True", "False"), ("true", "FALSE"), ("1", "0"), ("1.0", " 0.0"), (1, 0)])
def test_a_table_says_labels_with_words(good: Any, bad: Any) -> None:
    made = [{"prompt": "Why?", "completion": text, "label": label} for text, label in (("So.", good), ("No.", bad))]
    assert pairs_from(made).pairs == (PLAIN,)
    with pytest.raises(DataError, match="label is string; wanted true or false"):
        pairs_from([{**made[0], "label": "good"}])


@pytest.mark.parametrize("label", [False, "False", "false "])
def test_what_is_labelled_false_is_not_trained_on_unawares(label: Any) -> None:
    with pytest.raises(DataError, match="label is false, which says that its answer is not wanted"):
        examples_from([{"prompt": "Why?", "completion": "No.", "label": label}])
    assert examples_from([{"prompt": "Why?", "completion": "No.", "label": "0"}])  # which may name a class


AS_TEXT = {"prompt": [SYSTEM, user("Why?")], **LISTS}


@pytest.mark.parametrize(
    "row",
    [
        AS_TEXT,
        {"prompt": AS_TEXT["prompt"], "chosen": "So.", "rejected": "No."},
        {"prompt": [SYSTEM, {"from": "human", "value": "Why?"}], "chosen": [gpt("So.")], "rejected": [gpt("No.")]},
        {side: [*AS_TEXT["prompt"], *LISTS[side]] for side in LISTS},
    ],
)
def test_messages_in_a_table_are_json(row: dict[str, Any], tmp_path: Path) -> None:
    """A CSV knows no lists: they are read as the messages that they are, and that is said."""
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(text))
        writer.writeheader()
        writer.writerow(text)
    found = read_pairs(tmp_path / "rows.csv")
    assert found.pairs == (WITH_SYSTEM,)
    for key, value in row.items():
        said = f"{key!r} of 1 row holds messages as JSON text; they are read as messages"
        assert (said in found.notes) is (value != text[key])


def test_messages_of_prompt_and_completion_are_json_in_a_table() -> None:
    row = {"prompt": json.dumps([user("Why?")]), "completion": json.dumps([assistant("So.")])}
    found = examples_from([row])
    assert found.examples == (Example("Why?", "So.", row=0),)
    assert "'completion' of 1 row holds messages as JSON text; they are read as messages" in found.notes
    assert examples_from([{**row, "prompt": "Make it JSON."}]).examples[0].output == row["completion"]


@pytest.mark.parametrize("key", ["prompt", "chosen"])
def test_messages_as_python_prints_them_are_no_text(key: str) -> None:
    row = {"prompt": "Why?", "chosen": "So.", "rejected": "No.", key: str([user("Why?")])}
    with pytest.raises(DataError, match=rf"{key} is messages as Python prints them; wanted JSON \(json\.dumps\)"):
        pairs_from([row])
    for text in ("[1, 2]", "[a", '["role"]', '[{"a": 1}]', "[]"):
        assert pairs_from([{**row, key: text}]).pairs
