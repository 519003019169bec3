"""Intervals, tests and the verdict of a comparison: by hand, against scipy's definitions, and on made-up scores."""

from __future__ import annotations

import itertools
import random
from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.errors import DataError
from instil.evaluate.comparison import SIGNIFICANT, compare_verdicts
from instil.evaluate.statistics import FEWEST, interval, permutation_p, smallest_visible, spread
from instil.records import Verdict


def verdicts(scores: list[float | None]) -> list[Verdict]:
    """One verdict a score, numbered from 10."""
    return [Verdict(row, "j", score, "" if score is not None else "why") for row, score in enumerate(scores, start=10)]


def test_the_interval_of_a_mean_is_that_of_the_normal_law_where_that_holds() -> None:
    draw = random.Random(1)
    values = [draw.gauss(50, 10) for _ in range(400)]
    found = interval(values)
    assert found is not None
    half = 1.96 * stdev(values) / 20
    assert found.mean == pytest.approx(mean(values))
    assert found.low == pytest.approx(mean(values) - half, abs=0.1)
    assert found.high == pytest.approx(mean(values) + half, abs=0.1)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    draw = random.Random(2)
    inside = 0
    for _ in range(150):
        found = interval([float(draw.random() < 0.3) for _ in range(60)])
        assert found is not None
        inside += (found.low or 0) <= 0.3 <= (found.high or 0)
    assert 130 <= inside <= 150


def test_an_interval_is_the_same_every_time_and_of_one_value_has_no_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [1.0, 5.0, 2.0, 9.0, 4.0]
    whole = interval(values)
    assert whole == interval(values)
    assert interval([]) is None
    one = interval([3.0])
    assert one is not None
    assert (one.mean, one.low) == (3.0, None)
    monkeypatch.setattr("instil.evaluate.statistics.AT_ONCE", 500)  # in pieces
    pieces = interval(values)
    assert pieces is not None
    assert pieces.low == pytest.approx(whole.low if whole else 0, abs=0.3)


@given(st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=9))
def test_the_paired_test_counts_all_signs(differences: list[float]) -> None:
    reach = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    assert permutation_p(differences) == pytest.approx(mean(total >= reach - 1e-9 for total in sums))


def test_the_paired_test_drawn_at_random_is_near_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = [3.0, -1.0, 2.0, 2.5, -0.5, 4.0, 1.0, -2.0, 0.0, 1.5, 2.0]
    exact = permutation_p(differences)
    monkeypatch.setattr("instil.evaluate.statistics.ALL_SIGNS_UP_TO", 1)
    assert permutation_p(differences) == pytest.approx(exact, abs=0.01)
    assert permutation_p([1.0] * 200) == pytest.approx(1 / 20_001)  # never nothing


def test_the_smallest_difference_that_so_many_rows_show() -> None:
    """47.3 points of spread and 110 rows show 12.6; 3 points need 1,948 rows."""
    draw = np.random.default_rng(0)
    for count, seen in ((110, 12.6), (1948, 3.0)):
        values = draw.normal(size=count)
        values = (values - values.mean()) / values.std(ddof=1) * 47.3
        assert smallest_visible(values.tolist()) == pytest.approx(seen, abs=0.05)
    assert spread([1.0]) == 0
    assert spread([1.0, 3.0]) == pytest.approx(2**0.5)


def test_too_few_rows_that_differ_show_no_difference_however_large_it_is() -> None:
    assert permutation_p([100.0] * (FEWEST - 1)) > SIGNIFICANT > permutation_p([100.0] * FEWEST)
    for others in (0, 100):
        assert smallest_visible([5.0, 6.0, 7.0, 5.0, 6.0, *[0.0] * others]) is None
        assert smallest_visible([5.0, 6.0, 7.0, 5.0, 6.0, 7.0, *[0.0] * others]) is not None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ([2.0, 1.0, 2.0, 1.5], "p = 0.12; 4 rows are too few to show any difference, which takes 6 that differ)."),
        ([9.0, 8.0, 0.0], "; only 2 of 3 rows differ, too few to show any difference, which takes 6 that differ)."),
        ([9.0, 0.0], "; only 1 of 2 rows differs, too few to show any difference, which takes 6 that differ)."),
        ([9.0], "(+9.0 points; one row shows nothing)."),
        ([0.0], "(+0.0 points; one row shows nothing)."),
        ([0.0] * 7, "p = 1.00; none of 7 rows differs)."),
        ([2.0, -1.0, 2.0, -1.5, 2.0, 1.0], "; 6 rows could show a difference of 1.8 or more)."),
    ],
)
def test_the_verdict_promises_only_what_the_test_can_show(changes: list[float], why: str) -> None:
    found = compare_verdicts(verdicts([50.0] * len(changes)), verdicts([50.0 + change for change in changes]))
    assert found.sentence().endswith(why)
    assert found.as_json()["differing"] == sum(change != 0 for change in changes)


def test_noise_is_not_told_apart_and_a_gain_is() -> None:
    draw = random.Random(5)
    a = [draw.uniform(0, 100) for _ in range(110)]
    noise = compare_verdicts(verdicts(list(a)), verdicts([min(100, max(0, x + draw.gauss(0, 20))) for x in a]))
    assert noise.outcome == "not distinguishable"
    assert "could show a difference of" in noise.sentence("a", "b")
    better = compare_verdicts(verdicts(list(a)), verdicts([min(100, x + draw.uniform(0, 20)) for x in a]))
    assert better.outcome == "better"
    assert better.sentence("old", "new").startswith("new is better than old (+")
    worse = compare_verdicts(verdicts([min(100, x + draw.uniform(0, 20)) for x in a]), verdicts(list(a)))
    assert worse.outcome == "worse"


def test_chance_alone_is_called_a_difference_about_one_time_in_twenty() -> None:
    draw = random.Random(6)
    wrong = 0
    for _ in range(100):
        a, b = ([draw.uniform(0, 100) for _ in range(30)] for _ in range(2))
        wrong += compare_verdicts(verdicts(list(a)), verdicts(list(b))).outcome != "not distinguishable"
    assert wrong <= 12


def test_wins_flips_and_bounds_by_hand() -> None:
    found = compare_verdicts(verdicts([0, 80, 50, 100, None, 20]), verdicts([100, 79.5, 50.5, 0, 60, None]))
    assert (found.rows, found.scored, found.wins, found.ties, found.losses) == (6, 4, 1, 2, 1)
    assert (found.gained, found.lost) == ((10,), (11, 13))
    assert found.difference is not None
    assert found.difference.mean == pytest.approx((100 - 0.5 + 0.5 - 100) / 4)
    # without its score, row 14 of A may have had 100 or 0, and row 15 of B 0 or 100
    assert found.bounds == pytest.approx(((0 + (60 - 100) + (0 - 20)) / 6, (0 + 60 + 80) / 6))
    assert found.coverage == pytest.approx(4 / 6)


def test_nothing_is_concluded_from_too_few_scores() -> None:
    scores: list[float | None] = [90.0] * 50
    found = compare_verdicts(verdicts([10.0] * 50), verdicts([*scores[:40], *[None] * 10]))
    assert found.outcome == "not distinguishable"
    assert "only 40 of 50 rows" in found.sentence()
    empty = compare_verdicts(verdicts([None]), verdicts([1.0]))
    assert "no row has a score under both" in empty.sentence()


def test_some_rows_can_be_looked_at_alone_and_others_are_refused() -> None:
    a, b = verdicts([0, 50, 100]), verdicts([100, 50, 0])
    assert compare_verdicts(a, b, only={10}).wins == 1
    assert compare_verdicts(a, b, only={12}).losses == 1
    with pytest.raises(DataError, match="not of the same rows"):
        compare_verdicts(a, b[:2])
