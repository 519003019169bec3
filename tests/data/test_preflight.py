"""Pre-flight: masks and lengths, what stops a run, and lines that stay few."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from instil.data.findings.masks import quantiles
from instil.data.preflight import LINES, Preflight, check
from instil.data.splits import Split
from instil.errors import DataError
from instil.records import Encoded, Example


def row(number: int, length: int, prompt: int, *, trained: bool = True, end: bool = True) -> Encoded:
    answer = [trained] * (length - prompt - 1) + [trained and end]
    return Encoded((1,) * length, (*(False,) * prompt, *answer), prompt, number)


def checked(train: Sequence[Encoded], max_length: int = 50, held_out: Sequence[Encoded] = (), **how: Any) -> Preflight:
    examples = [
        tuple(Example(f"Do {one.row}.", f"Done {one.row}.", row=one.row) for one in some) for some in (train, held_out)
    ]
    split = Split("grouped", examples[0], (), examples[1])
    return check(split, {"train": train, "test": [], "validation": held_out}, max_length, **{"context": 100, **how})


def test_lengths_and_what_keeps_nearly_all() -> None:
    rows = [row(n, n + 4, 2) for n in range(1, 101)]  # of 5 to 104 ids
    one = checked(rows, max_length=50)
    assert one.quantiles == {"50": 54, "90": 94, "95": 99, "99": 103}
    assert (one.longest, one.length_95, one.keeps_99) == (104, 99, 102)
    assert one.cut == tuple(range(48, 101))
    assert "99 % up to 103" in "\n".join(one.lines())
    assert not checked(rows[:90], max_length=one.keeps_99).cut
    kept = checked(rows, max_length=one.keeps_99)
    assert len(kept.cut) == 1  # one of a hundred
    assert "the longest has 104, and the model's context is 100\n" in "\n".join(one.lines())  # 102 would not fit
    longer = "\n".join(checked([*rows[:95], *(row(n, n, 2) for n in range(200, 900))], context=2000).lines())
    assert "data.max_length=898 would keep all, and 891 99 % of them" in longer
    few = "\n".join(checked([*[row(n, 60, 2) for n in range(199)], row(199, 300, 2)]).lines())
    assert "the longest has 300, and the model's context is 100, and data.max_length=59 would keep 99 % of them" in few


def test_of_pairs_both_answers_count() -> None:
    short, long = [row(n, 10, 4) for n in range(20)], [row(n, 10 + 3 * n, 4) for n in range(20)]
    one = checked(short, longest={"train": long, "test": [], "validation": []})
    assert (one.longest, one.keeps_99) == (67, 66)
    assert one.cut == (14, 15, 16, 17, 18, 19)
    assert one.tokens == 200  # what is counted is the wanted answer


def test_quantiles_are_lengths_of_rows() -> None:
    halves = [array("Q", range(51, 101)), array("Q", range(1, 51))]
    assert quantiles(halves, (0.001, 0.5, 0.9, 0.99, 1.0)) == [1, 50, 90, 99, 100]
    assert quantiles([], (0.5,)) == [0]


def test_the_share_of_targets_and_of_ends() -> None:
    one = checked([row(0, 20, 10), row(1, 20, 10), row(2, 70, 10), row(3, 20, 10, end=False)])
    assert one.trained_tokens == 10 + 10 + 41 + 9
    assert one.supervised == 70 / 130
    assert one.ends_trained == 2
    (endless,) = one.findings
    assert (endless.kind, endless.rows) == ("end_not_trained", (3,))
    assert "50 % of the rows are trained on their end" in one.lines()[1]
    few = checked([row(0, 20, 18), *(row(n, 50, 48, trained=False) for n in range(1, 9))])
    assert few.findings[0].kind == "few_targets"
    assert "only 2 of 420 tokens are targets" in few.findings[0].said


def test_rows_of_which_nothing_is_trained_on_stop_a_run() -> None:
    one = checked([row(n, 20, 10, trained=False) for n in range(4)])
    with pytest.raises(
        DataError, match="not one token of the 4 training rows is trained on: every target is masked"
    ) as no:
        one.refuse()
    assert no.value.exit_code == 2
    checked([row(0, 20, 10), *(row(n, 20, 10, trained=False) for n in range(1, 4))]).refuse()


def test_rows_are_skipped_for_what_they_lack() -> None:
    lines = checked([row(0, 20, 10), row(1, 20, 10, trained=False), row(2, 90, 60)]).lines()
    assert "1 row is skipped, of which nothing is trained on: 1" in lines
    assert "1 row is skipped, whose prompt alone fills 50 tokens: 2" in lines


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, ["1 row is longer than 50 tokens and loses the end of the response: 1;", "1 row is skipped, whose prompt",
             "1 test or validation row repeats the prompt", "1 row holds characters", "1 row is altered",
             "1 row of the file was left out"]),
        (2, ["2 rows are longer than 50 tokens and lose the end of the response: 1, 3;", "2 rows are skipped, whose",
             "2 test or validation rows repeat the prompt", "2 rows hold characters", "2 rows are altered",
             "2 rows of the file were left out"]),
    ],
)  # fmt: skip
def test_numbers_and_words_agree(count: int, said: list[str]) -> None:
    cut, filled = ([row(at, *shape) for at in (1, 3)[:count]] for shape in ((90, 20), (90, 60)))
    found = checked([row(0, 20, 10), *cut, *(replace(one, row=one.row + 1) for one in filled)])
    numbers = tuple(range(count))
    lines = replace(
        found, misspelt=numbers, altered=numbers, repeated_prompts=count, unusable=("row 9: no output",) * count
    ).lines()
    for start in said:
        assert any(line.startswith(start) for line in lines), (start, lines)


def test_answers_that_teach_nothing_stop_a_run() -> None:
    rows = [row(n, 20, 10) for n in range(4)]
    split = Split("book", tuple(Example(f"Do {n}.", "nan", row=n) for n in range(4)), (), ())
    with pytest.raises(
        DataError, match=r'all 4 training rows are empty or place-holders \("nan"\); look at the column'
    ):
        check(split, {"train": rows, "test": [], "validation": []}, 50, context=100).refuse()


def test_few_lines_are_shown_the_worst_first() -> None:
    notes = [f"note {n}" for n in range(30)]
    texts = {1: "x</s>", 2: "zero\u200bwidth", 3: "nan"}
    examples = tuple(Example(f"Do {n}.", texts.get(n, f"Done {n}."), row=n) for n in range(9))
    rows = [row(n, 20, 10) for n in range(9)]
    one = check(
        Split("book", examples, (), ()), {"train": rows, "test": [], "validation": []}, 50, context=99, notes=notes
    )
    lines, few = one.lines(), one.few_lines()
    assert len(few) == LINES == 12
    assert few[:11] == lines[:11]
    assert few[11] == f"... and {len(lines) - 11} more lines in the report"
    assert sum(line.startswith("warning: ") for line in few) == 3
    assert set(notes) < set(lines)
    stored = json.loads(json.dumps(one.as_json()))
    assert [one["kind"] for one in stored["findings"]] == ["place_holder", "end_marker", "invisible"]
    assert stored["findings"][0]["rows"] == [3]
    assert checked(rows).few_lines() == checked(rows).lines()


def test_a_long_list_under_a_line_is_cut_short_on_the_screen() -> None:
    unusable = [f"row {n}: complaint {'x' * n}" for n in range(9)]
    one = checked([row(n, 20, 10) for n in range(9)], unusable=unusable)
    (few,) = [line for line in one.few_lines("there") if "left out" in line]
    assert few.split("\n")[1:] == [
        "  row 0: complaint ", "  row 1: complaint x", "  row 2: complaint xx", "  ... and 6 more lines in there",
    ]  # fmt: skip
    assert "complaint xxxxxxxx" in "\n".join(one.lines())
    four = checked([row(0, 20, 10)], unusable=unusable[:4])
    assert four.few_lines() == four.lines()


def test_the_sample_of_many_rows_is_told() -> None:
    rows = [row(n, 20, 10) for n in range(60)]
    assert checked(rows, looked_at=30).looked_at == 30
    assert checked(rows).looked_at == 60
