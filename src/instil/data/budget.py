"""Optimizer steps of so many tokens instead of so many rows, in which rows of like length stand together.

Rows are shuffled, those of a window are sorted by length, and steps are cut from them as long as the tokens fit: so
little is padded, and what attention sets side by side is alike. A row that is longer than the budget makes a step of
its own, so that every row leaves exactly once in an epoch and none can hold up the others. How many steps there are,
and how many tokens each has, is a function of lengths and seed, the same in every epoch; which rows of equal length
change places, and the order of the steps, is drawn anew for each (from `instil.data.permutation.BORDER` rows on the
order of the steps alone).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from instil.data.permutation import Feistel, shuffled

WINDOW = 4096  # rows that are sorted by length together, at least
STEPS_OF_A_WINDOW = 64


class TokenBudget:
    """Which rows make each step.

    Args:
        lengths_R: positions that each row has of its own, of those that are kept.
        tokens: of one step, at most.
        seed: of all orders.
        padded: whether short rows are padded to the longest of the step, which counts; else the sum of lengths does.
        shuffle: whether rows and steps are shuffled.

    >>> budget = TokenBudget(np.array([5, 3, 9, 4, 3, 20]), 10, seed=1)
    >>> sorted(sorted(int(row) for row in budget.rows(0, step)) for step in range(len(budget)))
    [[0], [1, 3, 4], [2], [5]]
    """

    def __init__(
        self, lengths_R: NDArray[np.int32], tokens: int, seed: int, *, padded: bool = False, shuffle: bool = True
    ) -> None:
        self._lengths_R, self._tokens, self._seed, self._shuffle = lengths_R, tokens, seed * 1_000_003, shuffle
        count = len(lengths_R)
        mean = max(float(np.mean(lengths_R)), 1.0)
        self._window = max(WINDOW, round(STEPS_OF_A_WINDOW * tokens / mean))
        base: Sequence[int] = shuffled(count, self._seed + 1_000_002) if shuffle else range(count)
        self._base = base if isinstance(base, Feistel) else np.asarray(base, dtype=np.int64)
        borders = [0]
        self.heaviest, most = 0, -1
        for first in range(0, count, self._window):
            sorted_W = lengths_R[self._of_window(first)].astype(np.int64)
            for start, end in _cut(sorted_W, tokens, padded=padded):
                side_by_side = (end - start) * int(sorted_W[end - 1])
                if side_by_side > most:
                    self.heaviest, most = len(borders) - 1, side_by_side
                borders.append(first + end)
        self._borders = np.array(borders)
        self._epoch: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))
        self._steps: tuple[int, Sequence[int]] = (-1, range(0))

    def __len__(self) -> int:
        """Steps of an epoch."""
        return len(self._borders) - 1

    @property
    def over_long(self) -> NDArray[np.int64]:
        """The rows that are longer than the budget, each a step of its own."""
        return np.flatnonzero(self._lengths_R > self._tokens)

    def rows(self, epoch: int, step: int) -> NDArray[np.int64]:
        """The numbers of a step's rows."""
        if self._shuffle:
            if self._steps[0] != epoch:
                self._steps = epoch, shuffled(len(self), self._seed + epoch)
            step = self._steps[1][step]
        return self._of_step(epoch, step)

    def heaviest_rows(self) -> NDArray[np.int64]:
        """The rows of the step that takes the most memory: its longest row times their number."""
        return self._of_step(0, self.heaviest)

    def _of_step(self, epoch: int, step: int) -> NDArray[np.int64]:
        start, end = int(self._borders[step]), int(self._borders[step + 1])
        if isinstance(self._base, Feistel) or not self._shuffle:
            first = start - start % self._window
            return self._of_window(first)[start - first : end - first]
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._swapped(epoch)
        return self._epoch[1][start:end]

    def _of_window(self, first: int) -> NDArray[np.int64]:
        """The rows of a window as the steps are cut from them: by length."""
        end = min(first + self._window, len(self._lengths_R))
        if isinstance(self._base, Feistel):
            rows_W = self._base.at(np.arange(first, end, dtype=np.uint64))
        else:
            rows_W = self._base[first:end]
        return rows_W[np.argsort(self._lengths_R[rows_W], kind="stable")]

    def _swapped(self, epoch: int) -> NDArray[np.int64]:
        """All rows in the places of the steps, of which those of equal length are dealt out anew."""
        count = len(self._lengths_R)
        places_R = np.concatenate([self._of_window(first) for first in range(0, count, self._window)])
        drawn_R = np.asarray(shuffled(count, self._seed + epoch), dtype=np.int64)
        dealt_R = np.empty_like(places_R)
        by_place = np.argsort(self._lengths_R[places_R], kind="stable")
        dealt_R[by_place] = drawn_R[np.argsort(self._lengths_R[drawn_R], kind="stable")]
        return dealt_R


def _cut(sorted_W: NDArray[np.int64], tokens: int, *, padded: bool) -> Iterator[tuple[int, int]]:
    """Where steps begin and end among rows sorted by length."""
    ends_W = np.concatenate([[0], np.cumsum(sorted_W)])
    start = 0
    while start < len(sorted_W):
        if padded:
            most = max(tokens // max(int(sorted_W[start]), 1), 1)
            some = sorted_W[start : start + most]
            fit = int(np.searchsorted(some * np.arange(1, len(some) + 1), tokens, side="right"))
            end = start + fit
        else:
            end = int(np.searchsorted(ends_W, ends_W[start] + tokens, side="right")) - 1
        end = max(end, start + 1)
        yield start, end
        start = end
