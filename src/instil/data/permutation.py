"""A shuffled order that is computed instead of kept: which row stands at a position, and nothing else.

Few rows are shuffled by torch's ``randperm``, as ever. From `BORDER` rows on the order is a Feistel network (Luby and
Rackoff, 1988) over pairs of digits, which is a bijection whatever its round function; the few values beyond the
last row are sent through it again until they fall among the rows (cycle walking, Black and Rogaway, 2002). So any
stretch of an epoch is had by itself, and nothing grows with the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

BORDER = 2**20  # rows from which on an order is computed; part of what a seed means, so not to be changed
ROUNDS = 6
AT_ONCE = 2**16  # positions computed together


class Feistel(Sequence[int]):
    """The numbers below ``count`` in an order that is a function of the seed alone.

    >>> order = Feistel(10, seed=1)
    >>> sorted(order) == list(range(10)), order[3:5] == [order[3], order[4]]
    (True, True)
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._low = np.uint64(max(1, math.isqrt(max(count - 1, 0)) + 1))  # digits: a number is high * low + low digit
        self._high = np.uint64(-(-count // int(self._low)) or 1)
        with np.errstate(over="ignore"):
            self._keys = _mixed(np.uint64(seed) * np.uint64(ROUNDS + 1) + np.arange(ROUNDS, dtype=np.uint64))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> list[int]: ...
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            found: list[int] = self.at(np.arange(*at.indices(self._count), dtype=np.uint64)).tolist()
            return found
        if not -self._count <= at < self._count:
            raise IndexError(at)
        return int(self.at(np.array([at % self._count], dtype=np.uint64))[0])

    def __iter__(self) -> Iterator[int]:
        for first in range(0, self._count, AT_ONCE):
            yield from self[first : first + AT_ONCE]

    def at(self, positions_N: NDArray[np.uint64]) -> NDArray[np.int64]:
        """What stands at these positions."""
        found_N = self._once(positions_N)
        while (beyond := np.flatnonzero(found_N >= self._count)).size:
            found_N[beyond] = self._once(found_N[beyond])
        return found_N.astype(np.int64)

    def _once(self, numbers_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
        high_N, low_N = np.divmod(numbers_N, self._low)
        for number, key in enumerate(self._keys):
            if number % 2:
                low_N = (low_N + _mixed(high_N ^ key) % self._low) % self._low
            else:
                high_N = (high_N + _mixed(low_N ^ key) % self._high) % self._high
        found_N: NDArray[np.uint64] = high_N * self._low + low_N
        return found_N


def _mixed(numbers_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Numbers whose every bit depends on all of theirs (splitmix64's finaliser, Steele and others, 2014)."""
    with np.errstate(over="ignore"):
        mixed_N = numbers_N + np.uint64(0x9E3779B97F4A7C15)
        mixed_N = (mixed_N ^ (mixed_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed_N = (mixed_N ^ (mixed_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed_N ^ (mixed_N >> np.uint64(31))


def shuffled(count: int, seed: int) -> Sequence[int]:
    """The numbers below ``count`` in the order of this seed: a list where there are few, else one that is computed."""
    if count >= BORDER:
        return Feistel(count, seed)
    found: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return found


def drawn_by(count: int) -> str:
    """The name of the way in which so many rows are shuffled, for what is written down of a run."""
    return f"feistel-{ROUNDS}" if count >= BORDER else "randperm"
