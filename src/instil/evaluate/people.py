"""Whether a judge follows people: its verdicts beside labels that people gave to the same answers.

Agreement is weighted kappa with quadratic weights (Cohen 1968), which for right and wrong is Cohen's kappa (1960): 1 is
the same label each time, 0 what two would share by chance. A judge that pays for length gives more points to the longer
of two answers that people value alike: the slope of its scores on the logarithm of the length, labels held equal.
Intervals are percentile bootstraps over answers (`instil.evaluate.statistics`).

Shape suffixes: N labelled answers · B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from instil.errors import counted
from instil.evaluate.comparison import PASS
from instil.evaluate.pairwise import PairwiseVerdicts
from instil.evaluate.statistics import LEVEL, SEED, Interval, interval

Scale = Literal["right or wrong", "1 to 5", "0 to 100"]
Floats = NDArray[np.float64]

RESAMPLES = 2_000
FEWEST = 20  # labels of which anything is said
WANTED = 0.1  # half the width of an interval of kappa that is called narrow
LEVELS = 4  # steps between the worst and the best label of "1 to 5"; "0 to 100" is rounded to as many


@dataclass(frozen=True, slots=True)
class LikePeople:
    """A judge beside people's labels. Figures are None where there are too few labels, or all are the same.

    Attributes:
        judge: its name.
        scale: what the labels are.
        labels: how many there are.
        scored: how many of the answers got a score.
        kappa: weighted kappa, 1 at most.
        people: kappa of two people with one another, on answers that both labelled.
        rank: rank correlation of scores and labels (Spearman).
        bias: points by which the judge gives more than people do, on 0 to 100.
        length: points more for an answer twice as long that people value alike.
        needed: how many labels would make the interval of kappa as narrow as plus or minus 0.1.
    """

    judge: str
    scale: Scale
    labels: int
    scored: int
    kappa: Interval | None
    people: Interval | None
    rank: Interval | None
    bias: Interval | None
    length: Interval | None
    needed: int | None

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the judge should not be used, each in a clause."""
        if self.kappa is None or self.kappa.low is None or self.kappa.low > 0:
            return ()
        return (f"it agrees with these labels no better than chance (kappa {self.kappa.text(2)})",)

    def sentence(self) -> str:
        """What is to be known first."""
        if self.scored < FEWEST:
            said = f"{self.judge}: {counted(self.scored, 'label')} with a score tell nothing; at least {FEWEST} do"
            return f"{said}."
        if self.kappa is None:
            return f"{self.judge}: all labels, or all scores, are the same, so there is no agreement to measure."
        among = f"; people among themselves {self.people.text(2)}" if self.people else ""
        return (
            f"{self.judge} agrees with people at kappa {self.kappa.text(2)} ({counted(self.scored, 'label')}{among})."
        )

    def lines(self) -> list[str]:
        """Its other figures, each in a line."""
        lines = [f"labels: {self.scale}; {self.scored} of {counted(self.labels, 'answer')} got a score"]
        if self.rank:
            lines.append(f"rank correlation with the labels: {self.rank.text(2)}")
        if self.bias:
            lines.append(f"more points than people give: {self.bias.text()}")
        if self.length:
            low, high = self.length.low or 0.0, self.length.high or 0.0
            led = "it pays for length" if low > 0 else "no sign that it pays for length"
            led = "it pays for brevity" if high < 0 else led
            lines.append(
                f"an answer twice as long that people value alike gets {self.length.text()} points more: {led}"
            )
        if self.needed:
            enough = "these suffice" if self.needed <= self.scored else f"there are {self.scored:,}"
            lines.append(f"kappa to plus or minus {WANTED} takes about {self.needed:,} labels; {enough}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        intervals = {name: getattr(self, name) for name in ("kappa", "people", "rank", "bias", "length")}
        return {
            "judge": self.judge,
            "verdict": self.sentence(),
            "problems": list(self.problems),
            "scale": self.scale,
            "labels": self.labels,
            "scored": self.scored,
            **{name: found.as_json() if found else None for name, found in intervals.items()},
            "labels_needed": self.needed,
        }


def like_people(
    judge: str,
    scale: Scale,
    labels: Sequence[float],
    scores: Sequence[float | None],
    words: Sequence[int],
    people: Sequence[tuple[float, float]] = (),
) -> LikePeople:
    """Compare a judge's scores with people's labels.

    Args:
        judge: its name.
        scale: what the labels were before they became points.
        labels: one of each answer, in points of 0 to 100 (`points_of`).
        scores: the judge's, in the same order; None where it gave none.
        words: how long each answer is.
        people: two people's labels of the answers that two or more labelled, in points.
    """
    given = [
        (label, score, length) for label, score, length in zip(labels, scores, words, strict=True) if score is not None
    ]
    label_N, score_N, words_N = np.array(given, dtype=np.float64).reshape(-1, 3).T
    of_people, of_judge = _levels(label_N, scale), _levels(score_N, scale)
    agreement = _resampled(kappa, of_people, of_judge)
    two = np.array(people, dtype=np.float64).reshape(-1, 2)
    return LikePeople(
        judge=judge,
        scale=scale,
        labels=len(labels),
        scored=len(given),
        kappa=agreement,
        people=_resampled(kappa, _levels(two[:, 0], scale), _levels(two[:, 1], scale)),
        rank=_resampled(rank_correlation, label_N, score_N),
        bias=interval((score_N - label_N).tolist()) if len(given) >= FEWEST else None,
        length=_resampled(slope, label_N, score_N, np.log2(np.maximum(words_N, 1.0))),
        needed=_needed(agreement),
    )


def points_of(label: float, scale: Scale) -> float:
    """A label in points of 0 to 100.

    >>> points_of(1, "right or wrong"), points_of(4, "1 to 5"), points_of(35, "0 to 100")
    (100.0, 75.0, 35.0)
    """
    if scale == "1 to 5":
        return 25.0 * (label - 1)
    return 100.0 * label if scale == "right or wrong" else float(label)


def _levels(points_N: Floats, scale: Scale) -> Floats:
    """Points as the steps of a scale; a score counts as right from where `instil.evaluate.comparison` has it so."""
    if scale == "right or wrong":
        return (points_N >= PASS).astype(np.float64)
    return np.rint(points_N / 100.0 * LEVELS)


def kappa(a_N: Floats, b_N: Floats) -> float:
    """Agreement of two labellings beyond chance, weighted by the square of how far they are apart.

    NaN where both are all the same label.

    >>> kappa(np.array([0.0, 0, 1, 1]), np.array([0.0, 1, 1, 1]))
    0.5
    """
    apart = ((a_N - b_N) ** 2).mean()
    chance = a_N.var() + b_N.var() + (a_N.mean() - b_N.mean()) ** 2
    return float(1 - apart / chance) if chance else math.nan


def rank_correlation(a_N: Floats, b_N: Floats) -> float:
    """Spearman's; equal values share their mean rank. NaN where one of both is constant.

    >>> rank_correlation(np.array([1.0, 2, 3]), np.array([10.0, 20, 15]))
    0.5
    """
    one, other = _ranks(a_N), _ranks(b_N)
    spread = one.std() * other.std()
    return float(((one - one.mean()) * (other - other.mean())).mean() / spread) if spread else math.nan


def _ranks(values_N: Floats) -> Floats:
    _, place_N, count_V = np.unique(values_N, return_inverse=True, return_counts=True)
    last_V = np.cumsum(count_V)
    return np.asarray((last_V - (count_V - 1) / 2.0)[place_N], dtype=np.float64)


def slope(label_N: Floats, score_N: Floats, length_N: Floats) -> float:
    """Points of score for each unit of length, labels held equal; NaN where that cannot be told apart."""
    columns = np.stack([np.ones_like(label_N), label_N, length_N], axis=1)
    found, _, rank, _ = np.linalg.lstsq(columns, score_N, rcond=None)
    return float(found[2]) if rank == 3 else math.nan


def _resampled(figure: Callable[..., float], *columns: Floats) -> Interval | None:
    """A figure of some columns with its bootstrap interval; None of too few, or where it is not defined."""
    count = len(columns[0])
    if count < FEWEST or math.isnan(value := figure(*columns)):
        return None
    draw = np.random.default_rng(SEED)
    made_B = np.array([figure(*(one[at] for one in columns)) for at in draw.integers(count, size=(RESAMPLES, count))])
    made_B = made_B[~np.isnan(made_B)]
    low, high = np.quantile(made_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high), count)


def _needed(found: Interval | None) -> int | None:
    """Labels for an interval as narrow as wanted: its width falls with the root of their number."""
    if found is None or found.low is None or found.high is None:
        return None
    return math.ceil(found.count * ((found.high - found.low) / 2 / WANTED) ** 2)


@dataclass(frozen=True, slots=True)
class ChoosesLikePeople:
    """A judge that chooses between two answers, beside what people prefer. B is what they prefer."""

    judge: str
    verdicts: PairwiseVerdicts

    @property
    def agreement(self) -> Interval | None:
        """Share of the pairs in which it prefers what people prefer, in percent; a tie counts half."""
        points = {"b": 100.0, "tie": 50.0, "a": 0.0}
        return interval([points[one.outcome] for one in self.verdicts.rows if one.outcome is not None])

    @property
    def first(self) -> Interval | None:
        """Share of its choices that fall on the answer shown first, in percent; 50 without a bias."""
        chosen = [
            said for one in self.verdicts.rows for said in (one.a_first, one.b_first) if said not in (None, "tie")
        ]
        return interval([100.0 * (said == "first") for said in chosen])

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the judge should not be used, each in a clause."""
        found = self.agreement
        if found is None or found.low is None or found.count < FEWEST or found.low > 50:
            return ()
        return (f"it prefers what people prefer no more often than chance ({found.text(0)} %)",)

    def sentence(self) -> str:
        """What is to be known first."""
        found = self.agreement
        if found is None or found.count < FEWEST:
            said = 0 if found is None else found.count
            return f"{self.judge}: {counted(said, 'pair')} with a choice tell nothing; at least {FEWEST} do."
        return f"{self.judge} prefers what people prefer in {found.text(0)} % of {counted(found.count, 'pair')}."

    def lines(self) -> list[str]:
        """Its other figures, each in a line."""
        lines = []
        if self.verdicts.consistency is not None:
            lines.append(f"its choice does not depend on the order in {self.verdicts.consistency:.0%} of the pairs")
        if self.first:
            lines.append(f"{self.first.text(0)} % of its choices fall on the answer shown first (50 without a bias)")
        if self.verdicts.longer is not None:
            lines.append(f"the longer answer won in {self.verdicts.longer:.0%} of the pairs that it decided")
        if self.verdicts.undecided:
            lines.append(f"no choice in {counted(self.verdicts.undecided, 'pair')}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "judge": self.judge,
            "verdict": self.sentence(),
            "problems": list(self.problems),
            "pairs": len(self.verdicts.rows),
            "agreement": found.as_json() if (found := self.agreement) else None,
            "position_consistency": self.verdicts.consistency,
            "chosen_first": first.as_json() if (first := self.first) else None,
            "longer_won": self.verdicts.longer,
            "unscored": {str(one.row): one.reason for one in self.verdicts.rows if one.outcome is None},
        }
