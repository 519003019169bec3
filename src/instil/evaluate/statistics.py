"""How sure a mean is, and whether two sets of scores of the same rows differ.

Everything is drawn from a fixed seed, so that the same scores always give the same figures.

Sources: percentile bootstrap, Efron and Tibshirani 1993, chapter 13; the paired test by exchange of signs, Fisher
1935; paired differences and the smallest difference that a test set can show, Miller 2024 (arXiv 2411.00640).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 123
RESAMPLES = 10_000
OF_MANY = 2_000  # resamples of more than a thousand values, whose interval is narrow anyway
FLIPS = 20_000
ALL_SIGNS_UP_TO = 14  # differences whose 2**n signs are all tried
AT_ONCE = 4_000_000  # numbers drawn at once
LEVEL = 0.95
POWER = 0.80
FEWEST = 6  # differences of which `permutation_p` can be below 5 %: that of n has at least 2 / 2**n


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of ``count`` values, and between what it lies with 95 % confidence (both ends None below two values)."""

    mean: float
    low: float | None
    high: float | None
    count: int

    def text(self, digits: int = 1) -> str:
        """As people write it.

        >>> Interval(47.68, 41.2, 54.4, 110).text()
        '47.7 [41.2, 54.4]'
        """
        if self.low is None or self.high is None:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def interval(values: Sequence[float]) -> Interval | None:
    """Mean and bootstrap interval; None of no values.

    >>> interval([1.0, 1.0, 1.0])
    Interval(mean=1.0, low=1.0, high=1.0, count=3)
    """
    given = np.asarray(values, dtype=np.float64)
    if not given.size:
        return None
    if given.size == 1:
        return Interval(float(given[0]), None, None, 1)
    means = _resampled_means(given)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(given.mean()), float(low), float(high), given.size)


def _resampled_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    draw = np.random.default_rng(SEED)
    rows, count = max(1, AT_ONCE // values.size), RESAMPLES if values.size <= 1000 else OF_MANY
    return np.concatenate(
        [
            values[draw.integers(values.size, size=(min(rows, count - start), values.size))].mean(axis=1)
            for start in range(0, count, rows)
        ]
    )


def permutation_p(differences: Sequence[float]) -> float:
    """How often a mean as far from zero comes about when the sign of each difference is a matter of chance.

    Two-sided; all signs are tried where they are few, else a random 20,000 of them.

    >>> permutation_p([1.0] * 5)  # 2 of 32
    0.0625
    >>> permutation_p([0.0, 0.0])
    1.0
    """
    given = np.asarray(differences, dtype=np.float64)
    given = given[given != 0]
    if not given.size:
        return 1.0
    limit = abs(given.sum()) - 1e-9 * np.abs(given).sum()  # equal sums may differ by rounding
    if given.size <= ALL_SIGNS_UP_TO:
        bits = np.arange(2**given.size)[:, None] >> np.arange(given.size)
        return float((np.abs((1 - 2 * (bits & 1)) @ given) >= limit).mean())
    draw = np.random.default_rng(SEED)
    rows, found = max(1, AT_ONCE // given.size), 0
    for start in range(0, FLIPS, rows):
        signs = 1 - 2 * draw.integers(2, size=(min(rows, FLIPS - start), given.size), dtype=np.int8)
        found += int((np.abs(signs @ given) >= limit).sum())
    return (found + 1) / (FLIPS + 1)


def differing(differences: Sequence[float]) -> int:
    """How many rows differ at all. The others take no part in `permutation_p`: their sign is no matter of chance."""
    return sum(gap != 0 for gap in differences)


def smallest_visible(differences: Sequence[float]) -> float | None:
    """The smallest true mean difference that as many rows as these would show in four of five trials (at 5 %).

    None where fewer than six rows differ: however large their differences, the test cannot tell them from chance.
    """
    given = np.asarray(differences, dtype=np.float64)
    if differing(differences) < FEWEST:
        return None
    normal = NormalDist()
    reach = normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)
    return float(reach * given.std(ddof=1) / np.sqrt(given.size))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for there being several of them (Holm 1979): each may be read as if it were the only one.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for place, at in enumerate(sorted(range(len(ps)), key=lambda at: ps[at])):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[at]))
        adjusted[at] = largest
    return adjusted


def spread(values: Sequence[float]) -> float:
    """Standard deviation (n - 1); 0 below two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
