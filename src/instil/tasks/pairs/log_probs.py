"""What a reference model says of pairs: one number for each scored id, one pair's after another's.

Of pairs in a store the numbers lie in a file without a name, which is gone when the process is; of others in memory.

Shape suffixes: R pairs · S sides of a pair, two or, with those of others, four.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instil.data.store.build import store_home
from instil.data.subset import Lazy
from instil.errors import DataError
from instil.records import EncodedPair
from instil.tasks.pairs.lengths import pair_lengths
from instil.tasks.pairs.views import Wrapped

Sides = tuple[tuple[float, ...], ...]


class Referenced(Wrapped):
    """Pairs with what is known of the reference model's log-probabilities (`EncodedPair.reference`).

    Args:
        pairs: without it.
        max_length: positions of a row, within which ids are scored.
        asked_R: the numbers of those that something may become known of.

    Raises:
        DataError: there is no room for the numbers.
    """

    def __init__(self, pairs: Sequence[EncodedPair], max_length: int, asked_R: NDArray[np.int64]) -> None:
        super().__init__(pairs)
        lengths = pair_lengths(pairs)
        counts = [*lengths.scored_R(max_length), *(lengths.other.scored_R(max_length) if lengths.other else ())]
        self._counts_SR = [count_R.astype(np.int32) for count_R in counts]
        room_R = np.zeros(len(pairs), np.int64)
        room_R[asked_R] = sum(count_R[asked_R] for count_R in self._counts_SR)
        self._ends_R = np.cumsum(room_R)
        self._known_R = np.zeros(len(pairs), bool)
        total = int(self._ends_R[-1]) if len(pairs) else 0
        self._numbers = _InFile(total) if isinstance(pairs, Lazy) else _InMemory(total)

    def put(self, at: int, sides: Sides) -> None:
        """What the reference says of the sides of one pair.

        Raises:
            DataError: it cannot be written.
        """
        assert tuple(map(len, sides)) == self._sizes(at), "one number for each scored id"
        first = int(self._ends_R[at]) - sum(map(len, sides))
        self._numbers.put(first, np.array([value for side in sides for value in side], np.float64))
        self._known_R[at] = True

    def one(self, at: int) -> EncodedPair:
        pair: EncodedPair = self.pairs[at]
        if not self._known_R[at]:
            return pair
        sizes = self._sizes(at)
        values = self._numbers.some(int(self._ends_R[at]) - sum(sizes), sum(sizes)).tolist()
        borders = np.cumsum([0, *sizes]).tolist()
        sides = [tuple(values[first:end]) for first, end in itertools.pairwise(borders)]
        other = replace(pair.other, reference=(sides[2], sides[3])) if pair.other is not None else None
        return replace(pair, reference=(sides[0], sides[1]), other=other)

    def _sizes(self, at: int) -> tuple[int, ...]:
        return tuple(int(count_R[at]) for count_R in self._counts_SR)


class _InMemory:
    """So many numbers."""

    def __init__(self, count: int) -> None:
        self._values: NDArray[np.float64] = np.zeros(count)

    def put(self, first: int, values: NDArray[np.float64]) -> None:
        self._values[first : first + len(values)] = values

    def some(self, first: int, count: int) -> NDArray[np.float64]:
        return self._values[first : first + count]


class _InFile:
    """The same in a file beside the stores, the room for which is taken at once.

    It is read and written rather than mapped, so that none of it counts as this process's memory, and a full disk is
    an error and no signal.
    """

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        try:
            store_home().mkdir(parents=True, exist_ok=True)
            self._file: Any = TemporaryFile(dir=store_home(), buffering=0)  # noqa: SIM115 (as long as we are)
            weakref.finalize(self, self._file.close)
            if count and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, 8 * count)
        except OSError as error:
            raise _no_room(8 * count, error) from error

    def put(self, first: int, values: NDArray[np.float64]) -> None:
        try:
            with self._lock:
                self._file.seek(8 * first)
                self._file.write(values.tobytes())
        except OSError as error:
            raise _no_room(values.nbytes, error) from error

    def some(self, first: int, count: int) -> NDArray[np.float64]:
        with self._lock:
            self._file.seek(8 * first)
            return np.frombuffer(self._file.read(8 * count), np.float64)


def _no_room(size: int, error: OSError) -> DataError:
    return DataError(
        f"{store_home()}: {size:,} bytes of the reference's log-probabilities cannot be written: "
        f"{error.strerror or error}; INSTIL_HOME names another folder to keep them in"
    )
