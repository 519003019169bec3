"""Rows as they are, and where each stands: from one file or many, in any form, as often as wanted, a few at a time.

``open_rows`` looks at the beginning of each file and reads nothing else; iterating reads, and holds a row at a time
(but one JSON object that is a whole file). `read_rows` is the list of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from instil.data.files.kinds import DataFile, data_files
from instil.data.files.packing import Entry
from instil.data.files.places import LONG, entries_of
from instil.downloads import progress
from instil.errors import DataError, counted, listed
from instil.screen import Bytes


class RawRow(NamedTuple):
    """One row as it was parsed, and where it stands: ``rows.jsonl line 13``, ``rows.parquet row 12`` (from 0).

    Of rows that may be left out the value can be `instil.data.files.faults.Unreadable`.
    """

    value: Any
    where: str


@dataclass(frozen=True, slots=True)
class RawRows:
    """The rows of one or several files; every iteration reads them anew, and needs no more memory than a row.

    ``files`` are the paths that are read, ``notes`` what the user may want to know of how they were understood;
    ``skip_bad`` as in `open_rows`.
    """

    name: str
    parts: tuple[DataFile, ...]
    notes: tuple[str, ...] = ()
    skip_bad: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The files on disk, each one once."""
        return tuple(dict.fromkeys(part.entry.path for part in self.parts if part.entry.path is not None))

    @property
    def size(self) -> int:
        """Bytes of all files, packed ones as they are."""
        return sum(part.entry.length for part in self.parts)

    def __iter__(self) -> Iterator[RawRow]:
        """The rows in order.

        Raises:
            DataError: while reading, and after the last good row: what is wrong, with file, line or row, and key.
        """
        return self.watched(None)

    def watched(self, show: Bytes | None) -> Iterator[RawRow]:
        """The same; ``show`` is told how many bytes have been read, of how many (see `instil.downloads.progress`)."""
        before = 0
        for part in self.parts:
            watch = _Watch(show, before, self.size) if show is not None else None
            label = part.entry.label
            for value, place in part.rows(watch, skip_bad=self.skip_bad):
                yield RawRow(value, f"{label} {place}")
            before += part.entry.length

    def twice(self) -> Iterable[RawRow]:
        """To iterate over again: a list where there is little to read, else the files, each time with a bar."""
        return list(self) if self.size < LONG else _Anew(self)

    def shown(self) -> Iterator[RawRow]:
        """The same with a bar and the time left on stderr, where there is much to read."""
        if self.size < LONG:
            yield from self
            return
        with progress(f"reading {self.name}") as show:
            yield from self.watched(show)


@dataclass(frozen=True, slots=True)
class _Anew:
    """Rows that are read anew, with a bar, each time they are iterated over."""

    rows: RawRows

    def __iter__(self) -> Iterator[RawRow]:
        return self.rows.shown()


class _Watch:
    """Adds what was read of the files before."""

    def __init__(self, show: Bytes, before: int, total: int) -> None:
        self._show, self._before, self._total = show, before, total

    def __call__(self, read: int) -> None:
        self._show(self._before + read, self._total)


def open_rows(data: str | Path, *, skip_bad: bool = False) -> RawRows:
    """The rows of a data set by name, path, pattern, folder, address or hub id; several with commas between.

    With ``skip_bad`` a row that cannot be read, such as a line that is no JSON, is no reason to refuse its file: in its
    place comes `instil.data.files.faults.Unreadable`, which says why.

    Raises:
        DataError: there is nothing of that name, it cannot be fetched, or is no file of rows.

    >>> next(iter(open_rows("starter"))).where
    'starter row 0'
    """
    entries, notes = entries_of(data, skip_bad=skip_bad)
    return replace(_opened(str(data), entries, notes), skip_bad=skip_bad)


def read_rows(data: str | Path) -> list[Any]:
    """The parsed rows of a data set, as they are; see `open_rows`.

    Raises:
        DataError: as `open_rows`, or what is wrong in a file, with its line or row.
    """
    return [row.value for row in open_rows(data).shown()]


def parse_rows(raw: bytes, name: str, *, skip_bad: bool = False) -> list[Any]:
    """The rows in the bytes of one file, whose name may tell what its content leaves open; ``skip_bad`` as `open_rows`.

    Raises:
        DataError: as `read_rows`.

    >>> parse_rows(b"instruction,output\\nSay hi.,Hi.\\n", "rows.csv")
    [{'instruction': 'Say hi.', 'output': 'Hi.'}]
    """
    found = _opened(name, [Entry(name, name, lambda: BytesIO(raw), len(raw))], [])
    return [row.value for row in replace(found, skip_bad=skip_bad)]


def _opened(name: str, entries: list[Entry], notes: list[str]) -> RawRows:
    parts: list[DataFile] = []
    faults: list[DataError] = []
    for entry in entries:
        try:
            found, said = data_files(entry)
        except DataError as error:
            faults.append(error)
            continue
        parts += found
        notes = [*notes, *said, *(note for one in found for note in one.notes)]
    if faults:
        if len(faults) == 1:
            raise faults[0]
        said = [str(fault).replace("\n", " ") for fault in faults]
        raise DataError(
            f"{name}: {len(faults)} of its {counted(len(entries), 'file')} cannot be read:\n{listed(said)}"
        ) from faults[0]
    return RawRows(name, tuple(parts), tuple(notes))
