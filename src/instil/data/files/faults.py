"""Rows that are wrong in themselves: all of a file are named at once, and none of the file is used."""

from __future__ import annotations

from instil.errors import DataError, counted, listed

MOST_KEPT = 10_000  # lines; of more only the number is known


class Faults:
    """What is wrong with the rows of one file."""

    def __init__(self, name: str, what: str) -> None:
        self._name, self._what = name, what
        self._lines: list[str] = []
        self._more = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, row: int, fault: str) -> None:
        """One more, of the row with that number."""
        if len(self._lines) < MOST_KEPT:
            self._lines.append(f"row {row}: {fault}")
        else:
            self._more += 1

    def check(self) -> None:
        """Raise what there is.

        Raises:
            DataError: there is any.
        """
        if self._lines:
            more = f"\n  ... and {counted(self._more, 'fault')} more" if self._more else ""
            raise DataError(f"{self._name}: {self._what} (rows are counted from 0):\n{listed(self._lines)}{more}")
