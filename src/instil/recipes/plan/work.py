"""Work in passes and positions, and the pace that explains how long some of it took."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples spread evenly between 0 and 1
WARM_UP = 1  # steps whose time is not typical: memory is new, and AdamW's moments are made


@dataclass(frozen=True, slots=True)
class Work:
    """So many passes through the model, over so many positions in all.

    >>> Work(1, 100) + 2 * Work(1, 10)
    Work(passes=3, positions=120)
    """

    passes: float = 0
    positions: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.passes + other.passes, self.positions + other.positions)

    def __rmul__(self, times: float) -> Work:
        return Work(times * self.passes, times * self.positions)


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds for each pass and for each position.

    >>> Pace(1.0, 0.01).seconds(Work(2, 100))
    3.0
    """

    a_pass: float
    a_position: float

    def seconds(self, work: Work) -> float:
        """How long the work takes."""
        return self.a_pass * work.passes + self.a_position * work.positions


def pace_of(timed: Sequence[tuple[Work, float]]) -> Pace:
    """The pace that explains timed pieces of work best (least squares of relative errors, nothing negative).

    >>> pace = pace_of([(Work(1, 100), 2.0), (Work(1, 300), 4.0)])
    >>> round(pace.a_pass, 9), round(pace.a_position, 9)
    (1.0, 0.01)
    """
    kept = [(work, seconds) for work, seconds in timed if seconds > 0 and work.positions > 0]
    if not kept:
        return Pace(0.0, 0.0)
    seconds_M = np.array([seconds for _, seconds in kept])
    work_M2 = np.array([[work.passes, work.positions] for work, _ in kept]) / seconds_M[:, None]
    found = np.zeros(2)
    if len(kept) > 1:
        found = np.linalg.lstsq(work_M2, np.ones(len(kept)), rcond=None)[0]
    if len(kept) == 1 or found.min() < 0:  # one of both explains it all, better the positions
        found = np.array([0.0, work_M2[:, 1].sum() / (work_M2[:, 1] ** 2).sum()])
    return Pace(float(found[0]), float(found[1]))


def answering(prompts: Sequence[int], answers: Sequence[float], batch_size: int) -> Work:
    """The work of answering prompts of so many tokens with answers of so many, as `generate` goes about it."""
    slots = [0.0] * max(min(batch_size, len(prompts)), 1)  # when each is free for the next row
    for _, said in sorted(zip(prompts, answers, strict=True), key=lambda row: -row[0]):
        heapq.heapreplace(slots, slots[0] + said)
    return Work(1 + max(slots), sum(prompts) + sum(answers)) if prompts else Work()


def work_of_sizes(sizes: Iterable[int]) -> Work:
    """The work of passes over so many positions each."""
    found = list(sizes)
    return Work(len(found), sum(found))


def guessed_lengths(ended: int, tokens: int, limit: int, count: int) -> list[float]:
    """Lengths of so many answers, if of some others so many had ended within so many tokens in all.

    Each token is taken to be the last with the same chance; the lengths are evenly spread quantiles of what
    follows, in no order, cut at a limit.

    >>> guessed_lengths(0, 100, 256, 2)
    [256.0, 256.0]
    >>> [round(length) for length in guessed_lengths(10, 100, 256, 3)]
    [7, 1, 13]
    """
    chance = ended / tokens if tokens else 0.0
    if not chance:
        return [float(limit)] * count
    if chance == 1:
        return [1.0] * count
    shares = [(0.5 + GOLDEN * row) % 1 for row in range(count)]
    return [min(max(math.log(1 - share) / math.log(1 - chance), 1.0), float(limit)) for share in shares]
