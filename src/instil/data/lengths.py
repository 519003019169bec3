"""How long rows are and how much of them is trained on, as columns: what is asked of all rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from instil.data.subset import Subset
from instil.records import Encoded


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of each row its ids, its targets, where the first of them stands, and whether the last id is one.

    The first id is never a target, since nothing comes before it. ``first_target_R`` is 0 where there is none.
    ``rows`` are what was measured, to look at those that are cut.
    """

    rows: Sequence[Encoded]
    ids_R: NDArray[np.int32]
    targets_R: NDArray[np.int32]
    first_target_R: NDArray[np.int32]
    row_R: NDArray[np.int64]
    end_R: NDArray[np.bool_]

    def some(self, rows: Sequence[Encoded], at_R: slice | NDArray[np.int64]) -> Lengths:
        """Those of some of the rows."""
        return Lengths(
            rows, self.ids_R[at_R], self.targets_R[at_R], self.first_target_R[at_R], self.row_R[at_R], self.end_R[at_R]
        )

    def has_target_R(self, max_length: int) -> NDArray[np.bool_]:
        """Whether anything is left to predict within ``max_length`` positions."""
        return (self.first_target_R > 0) & (self.first_target_R <= max_length)

    def cut_R(self, max_length: int) -> NDArray[np.bool_]:
        """Whether a row is longer; one of n ids needs n - 1 positions, since its last is only ever a target."""
        return self.ids_R - 1 > max_length

    def trained_R(self, max_length: int) -> NDArray[np.int32]:
        """How many targets lie within ``max_length`` positions."""
        trained_R = np.array(self.targets_R)
        cut_R = self.cut_R(max_length)
        to_the_end_R = self.targets_R == self.ids_R - self.first_target_R  # one answer: nothing comes after it
        within_R = np.maximum(max_length + 1 - self.first_target_R, 0)
        trained_R[cut_R & to_the_end_R] = within_R[cut_R & to_the_end_R]
        for number in np.flatnonzero(cut_R & ~to_the_end_R & (self.targets_R > 0)):
            trained_R[number] = sum(self.rows[int(number)].trained[1 : max_length + 1])
        return trained_R


@runtime_checkable
class Measured(Protocol):
    """Rows whose lengths are known."""

    @property
    def lengths(self) -> Lengths:
        """Their columns."""


def lengths_of(rows: Sequence[Encoded]) -> Lengths:
    """The columns of rows; of those in a store they are there already.

    >>> lengths = lengths_of([Encoded((5, 6, 7), (True, False, True)), Encoded((5,), (True,))])
    >>> lengths.targets_R.tolist(), lengths.has_target_R(1).tolist(), lengths.has_target_R(2).tolist()
    ([1, 0], [False, False], [True, False])
    """
    if isinstance(rows, Measured):
        return rows.lengths
    if isinstance(rows, Subset) and isinstance(rows.rows, Measured):
        numbers, known = rows.numbers, rows.rows.lengths
        if isinstance(numbers, range) and numbers.step == 1:
            part = slice(numbers.start, numbers.stop)
            return known.some(rows, part)
        return known.some(rows, np.asarray(numbers, dtype=np.int64))
    ids_R = np.fromiter((len(row.ids) for row in rows), np.int32, len(rows))
    row_R = np.fromiter((row.row for row in rows), np.int64, len(rows))
    ends_R = np.cumsum(ids_R, dtype=np.int64)
    starts_R = ends_R - ids_R
    trained_N = np.frombuffer(bytearray().join([bytes(row.trained) for row in rows]), bool)
    before_N = np.concatenate([[0], np.cumsum(trained_N)])  # of each id, how many are trained before it
    first_R = before_N[np.minimum(starts_R + 1, ends_R)]  # and before the second one of each row
    targets_R = before_N[ends_R] - first_R
    first_target_R = np.zeros(len(rows), np.int32)
    some_R = targets_R > 0
    first_target_R[some_R] = np.flatnonzero(trained_N)[first_R[some_R]] - starts_R[some_R]
    end_R = ids_R > 1
    end_R[end_R] = trained_N[ends_R[end_R] - 1]
    return Lengths(rows, ids_R, targets_R.astype(np.int32), first_target_R, row_R, end_R)
