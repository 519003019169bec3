"""The rows of a source: as they are where there are few, in a store where there are many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from instil.data.shapes.origins import Origins
from instil.data.shapes.reading import Rejected
from instil.data.sources import Source
from instil.data.store.build import key_of, manifest_of, store_home, stored_examples
from instil.data.store.examples import ExampleStore
from instil.data.store.shards import INSTALL, has_arrow, is_complete
from instil.errors import DataError, counted
from instil.files import json_object_or_empty, sha256_of, write_json
from instil.records import Example, Pair
from instil.screen import Screen

MANY = 50_000  # rows from which on they are kept in a store


class Reading(Protocol):
    """Rows that are read one after another."""

    @property
    def name(self) -> str:
        """Where they come from."""

    @property
    def said(self) -> tuple[str, ...]:
        """What is to be said of the files, by their names: the first of the source's notes."""

    @property
    def origins(self) -> Origins:
        """Where each row stands in its files."""

    def __len__(self) -> int:
        """How many there are, or could be."""

    def __iter__(self) -> Iterator[Example] | Iterator[Pair]:
        """The examples, or the pairs, from the first."""

    def source(self, rows: Sequence[Any], /) -> Source:
        """After the last of them: a source of these, with all that is to be known of them."""

    def key(self) -> str:
        """A hash of the rows, for those that are in no file."""


def stored(read: Callable[[], Reading], screen: Screen, *, files: Sequence[Path] = (), **how: object) -> Source:
    """A source whose examples lie in a store, if they are many; one that was stored before is not read again.

    Of pairs in a store the source has what they are as examples (`instil.data.store.pairs.PairStore` has all of it).

    Args:
        read: opens the rows.
        screen: where progress is shown.
        files: what is read: known again by place, size and times, or else by content; none for rows in memory.
        how: what else shapes the rows, as JSON has it.

    Raises:
        UserError: they cannot be read, or the store not be written.
    """
    known = _known(files, how) if files and has_arrow() else None
    if known:
        found = json_object_or_empty(known)
        folder = store_home() / str(found.get("rows", "-"))
        with suppress(ValueError):  # of an earlier version, or damaged: the rows are read again
            origins = Origins.from_text(found.get("origins"))
            if is_complete(folder):
                return _source(ExampleStore(folder), str(found.get("name", "")), found.get("notes", ()), origins)
    rows = read()
    if len(rows) < MANY:
        return rows.source(tuple(rows))
    if not has_arrow():
        source = rows.source(tuple(rows))
        note = (
            f"{counted(len(source), 'row')} and their ids are held in memory, and encoded anew each time; with pyarrow "
            f"they are kept on disk: {INSTALL}"
        )
        return replace(source, notes=(*source.notes, note))
    named = bool(how.get("skip_bad"))  # then rows that are left out are told of by their files' names
    content = [f"{file.name} {sha256_of(file)}" if named else sha256_of(file) for file in files] or rows.key()
    key = key_of(content=content, how=how)

    def as_hashed() -> Iterator[Any]:
        yield from rows
        if known and _known(files, how) != known:  # what was stored is not what the key is a hash of
            for file in (store_home() / f"rows-{key}").glob("*.arrow"):
                file.unlink(missing_ok=True)
            raise DataError(f"{rows.name}: has changed while it was read; try again once it is written")

    examples = stored_examples(key, as_hashed, lambda: _about(rows.source(()), len(rows.said)), screen, len(rows))
    if known:
        said: dict[str, object] = {"rows": examples.folder.name, "name": rows.name, "notes": list(rows.said)}
        said |= {"files": [str(file) for file in files], "origins": rows.origins.as_text()}
        with suppress(OSError):  # then they are read again next time
            known.parent.mkdir(parents=True, exist_ok=True)
            write_json(known, said)
    return _source(examples, rows.name, rows.said, rows.origins)


def _known(files: Sequence[Path], how: Mapping[str, object]) -> Path | None:
    """Where it is written down in which store the rows of these files are."""
    try:
        stats = [(file.resolve(), file.stat()) for file in files]
    except OSError:
        return None
    stamps = [[str(at), now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino] for at, now in stats]
    return store_home() / "known" / f"{key_of(stamps=stamps, how=how)}.json"


def _about(source: Source, of_files: int) -> dict[str, object]:
    """What is kept of a source; the first notes are of its files, which may have other names another time."""
    notes = list(source.notes)[of_files:]
    return {"sha256": source.sha256, "rejected": [asdict(one) for one in source.rejected], "notes": notes}


def _source(examples: ExampleStore, name: str, said: Sequence[str], origins: Origins) -> Source:
    about = manifest_of(examples)
    rejected = tuple(Rejected(**one) for one in about["rejected"])
    notes = tuple(dict.fromkeys((*said, *about["notes"])))
    return Source(name, examples, about["sha256"], rejected, notes, origins)
