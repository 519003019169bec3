"""The rows of a source: as they are where there are few, in a store where there are many."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from instil.data.sources import Source
from instil.data.store.build import key_of, manifest_of, size_line, store_home, stored_examples
from instil.data.store.examples import ExampleStore
from instil.data.store.shards import INSTALL, has_arrow, is_complete
from instil.errors import counted
from instil.files import json_object_or_empty, write_json
from instil.screen import Screen

MANY = 50_000  # rows from which on they are kept in a store


def stored(read: Callable[[], Source], screen: Screen, *, file: Path | None, **how: object) -> Source:
    """A source whose examples lie in a store, if they are many; one that was stored before is not read again.

    Args:
        read: reads it.
        screen: where progress is shown.
        file: what is read, if it is a file: by its place, size and time it is known again.
        how: what else shapes the rows, as JSON has it.

    Raises:
        UserError: it cannot be read, or the store not be written.
    """
    known = _known(file, how) if file and has_arrow() else None
    if known:
        found = str(json_object_or_empty(known).get("rows", ""))
        if found and is_complete(store_home() / found):
            return _source(ExampleStore(store_home() / found), str(file))
    source = read()
    if len(source) < MANY:
        return source
    if not has_arrow():
        note = (
            f"{counted(len(source), 'row')} and their ids are held in memory, and encoded anew each time; with pyarrow "
            f"they are kept on disk: {INSTALL}"
        )
        return replace(source, notes=(*source.notes, note))
    key = key_of(rows=source.sha256, how=how, skipped=len(source.skipped))
    examples = stored_examples(key, lambda: iter(source.examples), lambda: _about(source), screen, len(source))
    if known:
        known.parent.mkdir(parents=True, exist_ok=True)
        write_json(known, {"rows": examples.folder.name, "file": str(file)})
    return _source(examples, source.name)


def _known(file: Path, how: Mapping[str, object]) -> Path | None:
    """Where it is written down in which store the rows of a file are."""
    try:
        now = file.stat()
    except OSError:
        return None
    stamp = [str(file.resolve()), now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino]
    return store_home() / "known" / f"{key_of(stamp=stamp, how=json.loads(json.dumps(dict(how))))}.json"


def _about(source: Source) -> dict[str, object]:
    return {"sha256": source.sha256, "skipped": list(source.skipped), "notes": list(source.notes)}


def _source(examples: ExampleStore, name: str) -> Source:
    about = manifest_of(examples)
    return Source(name, examples, about["sha256"], tuple(about["skipped"]), tuple(about["notes"]))


def store_note(*folders: Path) -> list[str]:
    """What is said of stores before training."""
    return [size_line(*folders)] if folders else []
