"""What the report draws: bins, groups, bars and marked words."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.data.differences import marked
from instil.evaluate.statistics import Interval
from instil.records import Example
from instil.runs.report.charts import (
    BINS,
    KINDS,
    NO_TASK,
    OTHER,
    PLOT_HEIGHT,
    bar,
    bin_counts,
    first_word,
    group_scores,
    histogram,
    kind_groups,
    length_groups,
)

SCORES = st.lists(st.none() | st.floats(0, 100), max_size=40)


@given(SCORES)
def test_every_score_lies_in_one_bin(scores: list[float | None]) -> None:
    counts = bin_counts(scores)
    assert len(counts) == BINS
    assert sum(counts) == sum(score is not None for score in scores)
    assert counts[9] == sum(score is not None and score >= 90 for score in scores)


@given(SCORES, SCORES)
def test_columns_are_as_high_as_their_counts_and_stay_in_their_bin(
    before: list[float | None], after: list[float | None]
) -> None:
    drawn = histogram(before, after)
    top = drawn.ticks[-1]
    assert drawn.ticks[0].count == 0
    assert (top.y, drawn.ticks[0].y) == (0, PLOT_HEIGHT)
    assert [c.count for c in drawn.columns] == bin_counts(before) + bin_counts(after)
    for at, column in enumerate(drawn.columns):
        assert column.height == pytest.approx(PLOT_HEIGHT * column.count / top.count, abs=0.01)
        assert column.y + column.height == pytest.approx(PLOT_HEIGHT, abs=0.02)
        left = at % BINS * 10
        assert left < column.x < column.x + column.width < left + 10
    for base, tuned in zip(drawn.columns[:BINS], drawn.columns[BINS:], strict=True):
        assert base.x + base.width <= tuned.x


def test_columns_and_histogram_say_what_they_show() -> None:
    drawn = histogram([5.0, None], [95.0, 100.0])
    assert drawn.columns[0].title == "before, 0 to 10 points: 1 row"
    assert drawn.columns[-1].title == "after, 90 to 100 points: 2 rows"
    assert "before: 1, 0, 0, 0, 0, 0, 0, 0, 0, 0; after: 0, 0, 0, 0, 0, 0, 0, 0, 0, 2" in drawn.summary


def test_a_bar_stays_on_its_track() -> None:
    drawn = bar("tuned", "after", Interval(101.0, -3.0, 104.0, 5))
    assert (drawn.share, drawn.low, drawn.high) == (100.0, 0.0, 100.0)
    assert bar("tuned", "after", Interval(40.0, None, None, 1)).low is None


@given(st.lists(st.integers(0, 12), max_size=40))
def test_every_row_is_in_one_group_of_lengths(lengths: list[int]) -> None:
    groups = length_groups([Example("", "a " * length) for length in lengths])
    assert sorted(at for group in groups for at in group.members) == list(range(len(lengths)))
    assert len(groups) <= 4
    assert len({group.name for group in groups}) == len(groups)
    spans = [[lengths[at] for at in group.members] for group in groups]
    assert all(max(low) < min(high) for low, high in pairwise(spans))


def test_lengths_are_cut_into_quarters() -> None:
    groups = length_groups([Example("", "a " * length) for length in range(1, 9)])
    assert [(group.name, group.members) for group in groups] == [
        ("1 to 2 words", (0, 1)),
        ("3 to 4 words", (2, 3)),
        ("5 to 6 words", (4, 5)),
        ("7 to 8 words", (6, 7)),
    ]
    assert [group.name for group in length_groups([Example("", "a b")] * 5)] == ["2 words"]
    assert length_groups([]) == []


def test_kinds_are_tasks_where_rows_name_them() -> None:
    rows = [Example("x", task="b"), Example("x"), Example("x", task="a"), Example("x", task="a")]
    groups, named = kind_groups(rows)
    assert named
    assert [(group.name, group.members) for group in groups] == [("a", (2, 3)), ("b", (0,)), (NO_TASK, (1,))]


def test_kinds_are_first_words_else_and_not_too_many() -> None:
    asked = [f"word{kind} of row" for kind in range(30) for _ in range(31 - kind)] + ["?", "once", ""]
    groups, named = kind_groups([Example(text) for text in asked])
    assert not named
    assert len(groups) == KINDS
    assert [group.name for group in groups] == [*(f"Word{kind}" for kind in range(KINDS - 1)), OTHER]
    assert sorted(at for group in groups for at in group.members) == list(range(len(asked)))


def test_a_first_word_is_short_and_without_signs() -> None:
    assert first_word("**CONVERT** it") == "Convert"
    assert first_word("x" * 5000) == "X" + "x" * 29
    assert first_word("写一首诗") == "写一首诗"


def test_groups_are_scored_over_the_rows_that_have_both_scores() -> None:
    groups = length_groups([Example("", "a")] * 3 + [Example("", "a b c")])
    scores = group_scores(groups, [10.0, 30.0, None, 40.0], [50.0, 90.0, 90.0, None])
    assert [(score.name, score.rows, score.before.mean, score.change) for score in scores] == [("1 word", 2, 20, 50)]


TEXTS = st.text(st.sampled_from("ab .,\n\u0301é"), max_size=30)


@given(TEXTS, TEXTS)
def test_marking_loses_no_text(wanted: str, said: str) -> None:
    for text, pieces in zip((wanted, said), marked(wanted, said), strict=True):
        assert "".join(piece.text for piece in pieces) == text


@given(TEXTS)
def test_texts_that_differ_in_case_are_not_marked(text: str) -> None:
    assert not any(piece.marked for pieces in marked(text, text.upper()) for piece in pieces)


def test_words_that_only_one_text_has_are_marked() -> None:
    wanted, said = marked("The big red fox runs.", "The fox runs home.")
    assert [piece.text for piece in wanted if piece.marked] == ["big red"]
    assert [piece.text for piece in said if piece.marked] == ["home"]


def test_texts_with_little_in_common_and_long_ones_are_left_alone() -> None:
    for wanted, said in (("A crocodile is a reptile.", "I do not know that"), ("a " * 500, "a " * 500 + "b")):
        assert not any(piece.marked for pieces in marked(wanted, said) for piece in pieces)
