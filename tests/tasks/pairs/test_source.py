"""Preference pairs from rows: what is refused, and that each refused row is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instil.errors import DataError
from instil.records import Example, Pair
from instil.tasks.pairs.source import pairs_from, read_pairs
from tests.conftest import BOOK_DATA

GOOD = {"instruction": "Say hi.", "input": "", "chosen": "Hi.", "rejected": "What?"}


def test_a_row_becomes_a_pair_and_back() -> None:
    (pair,) = pairs_from([{**GOOD, "output": "Hello."}]).pairs
    assert pair == Pair(Example("Say hi.", "Hello.", row=0), "Hi.", "What?")
    assert pair.row == 0
    assert pairs_from([pair.as_json()]).pairs == (pair,)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rejected": None}, "rejected is null"),
        ({"rejected": ...}, "rejected is missing"),
        ({"chosen": ...}, "chosen is missing"),
        ({"chosen": "  "}, "chosen is empty"),
        ({"chosen": ["Hi."]}, "chosen is list"),
        ({"instruction": ...}, "instruction is missing"),
        ({"chosen": "What? ", "rejected": "What?"}, "equal"),
    ],
)
def test_an_unusable_row_is_named(change: dict[str, object], said: str) -> None:
    row = {key: value for key, value in {**GOOD, **change}.items() if value is not ...}
    with pytest.raises(DataError, match=f"row 1: .*{said}"):
        pairs_from([GOOD, row])
    left = pairs_from([GOOD, row], skip_bad=True)
    assert [pair.row for pair in left.pairs] == [0]
    assert len(left.skipped) == 1


def test_equal_answers_can_be_kept_and_are_told_of() -> None:
    found = pairs_from([GOOD, {**GOOD, "rejected": "Hi."}], keep_equal=True)
    assert found.equal == (1,)
    assert "1 pair has equal answers" in found.notes[-1]


def test_a_file_of_instructions_is_no_file_of_pairs(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"instruction": "Say hi.", "output": "Hi."}]))
    with pytest.raises(DataError, match=r"instruction, output .*\n.*chosen and rejected;.*\n.*instil prefer makes"):
        read_pairs(file)
    with pytest.raises(DataError, match="no rows"):
        pairs_from([])
    with pytest.raises(DataError, match="none of its 1 row can"):
        pairs_from([7], skip_bad=True)


def test_equal_pairs_of_a_file_are_kept_only_if_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "pairs.json"
    said = [f"{n}." if n % 7 == 6 else f"-{n}." for n in range(40)]
    made = [{**GOOD, "instruction": f"Say {n}.", "chosen": f"{n}.", "rejected": one} for n, one in enumerate(said)]
    file.write_text(json.dumps(made))
    found = read_pairs(file, keep_equal=True)
    assert (len(found), found.equal) == (40, (6, 13, 20, 27, 34))
    assert len(read_pairs(file, skip_bad=True)) == 35


def test_the_chapters_file() -> None:
    file = BOOK_DATA / "instruction-data-with-preference.json"
    if not file.is_file():
        pytest.skip("the chapter's file is not here")
    found = read_pairs(file, keep_equal=True)
    assert (len(found), len(found.equal)) == (1100, 6)
