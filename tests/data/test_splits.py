"""Splits and pre-flight: every row somewhere, and nothing lost in silence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.data.collate import collate
from instil.data.preflight import Preflight, check, has_target
from instil.data.splits import PARTS, rows_in, split_examples, split_grouped, split_in_order
from instil.errors import DataError
from instil.records import Encoded, Example
from instil.settings.options import DataOptions


def examples(count: int, distinct: int = 10**6) -> list[Example]:
    return [Example(f"do {n % distinct}", "x", row=n) for n in range(count)]


def test_the_books_split() -> None:
    split = split_in_order(examples(1100))
    assert [len(split.train), len(split.test), len(split.validation)] == [935, 110, 55]
    assert split.train[0].row == 0
    assert split.test[0].row == 935
    assert split.validation[0].row == 1045


@given(st.integers(1, 200), st.integers(1, 60), st.integers(0, 5), st.sampled_from(["book", "grouped"]))
def test_every_row_goes_to_exactly_one_part(count: int, distinct: int, seed: int, kind: str) -> None:
    rows = examples(count, distinct)
    split = split_examples(rows, DataOptions(split=kind, split_seed=seed))
    placed = sorted(example.row for part in PARTS for example in split.part(part))
    assert placed == list(range(count))
    assert split.train


@given(st.integers(1, 120), st.integers(1, 40), st.integers(0, 5))
def test_equal_prompts_stay_together(count: int, distinct: int, seed: int) -> None:
    split = split_grouped(examples(count, distinct), seed)
    homes = [{example.instruction for example in split.part(part)} for part in PARTS]
    assert not (homes[0] & homes[1] or homes[0] & homes[2] or homes[1] & homes[2])


def test_the_grouped_split_is_seeded() -> None:
    rows = examples(100)
    assert split_grouped(rows, 1) == split_grouped(rows, 1)
    assert split_grouped(rows, 1) != split_grouped(rows, 2)
    assert len(split_grouped(rows, 1).test) == 10


RELATED = "Describe the way in which a bill becomes a law in the United {} of America."


@pytest.mark.parametrize(("seed", "related"), [(0, 2), (1, 5), (2, 5), (3, 3), (4, 4)])
def test_near_relatives_stay_together(seed: int, related: int) -> None:
    """Copies, copies but for a word, and copies of those, among rows that are like no other."""
    rows = [Example(f"{n * n} things that begin with {chr(97 + n % 26) * 5}", row=n) for n in range(100)]
    for n in range(related):
        rows[n * 4] = Example(RELATED.format(("States", "states", "States!", "Nations", "Cities")[n % 5]), row=n * 4)
    split = split_grouped(rows, seed)
    homes = [part for part in PARTS if any("bill" in row.instruction for row in split.part(part))]
    assert len(homes) == 1
    assert [len(split.part(part)) for part in PARTS] == [85, 10, 5]
    assert split == split_grouped(rows, seed)


def test_equal_prompts_without_a_letter_stay_together() -> None:
    rows = [Example(f"{n * n} things that begin with {chr(97 + n % 26) * 5}", row=n) for n in range(40)]
    for n in range(0, 40, 8):
        rows[n] = Example("?! ...", row=n)
    for seed in range(6):
        split = split_grouped(rows, seed)
        assert sum(any(row.instruction == "?! ..." for row in split.part(part)) for part in PARTS) == 1


def test_large_groups_are_told_of() -> None:
    rows = [Example(f"{n * n} things that begin with {chr(97 + n % 26) * 5}", row=n) for n in range(100)]
    rows[40:70] = [Example(RELATED.format(f"States{'!' * (n % 3)}"), row=n) for n in range(40, 70)]
    split = split_grouped(rows, 1)
    assert {row.row for row in split.train} >= set(range(40, 70))
    assert split.notes == (
        "1 group of nearly the same prompts is larger than a held-out part and is trained on as a whole: "
        "30 rows like row 40; a higher data.leak_threshold makes smaller groups",
    )
    assert split_grouped([row for row in rows if not 40 <= row.row < 70], 1).notes == ()


def test_rows_of_one_form_are_still_held_out() -> None:
    """All are near relatives, so that equal prompts alone are kept together, and that is said."""
    form = "Please decide whether the following review of a product in our shop is positive or negative: {}"
    rows = [Example(form.format(f"{chr(97 + n % 20)}{n % 20}"), row=n) for n in range(100)]
    split = split_grouped(rows, 1)
    assert [len(split.part(part)) for part in PARTS] == [85, 10, 5]
    homes = [{row.instruction for row in split.part(part)} for part in PARTS]
    assert not (homes[0] & homes[1] or homes[0] & homes[2] or homes[1] & homes[2])
    assert "would leave no row to hold out, so only rows with equal prompts are kept together" in split.notes[0]
    assert split.near is None  # there are relatives in two parts, which the gate is to find


def encoded(length: int, prompt: int, row: int) -> Encoded:
    return Encoded((1,) * length, (False,) * prompt + (True,) * (length - prompt), prompt, row)


def test_cut_and_skipped_rows_are_counted_and_named() -> None:
    split = split_in_order(examples(4))
    rows = [encoded(8, 4, 0), encoded(12, 4, 1), encoded(30, 20, 2)]
    found = check(split, {"train": rows, "test": [], "validation": [encoded(9, 3, 3)]}, max_length=8, context=64)
    assert found.cut == (1,)  # row 3 of nine ids fits in eight positions
    assert found.skipped == (2,)
    text = "\n".join(found.lines())
    assert "loses the end of the response: 1" in text
    assert "skipped" in text
    assert "no test rows" in text
    # Targets within eight positions: ids 4..7 of the first row, 4..8 of the second, none of the third.
    assert found.trained_tokens == 4 + 5


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(DataError, match="none of the 1 training rows"):
        check(
            split_in_order(examples(1)),
            {"train": [encoded(30, 20, 0)], "test": [], "validation": []},
            max_length=8,
            context=64,
        ).refuse()


def checked(row: Encoded, max_length: int, context: int = 64) -> Preflight:
    """Pre-flight of one row beside a short one, so that it may itself be skipped."""
    parts = {"train": [encoded(4, 1, 0), row], "test": [], "validation": []}
    return check(split_in_order(examples(2)), parts, max_length=max_length, context=context)


@pytest.mark.parametrize(
    ("max_length", "left", "cut", "skipped"),
    [
        (5, 0, (), (1,)),  # the prompt's six ids: not even the position that predicts the response is there
        (6, 1, (1,), ()),  # exactly the prompt: its last position predicts the first id of the response
        (8, 3, (1,), ()),
        (9, 4, (), ()),  # ten ids need nine positions, since the last one is only ever a target
        (10, 4, (), ()),
    ],
)
def test_a_row_at_the_very_edge(max_length: int, left: int, cut: tuple[int, ...], skipped: tuple[int, ...]) -> None:
    row = encoded(10, 6, 1)
    found = checked(row, max_length)
    assert has_target(row, max_length) is bool(left)
    assert (found.cut, found.skipped) == (cut, skipped)
    assert found.trained_tokens == 3 + left
    assert collate([row], 0, max_length).trained_tokens == left  # what training will see


def test_a_row_trained_on_as_a_whole_has_targets_in_its_prompt() -> None:
    whole = Encoded((1,) * 10, (True,) * 10, 6, 1)
    assert has_target(whole, 1)
    assert not checked(whole, 3).skipped


def test_the_remedy_for_cut_rows_is_one_that_works() -> None:
    row = encoded(30, 4, 1)
    assert "data.max_length=29 would keep all" in "\n".join(checked(row, 8, context=29).lines())
    assert not checked(row, 29).cut
    told = "\n".join(checked(row, 8, context=28).lines())
    assert "the longest has 30, and the model's context is 28" in told
    assert "would keep all" not in told


@pytest.mark.parametrize(("context", "says"), [(64, "raise data.max_length"), (8, "context is no longer")])
def test_advice_to_raise_the_limit_only_where_there_is_room(context: int, says: str) -> None:
    parts = {"train": [encoded(30, 20, 0)], "test": [], "validation": []}
    with pytest.raises(DataError, match=says):
        check(split_in_order(examples(1)), parts, max_length=8, context=context).refuse()


def test_ranges_of_more_rows_than_are_held() -> None:
    assert rows_in({"ranges": [[3, 0], [5, 7]]}) == [5, 6]
    assert rows_in({"ranges": [[0, 5 * 10**6], [0, 5 * 10**6 + 1]]}) is None
