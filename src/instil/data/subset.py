"""Some rows of many, by their numbers among them: nothing is copied, and a row is made when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

Row_co = TypeVar("Row_co", covariant=True)
Numbers = NDArray[np.int64] | range


class Lazy(Sequence[Row_co], Generic[Row_co]):
    """Rows that are made when they are asked for, so that nobody is to take them all into a list."""

    def subset(self, numbers: Numbers) -> Subset[Row_co]:
        """Those of these numbers, in their order."""
        return Subset(self, numbers)

    def some(self, numbers: Numbers) -> Iterator[Row_co]:
        """The same one after another, where many are wanted: quickest of rows that stand together."""
        return (self[int(number)] for number in numbers)


class Subset(Lazy[Row_co]):
    """Rows of a sequence by their numbers in it.

    >>> rows = Subset("abcdef", np.array([4, 0, 2]))
    >>> len(rows), rows[1], list(rows[1:])
    (3, 'a', ['a', 'c'])
    """

    def __init__(self, rows: Sequence[Row_co], numbers: Numbers) -> None:
        self.rows, self.numbers = rows, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, at: int) -> Row_co: ...
    @overload
    def __getitem__(self, at: slice) -> Subset[Row_co]: ...
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return Subset(self.rows, self.numbers[at])
        return self.rows[int(self.numbers[at])]

    def __iter__(self) -> Iterator[Row_co]:
        return some(self.rows, self.numbers)

    def subset(self, numbers: Numbers) -> Subset[Row_co]:
        return Subset(self.rows, self._own(numbers))

    def some(self, numbers: Numbers) -> Iterator[Row_co]:
        return some(self.rows, self._own(numbers))

    def _own(self, numbers: Numbers) -> Numbers:
        """Numbers among the rows below, of numbers among these."""
        own = self.numbers
        if not isinstance(own, range):
            return np.asarray(own)[np.asarray(numbers, dtype=np.int64)]
        if isinstance(numbers, range):
            return range(
                own.start + own.step * numbers.start, own.start + own.step * numbers.stop, own.step * numbers.step
            )
        return own.start + own.step * np.asarray(numbers, dtype=np.int64)


def some(rows: Sequence[Row_co], numbers: Numbers) -> Iterator[Row_co]:
    """Rows by their numbers, one after another."""
    return rows.some(numbers) if isinstance(rows, Lazy) else (rows[int(number)] for number in numbers)


def spread(rows: Sequence[Row_co], most: int) -> Sequence[Row_co]:
    """At most so many of the rows, evenly spaced among all; 0 means all.

    >>> spread("abcdefgh", 3), spread("abc", 3), spread("abc", 0)
    (('a', 'c', 'f'), 'abc', 'abc')
    """
    count = len(rows)
    return rows if not most or count <= most else chosen(rows, np.arange(most, dtype=np.int64) * count // most)


def chosen(rows: Sequence[Row_co], numbers: Numbers) -> Sequence[Row_co]:
    """Rows by their numbers: a view of rows that are made when they are asked for, of others a tuple."""
    if isinstance(rows, Lazy):
        return rows.subset(numbers)
    return tuple(rows[int(number)] for number in numbers)


class Joined(Lazy[Row_co]):
    """Rows of one sequence after those of another; neither is copied.

    >>> both = Joined("abc", "de")
    >>> len(both), both[3], list(both[1:4])
    (5, 'd', ['b', 'c', 'd'])
    """

    def __init__(self, first: Sequence[Row_co], second: Sequence[Row_co]) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @overload
    def __getitem__(self, at: int) -> Row_co: ...
    @overload
    def __getitem__(self, at: slice) -> Subset[Row_co]: ...
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return self.subset(range(len(self))[at])
        number = range(len(self))[at]
        return self.first[number] if number < len(self.first) else self.second[number - len(self.first)]
