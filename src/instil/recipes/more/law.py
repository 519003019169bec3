"""A power law through few points, with its uncertainty: how an error falls with the number of rows.

``error = a * rows ** -b`` (Hestness et al. 2017, arXiv 1712.00409; for tuning Zhang et al. 2024, arXiv 2402.17193), a
line in logarithms. What is uncertain about it is which rows were held out and how each training happened to answer
them: rows are drawn again with replacement, the same ones at every size, and the line is laid anew (a paired
bootstrap). Where two trainings of one size differ by more than their rows explain, that much is added to every point.

Shape suffixes: P points · R held-out rows · B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instil.evaluate.statistics import LEVEL, SEED

Floats = NDArray[np.float64]

RESAMPLES = 4_000
SMALLEST = 0.5  # points of error: less has no logarithm to speak of


@dataclass(frozen=True, slots=True)
class Law:
    """What a law says of twice as many rows.

    Attributes:
        sizes: training rows of each point.
        scores: mean scores at these sizes, 0 to 100.
        exponent: b of the law: how fast the error falls.
        gain: points that twice the most rows would bring.
        low: the lower end of the 95 % interval of the gain.
        high: its upper end.
        rows: held-out rows.
        curve: rows, and the score that the law has there with its interval, for the picture.
    """

    sizes: tuple[int, ...]
    scores: tuple[float, ...]
    exponent: float
    gain: float
    low: float
    high: float
    rows: int
    curve: tuple[tuple[float, float, float, float], ...]

    @property
    def outcome(self) -> str:
        """Whether more rows would help, as far as this tells."""
        if self.low > 0:
            return "helps"
        return "hurts" if self.high < 0 else "cannot tell"

    def sentence(self) -> str:
        """What twice as many rows would bring."""
        twice = f"twice as many rows ({2 * max(self.sizes):,})"
        between = f"{self.low:+.1f} to {self.high:+.1f}"
        if self.outcome == "cannot tell":
            return f"What {twice} would bring cannot be told from {self.rows:,} held-out rows: {between} points."
        figures = f"{self.gain:+.1f} points (95 % interval {between})"
        if self.outcome == "helps":
            return f"T{twice[1:]} would bring about {figures}."
        return f"T{twice[1:]} of this kind would not help: {figures}."

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "verdict": self.sentence(),
            "outcome": self.outcome,
            "sizes": list(self.sizes),
            "scores": list(self.scores),
            "exponent": self.exponent,
            "gain_of_twice_as_many": self.gain,
            "low": self.low,
            "high": self.high,
            "held_out_rows": self.rows,
        }


def law_of(sizes: Sequence[int], scores: Sequence[Sequence[float]]) -> Law:
    """The law through scores of the same held-out rows after training on so many rows.

    Args:
        sizes: training rows of each training; one may come twice.
        scores: of each held-out row, 0 to 100, after each of them.

    Raises:
        ValueError: there are no two different sizes, or no rows.
    """
    size_P, score_PR = np.array(sizes, dtype=np.float64), np.array(scores, dtype=np.float64)
    if len(set(sizes)) < 2 or score_PR.ndim != 2 or not score_PR.shape[1]:
        raise ValueError("a law wants scores after at least two sizes")
    rows = score_PR.shape[1]
    draw = np.random.default_rng(SEED)
    noise = common_noise(size_P, score_PR)
    mean_BP = np.stack([score_PR[:, at].mean(axis=1) for at in draw.integers(rows, size=(RESAMPLES, rows))])
    mean_BP = mean_BP + draw.normal(0.0, noise, mean_BP.shape) if noise else mean_BP
    most = size_P.max()
    at_K = np.geomspace(size_P.min(), 2 * most, 40)
    exact_K, drawn_BK = _fitted(size_P, score_PR.mean(axis=1)[None], at_K)[0], _fitted(size_P, mean_BP, at_K)
    ends = np.array([most, 2 * most])
    gain = float(np.diff(_fitted(size_P, score_PR.mean(axis=1)[None], ends))[0, 0])
    gain_B = np.diff(_fitted(size_P, mean_BP, ends))[:, 0]
    quantiles = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(gain_B, quantiles)
    low_K, high_K = np.quantile(drawn_BK, quantiles, axis=0)
    return Law(
        sizes=tuple(int(size) for size in size_P),
        scores=tuple(score_PR.mean(axis=1).tolist()),
        exponent=float(_line(size_P, score_PR.mean(axis=1)[None])[1][0]),
        gain=gain,
        low=float(low),
        high=float(high),
        rows=rows,
        curve=tuple(zip(at_K.tolist(), exact_K.tolist(), low_K.tolist(), high_K.tolist(), strict=True)),
    )


def _line(size_P: Floats, mean_BP: Floats) -> tuple[Floats, Floats]:
    """Logarithm of a, and b, of ``100 - score = a * rows ** -b``, by least squares in logarithms: each [B]."""
    x_P = np.log(size_P)
    y_BP = np.log(np.maximum(100.0 - mean_BP, SMALLEST))
    middle = x_P.mean()
    slope_B = ((x_P - middle) * (y_BP - y_BP.mean(axis=1, keepdims=True))).sum(axis=1) / ((x_P - middle) ** 2).sum()
    return y_BP.mean(axis=1) - slope_B * middle, -slope_B


def _fitted(size_P: Floats, mean_BP: Floats, at_K: Floats) -> Floats:
    """Scores that the law of each resample has at these sizes, [B, K]."""
    height_B, exponent_B = _line(size_P, mean_BP)
    fitted: Floats = 100.0 - np.exp(height_B[:, None] - exponent_B[:, None] * np.log(at_K))
    return fitted


def common_noise(size_P: Floats, score_PR: Floats) -> float:
    """Standard deviation, in points, by which trainings of one size differ beyond what their rows explain.

    Two trainings answer each row otherwise, which resampling rows accounts for; a shift that all rows share it does not
    see. The shift is what the squared difference of two means has above the error of that difference.
    """
    shifts = []
    for size in np.unique(size_P):
        same_NR = score_PR[size_P == size]
        for one in range(len(same_NR)):
            for other in range(one):
                gap_R = same_NR[one] - same_NR[other]
                of_rows = gap_R.var(ddof=1) / len(gap_R) if len(gap_R) > 1 else 0.0
                shifts.append((gap_R.mean() ** 2 - of_rows) / 2)
    return float(np.sqrt(max(0.0, np.mean(shifts)))) if shifts else 0.0
