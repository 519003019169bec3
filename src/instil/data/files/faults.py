"""Rows that are wrong in themselves: all of a file are named at once, and none of the file is used.

Or each is passed on as `Unreadable`, for the one who reads the rows to leave out and to name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from instil.errors import DataError, UnreadableRows, counted, listed

MOST_KEPT = 10_000  # lines; of more only the number is known


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What stands in the place of a row that cannot be read: why."""

    reason: str


@contextmanager
def may_be_left_out(offered: bool) -> Iterator[None]:
    """While rows are read: what is said of rows that cannot be ends with the setting that leaves them out, if offered.

    Raises:
        DataError: as what is read.
    """
    try:
        yield
    except UnreadableRows as error:
        if not offered:
            raise
        said = str(error)
        one = " Mend it" if said.endswith("?") else "; mend it"
        what = "\nmend them, or leave them out" if "\n" in said else f"{one}, or leave it out"
        raise DataError(f"{error}{what} with --set data.skip_bad=true") from error


class Faults:
    """What is wrong with the rows of one file.

    Args:
        name: the file's.
        what: is wrong with such rows.
        skip_bad: whether they are passed on as `Unreadable`.
    """

    def __init__(self, name: str, what: str, *, skip_bad: bool = False) -> None:
        self._name, self._what, self._skip_bad = name, what, skip_bad
        self._lines: list[str] = []
        self._more = 0
        self._bad = 0  # rows

    def __bool__(self) -> bool:
        return bool(self._lines)

    def row(self, row: int, value: Any, found: Sequence[str], place: str = "") -> Any:
        """A row's value, or what stands in its place; ``place`` says more of it than its number does."""
        if not found:
            return value
        self._bad += 1
        if self._skip_bad:
            return Unreadable("; ".join(found))
        for fault in found:
            self.add(row, fault + place)
        return value

    def add(self, row: int, fault: str) -> None:
        """One more, of the row with that number."""
        if len(self._lines) < MOST_KEPT:
            self._lines.append(f"row {row}: {fault}")
        else:
            self._more += 1

    def check(self, rows: int) -> None:
        """Raise what there is of so many rows.

        Raises:
            DataError: there is any; `UnreadableRows` where good rows are left.
        """
        if self._lines:
            more = f"\n  ... and {counted(self._more, 'fault')} more" if self._more else ""
            said = f"{self._name}: {self._what} (rows are counted from 0):\n{listed(self._lines)}{more}"
            raise UnreadableRows(said) if self._bad < rows else DataError(said)
