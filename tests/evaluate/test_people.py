"""Agreement with people's labels: by hand, against scikit-learn's definition, and on judges whose faults are known."""

from __future__ import annotations

import numpy as np
import pytest

from instil.evaluate.pairwise import PairwiseVerdict, PairwiseVerdicts
from instil.evaluate.people import FEWEST, ChoosesLikePeople, kappa, like_people, points_of, rank_correlation, slope

DRAW = np.random.default_rng(7)  # drawn from by tests in turn: their figures may not hang on what they draw


def weighted_kappa(a: np.ndarray, b: np.ndarray, levels: int) -> float:
    """As the definition has it: a table of counts, and another of what chance gives."""
    table = np.zeros((levels, levels))
    for one, other in zip(a.astype(int), b.astype(int), strict=True):
        table[one, other] += 1
    weights = (np.arange(levels)[:, None] - np.arange(levels)) ** 2
    chance = np.outer(table.sum(1), table.sum(0)) / table.sum()
    return float(1 - (weights * table).sum() / (weights * chance).sum())


@pytest.mark.parametrize("levels", [2, 5])
def test_kappa_is_that_of_the_table(levels: int) -> None:
    for _ in range(20):
        a = DRAW.integers(levels, size=60)
        b = np.where(DRAW.random(60) < 0.6, a, DRAW.integers(levels, size=60))
        assert kappa(a.astype(float), b.astype(float)) == pytest.approx(weighted_kappa(a, b, levels))


def test_ranks_share_ties() -> None:
    assert rank_correlation(np.array([1.0, 1, 2]), np.array([3.0, 3, 9])) == pytest.approx(1.0)
    assert rank_correlation(np.array([1.0, 2, 2, 3]), np.array([4.0, 3, 3, 1])) == pytest.approx(-1.0)
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3.0)))


def labelled(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    return DRAW.integers(1, 6, size=count) * 25.0 - 25.0, DRAW.integers(4, 200, size=count)


def test_a_judge_that_follows_people_does() -> None:
    labels, words = labelled()
    scores = np.clip(labels + DRAW.choice([-25, 0, 0, 0, 25], size=200), 0, 100)
    found = like_people("j", "1 to 5", labels.tolist(), scores.tolist(), words.tolist())
    assert found.kappa is not None and found.kappa.low is not None
    assert found.kappa.low > 0.8
    assert found.problems == ()
    assert found.length is not None and found.length.low is not None and found.length.high is not None
    assert found.length.low < 0 < found.length.high
    assert found.needed is not None and found.needed < 200
    assert "agrees with people at kappa" in found.sentence()


def test_a_judge_that_guesses_is_found_out() -> None:
    labels, words = labelled()
    by_chance = [DRAW.permutation(labels) for _ in range(20)]
    found = [like_people("j", "1 to 5", labels.tolist(), scores.tolist(), words.tolist()) for scores in by_chance]
    assert sum(bool(one.problems) for one in found) >= 16  # nineteen of twenty
    assert any("no better than chance" in one.problems[0] for one in found if one.problems)


def test_pay_for_length_is_measured_with_labels_held_equal() -> None:
    labels, words = labelled(400)
    words = np.where(labels > 50, words * 4, words)  # people like long answers, too: that alone is no bias
    fair = like_people("j", "0 to 100", labels.tolist(), labels.tolist(), words.tolist())
    assert fair.length is not None and abs(fair.length.mean) < 1e-6
    paying = labels + 6.0 * np.log2(words)
    assert slope(labels, paying, np.log2(words)) == pytest.approx(6.0)
    noisy = like_people("j", "0 to 100", labels.tolist(), (paying + DRAW.normal(0, 5, 400)).tolist(), words.tolist())
    assert noisy.length is not None and noisy.length.low is not None and noisy.length.high is not None
    assert 0 < noisy.length.low < 6.0 < noisy.length.high
    assert any("it pays for length" in line for line in noisy.lines())
    assert noisy.bias is not None and noisy.bias.mean > 10


def test_how_many_labels_it_takes_falls_with_the_root() -> None:
    labels, words = labelled(1600)
    scores = np.where(DRAW.random(1600) < 0.5, labels, DRAW.permutation(labels))
    needed = [
        like_people("j", "1 to 5", labels[:n].tolist(), scores[:n].tolist(), words[:n].tolist()).needed
        for n in (200, 1600)
    ]
    assert needed[0] is not None and needed[1] is not None
    assert needed[0] == pytest.approx(needed[1], rel=0.5)
    assert 50 < needed[1] < 1600


def test_few_labels_and_equal_ones_are_said_to_tell_nothing() -> None:
    few = like_people("j", "right or wrong", [100.0] * 5, [90.0] * 5, [3] * 5)
    assert (few.kappa, few.needed, few.problems) == (None, None, ())
    assert f"at least {FEWEST}" in few.sentence()
    equal = like_people("j", "right or wrong", [100.0] * 50, [90.0] * 50, [3] * 50)
    assert "are the same" in equal.sentence()
    missing = like_people("j", "right or wrong", [100.0] * 50, [None] * 45 + [90.0] * 5, [3] * 50)
    assert (missing.labels, missing.scored) == (50, 5)


def test_people_among_themselves_are_the_ceiling() -> None:
    labels, words = labelled()
    both = [(float(one), float(one)) for one in labels]
    found = like_people("j", "1 to 5", labels.tolist(), labels.tolist(), words.tolist(), both)
    assert found.people is not None and found.people.mean == 1.0
    assert "people among themselves 1.00" in found.sentence()


def test_right_and_wrong_are_what_points_make_them() -> None:
    assert points_of(0, "right or wrong") == 0.0
    found = like_people("j", "right or wrong", [100.0, 0.0] * 20, [85.0, 75.0] * 20, [3] * 40)
    assert found.kappa is not None and found.kappa.mean == 1.0


def choices(a_first: list[str], b_first: list[str]) -> ChoosesLikePeople:
    rows = tuple(PairwiseVerdict(n, one, two) for n, (one, two) in enumerate(zip(a_first, b_first, strict=True)))
    return ChoosesLikePeople("j", PairwiseVerdicts(rows, (), dict.fromkeys(range(len(rows)), 1)))


def test_a_judge_that_takes_the_first_is_found_out() -> None:
    biased = choices(["first"] * 40, ["first"] * 40)
    assert biased.first is not None and biased.first.mean == 100.0
    assert biased.agreement is not None and biased.agreement.mean == 50.0  # all are ties
    assert biased.problems
    good = choices(["second"] * 38 + ["first"] * 2, ["first"] * 38 + ["second"] * 2)
    assert good.agreement is not None and good.agreement.mean == 95.0
    assert good.first is not None and good.first.mean == 50.0
    assert good.problems == ()
    assert "prefers what people prefer in 95" in good.sentence()
    assert "tell nothing" in choices(["second"] * 3, ["first"] * 3).sentence()
