"""Where each row of a data set stands in its files, such as ``rows.jsonl line 13``, kept as runs of rows.

Rows that follow one another in a file are one run, so a file of any size is few of them; where cells of CSV go over
several lines, or blank lines stand between rows, there is one for each break.
"""

from __future__ import annotations

import base64
import zlib
from array import array
from bisect import bisect_right
from typing import Any

import numpy as np

RUN = "q"  # an array of whole numbers of 8 bytes


class Origins:
    """The places of rows by their numbers.

    >>> origins = Origins()
    >>> for row, where in enumerate(["a.jsonl line 1", "a.jsonl line 2", "a.jsonl line 5", "b.csv line 2"]):
    ...     origins.add(row, where)
    >>> origins.of(1), origins.of(2), origins.of(3), origins.of(4)
    ('a.jsonl line 2', 'a.jsonl line 5', 'b.csv line 2', '')
    >>> Origins.from_text(origins.as_text()).of(2)
    'a.jsonl line 5'
    """

    def __init__(self) -> None:
        self._firsts, self._numbers, self._files = array(RUN), array(RUN), array(RUN)  # one entry a run
        self._names: list[str] = []  # what stands before the number: the file's label, and line or row
        self._next, self._number = 0, 0  # the row and the number in its file that would go on with the last run

    def add(self, row: int, where: str) -> None:
        """One more row; they come in order, each of them, also where its place is not known."""
        name, _, digits = where.rpartition(" ")
        name, number = (name, int(digits)) if digits.isdecimal() else ("", self._number)
        if row != self._next or number != self._number or not self._names or name != self._names[-1]:
            if not self._names or name != self._names[-1]:
                self._names.append(name)
            self._firsts.append(row)
            self._numbers.append(number)
            self._files.append(len(self._names) - 1)
        self._next, self._number = row + 1, number + 1

    def of(self, row: int) -> str:
        """The place of a row; empty where it is not known."""
        run = bisect_right(self._firsts, row) - 1
        if run < 0 or row >= self._end(run):
            return ""
        name = self._names[self._files[run]]
        return name and f"{name} {self._numbers[run] + row - self._firsts[run]}"

    def _end(self, run: int) -> int:
        return self._firsts[run + 1] if run + 1 < len(self._firsts) else self._next

    def as_text(self) -> list[Any]:
        """All of it as JSON has it, and small."""
        return [self._names, self._next, *(_packed(runs) for runs in (self._firsts, self._numbers, self._files))]

    @classmethod
    def from_text(cls, kept: Any) -> Origins:
        """What `as_text` gave.

        Raises:
            ValueError: it is something else.
        """
        found = cls()
        try:
            names, last, firsts, numbers, files = kept
            found._names, found._next = [str(name) for name in names], int(last)
            found._firsts, found._numbers, found._files = _unpacked(firsts), _unpacked(numbers), _unpacked(files)
            if not len(found._firsts) == len(found._numbers) == len(found._files):
                raise ValueError("runs of unequal length")
            if any(not 0 <= file < len(found._names) for file in found._files):
                raise ValueError("a file that has no name")
        except (TypeError, zlib.error) as error:
            raise ValueError(str(error)) from error
        return found


def _packed(runs: array[int]) -> str:
    """Numbers that grow by little, as text: differences, packed."""
    steps = np.diff(np.asarray(runs, dtype="<i8"), prepend=0)
    return base64.b64encode(zlib.compress(steps.astype("<i8").tobytes(), 1)).decode()


def _unpacked(text: str) -> array[int]:
    steps = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<i8")
    return array(RUN, np.cumsum(steps, dtype=np.int64).tobytes())
