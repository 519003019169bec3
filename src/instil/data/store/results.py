"""What was found in the rows of a store, kept beside them: the split, its leaks, and what a look at texts showed.

A result lies in a file that is named by all that it depends on: the rows, the settings, and the version of what finds
it. It is written whole, and begins with a hash of the rest, so that what is damaged is found anew and not believed.
Settings that a result does not depend on find it again.
"""

from __future__ import annotations

import json
import os
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from instil.data.duplicates.grams import Numbers
from instil.data.duplicates.search import Tick
from instil.data.findings.finding import Finding
from instil.data.findings.look import LOOKED_AT, Looked, look
from instil.data.leaks import Leaks, looked_for, refuse_found
from instil.data.splits import PARTS, Split, split_examples
from instil.data.store.build import key_of
from instil.data.store.examples import ExampleStore
from instil.data.subset import Subset
from instil.files import unfinished_of, write_whole
from instil.records import Example
from instil.settings.options import DataOptions

FOLDER = "found"
SEARCH, LOOK = 1, 1  # versions of what finds: to be raised where the same rows give another result
MARK = b"instil 1"
HASHED = 32  # bytes
Result = TypeVar("Result")
PAIRS = ("found", "dropped", "repeated", "contradicting", "alike")


class Content(NamedTuple):
    """A result: values as JSON has them, and columns of numbers."""

    values: dict[str, Any]
    columns: dict[str, Numbers]


@dataclass
class Results:
    """Those of the rows of a store; of rows in memory everything is found anew.

    ``notes`` are what is to be said of the files.
    """

    examples: Sequence[Example]
    notes: list[str] = field(default_factory=list)

    def split(self, options: DataOptions, tick: Tick | None = None) -> tuple[Split, Leaks]:
        """The rows of each part as they are to be trained on, and what the parts have in common.

        Raises:
            DataError: as `instil.data.leaks.guard`.
        """
        drop = options.leaks == "drop"

        def found() -> tuple[Split, Leaks]:
            split = split_examples(self.examples, options, tick)
            split, leaks = looked_for(split, options.leak_threshold, drop=drop, tick=tick)
            return replace(split, near=None), leaks

        split, leaks = self._kept(
            f"split-{self._split_key(options)}",
            found,
            lambda result: _split_content(*result),
            lambda content: _split_of(content, self.examples),
        )
        refuse_found(leaks, options)
        return split, leaks

    def look(self, split: Split, options: DataOptions, own: Sequence[str], at_most: int = LOOKED_AT) -> Looked:
        """A look at the texts of a split that `split` gave."""
        key = key_of(split=self._split_key(options), own=sorted(own), at_most=at_most, version=LOOK)
        return self._kept(f"look-{key}", lambda: look(split, None, own, at_most), _look_content, _look_of)

    def _split_key(self, options: DataOptions) -> str:
        """The name of what a split and its leaks depend on; a book's split has no seed."""
        name = self.examples.folder.name if isinstance(self.examples, ExampleStore) else ""
        seed = options.split_seed if options.split == "grouped" else None
        return key_of(
            rows=name,
            count=len(self.examples),
            split=options.split,
            seed=seed,
            threshold=options.leak_threshold,
            drop=options.leaks == "drop",
            version=SEARCH,
            libraries=[np.__version__, unicodedata.unidata_version],
        )

    def _kept(
        self,
        name: str,
        found: Callable[[], Result],
        content_of: Callable[[Result], Content],
        result_of: Callable[[Content], Result],
    ) -> Result:
        if not isinstance(self.examples, ExampleStore):
            return found()
        path = self.examples.folder / FOLDER / name
        if path.is_file():
            try:
                return result_of(_read(path))
            except (OSError, ValueError, KeyError, TypeError, IndexError):
                self.notes.append(f"{path}: damaged; what it holds was found anew")
        result = found()
        with suppress(OSError):  # then it is found again next time
            _write(path, content_of(result))
        return result


def _write(path: Path, content: Content) -> None:
    columns = {name: np.ascontiguousarray(column) for name, column in content.columns.items()}
    told = [[name, column.dtype.str, len(column)] for name, column in columns.items()]
    head = json.dumps([content.values, told]).encode()
    parts = [len(head).to_bytes(8, "little"), head, *(column.tobytes() for column in columns.values())]
    digest = blake2b(digest_size=HASHED)
    for part in parts:
        digest.update(part)
    path.parent.mkdir(exist_ok=True)
    own = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")  # others may be at the same

    def put(to: Path) -> None:
        with to.open("wb") as file:
            file.writelines([MARK, digest.digest(), *parts])
            file.flush()
            os.fsync(file.fileno())

    try:
        write_whole(own, put)
        own.replace(path)
    finally:
        for left in (own, unfinished_of(own)):
            left.unlink(missing_ok=True)


def _read(path: Path) -> Content:
    """What was written.

    Raises:
        ValueError: it is not what was written.
    """
    data = path.read_bytes()
    start = len(MARK) + HASHED
    if data[: len(MARK)] != MARK or blake2b(memoryview(data)[start:], digest_size=HASHED).digest() != data[8:start]:
        raise ValueError(path)
    at = start + 8
    end = at + int.from_bytes(data[start:at], "little")
    values, told = json.loads(data[at:end])
    columns = {}
    for name, kind, count in told:
        columns[name] = np.frombuffer(data, np.dtype(kind), count, end)
        end += columns[name].nbytes
    return Content(values, columns)


def _split_content(split: Split, leaks: Leaks) -> Content:
    values: dict[str, Any] = {"kind": split.kind, "notes": split.notes, "threshold": leaks.threshold}
    values["exact"] = leaks.exact
    columns: dict[str, Numbers] = {}
    for part in PARTS:
        rows = split.part(part)
        assert isinstance(rows, Subset), "rows of a store"
        numbers = rows.numbers
        if isinstance(numbers, range):
            values[part] = [numbers.start, numbers.stop, numbers.step]
        else:
            columns[part] = numbers
    for name in PAIRS:
        pairs = getattr(leaks, name)
        values[name] = list(pairs.texts.items())
        own = [one.name for one in fields(pairs) if one.name != "texts"]
        columns |= {f"{name}.{column}": getattr(pairs, column) for column in own}
    return Content(values, columns)


def _split_of(content: Content, examples: Sequence[Example]) -> tuple[Split, Leaks]:
    assert isinstance(examples, ExampleStore), "of others nothing is kept"
    values, columns = content
    train, test, validation = (
        examples.subset(range(*values[part]) if part in values else columns[part]) for part in PARTS
    )
    blank = Leaks(values["threshold"], exact=values["exact"])
    pairs: dict[str, Any] = {}
    for name in PAIRS:
        own = {key.split(".")[1]: column for key, column in columns.items() if key.startswith(f"{name}.")}
        pairs[name] = type(getattr(blank, name))(texts={at: tuple(both) for at, both in values[name]}, **own)
    return Split(values["kind"], train, test, validation, tuple(values["notes"])), replace(blank, **pairs)


def _look_content(looked: Looked) -> Content:
    findings = [asdict(finding) for finding in looked.findings]
    kinds = {part: dict(counts) for part, counts in looked.kinds.items()}
    values = {"rows": looked.rows, "of": looked.of, "findings": findings, "kinds": kinds}
    return Content({**values, "scripts": looked.scripts, "shapes": dict(looked.shapes)}, {})


def _look_of(content: Content) -> Looked:
    values: Mapping[str, Any] = content.values
    findings = tuple(Finding(**{**one, "rows": tuple(one["rows"])}) for one in values["findings"])
    kinds = {part: Counter(values["kinds"][part]) for part in PARTS}
    shapes = Counter(values["shapes"])
    return Looked(values["rows"], values["of"], findings, kinds, values["scripts"], shapes)
