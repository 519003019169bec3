"""Preference pairs from a file, in any of the shapes of `instil.data.shapes`.

That of the chapter's ``instruction-data-with-preference.json`` is ``instruction``, ``chosen`` and ``rejected``;
``input`` and ``output`` may be there.
A pair of equal answers prefers nothing: it is refused like any other unusable row, unless it is asked to be kept
(the chapter's file has six).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from instil.data.files.faults import may_be_left_out
from instil.data.files.rows import open_rows
from instil.data.shapes.labels import pairs_of_labelled
from instil.data.shapes.mapping import Renames
from instil.data.shapes.reading import InMemory, Raw, Rejected, ShapedRows
from instil.data.shapes.rows import Labelled
from instil.data.sources import IN_MEMORY, Source, hashed_as, in_nfc
from instil.data.store.examples import ExampleStore
from instil.data.store.pairs import PairStore
from instil.data.words import normal
from instil.errors import counted
from instil.records import Pair
from instil.settings.options import Normalise

EQUAL = "chosen and rejected are equal, so it prefers nothing"


@dataclass(frozen=True, slots=True)
class PairSource(Source):
    """The pairs of one file; as ``examples`` their wanted answer is the chosen one."""

    pairs: Sequence[Pair] = ()

    @property
    def equal(self) -> tuple[int, ...]:
        """The rows whose two answers are the same, which were kept."""
        return tuple(pair.row for pair in self.pairs if _is_equal(pair))

    @staticmethod
    def in_store(source: Source) -> PairSource:
        """The pairs of a source whose examples lie in a store of them."""
        assert isinstance(source.examples, ExampleStore), "others have their pairs"
        known = {one.name: getattr(source, one.name) for one in fields(source)}
        return PairSource(**known, pairs=PairStore(source.examples))


class PairRows:
    """The pairs of a data set, one after another, as `instil.data.sources.SourceRows` has its examples.

    Labelled answers are held until all are there, since any two of them may make a pair.

    Attributes:
        name: what messages call them.
        said: the first of the notes: those on the files, which are there before a row is read.
        origins: where each row stands in its files.

    Raises:
        DataError: they have no shape that is known.
        SettingsError: ``mapping`` is not of the form ``question=instruction``.
    """

    def __init__(
        self,
        rows: Iterable[Raw],
        name: str,
        *,
        skip_bad: bool = False,
        keep_equal: bool = False,
        mapping: Sequence[str] = (),
        notes: Sequence[str] = (),
        form: Normalise = "none",
    ) -> None:
        self._shaped = ShapedRows(rows, name, "pairs", Renames(mapping))
        self.name, self.said = name, tuple(notes)
        self.origins = self._shaped.origins
        self._skip_bad, self._keep_equal, self._form = skip_bad, keep_equal, form
        self._rejected: list[Rejected] = []
        self._notes: list[str] = []
        self._digest = hashlib.sha256()

    def __len__(self) -> int:
        """How many rows there are, with those that cannot be used."""
        return self._shaped.count

    def __iter__(self) -> Iterator[Pair]:
        """The pairs.

        Raises:
            DataError: after the last of them: a row lacks one of its answers, or they are equal.
        """
        self._rejected, self._notes, self._digest = [], [], hashlib.sha256()
        good = 0
        equal: list[int] = []
        for pair in self._read():
            if _is_equal(pair):
                if not self._keep_equal:
                    self._rejected.append(Rejected(pair.row, EQUAL, self.origins.of(pair.row)))
                    continue
                equal.append(pair.row)
            self._digest.update(hashed_as(pair, pair.row, good))
            good += 1
            yield pair if self._form == "none" else _in_nfc(pair)
        self._rejected.sort(key=lambda one: one.row)
        if not good or (self._rejected and not self._skip_bad):
            self._shaped.refuse(self._rejected, good)
        if equal:
            have = counted(len(equal), "pair has", "pairs have")
            self._notes.append(f"{have} equal answers, which teaches nothing: rows {equal[:20]}")

    def _read(self) -> Iterator[Pair]:
        """Those that are pairs, whatever they prefer."""
        labelled: list[Labelled] = []
        for made in self._shaped:
            if isinstance(made, Rejected):
                self._rejected.append(made)
            elif isinstance(made, Labelled):
                labelled.append(made)
            elif isinstance(made, Pair):
                yield made
        if labelled:
            paired, single = pairs_of_labelled(labelled)
            self._rejected += [replace(one, where=self.origins.of(one.row)) for one in single]
            made_of = f"made of {2 * len(paired):,} labelled answers, each of a good and a bad one"
            self._notes.append(f"{counted(len(paired), 'pair is', 'pairs are')} {made_of}")
            yield from paired

    def source(self, pairs: Sequence[Pair], /) -> PairSource:
        """After the last pair: a source of these, with all that is to be said of the rows."""
        return PairSource(
            name=self.name,
            examples=tuple(replace(pair.example, output=pair.chosen) for pair in pairs),
            sha256=self._digest.hexdigest(),
            rejected=tuple(self._rejected),
            notes=(*self.said, *self._shaped.notes, *self._notes),
            origins=self.origins,
            pairs=tuple(pairs),
        )

    def key(self) -> str:
        """The hash of all rows, with those that cannot be used, and of all that is known of each."""
        digest = hashlib.sha256()
        for made in self._shaped:
            digest.update(json.dumps(asdict(made), sort_keys=True).encode())
        return digest.hexdigest()


def open_pairs(
    data: str | Path | Sequence[Any],
    *,
    name: str = IN_MEMORY,
    skip_bad: bool = False,
    keep_equal: bool = False,
    mapping: Sequence[str] = (),
    form: Normalise = "none",
) -> PairRows:
    """The pairs of a data set, to be read one after another: of whatever `read_pairs` reads, or of a list.

    Raises:
        DataError: as `instil.data.files.rows.open_rows`; or they have no shape that is known.
        SettingsError: ``mapping`` is not of that form.
    """
    rows: Iterable[Raw] = ()
    notes: tuple[str, ...] = ()
    with may_be_left_out(True):
        if isinstance(data, str | Path):
            found = open_rows(data, skip_bad=skip_bad)
            rows, name, notes = found.twice(), str(data), found.notes
        else:
            rows = [InMemory(row) for row in data]
        return PairRows(rows, name, skip_bad=skip_bad, keep_equal=keep_equal, mapping=mapping, notes=notes, form=form)


def read_pairs(
    data: str | Path, *, skip_bad: bool = False, keep_equal: bool = False, mapping: Sequence[str] = ()
) -> PairSource:
    """Read preference pairs by name (``book-preference``), path or URL.

    Raises:
        DataError: as `instil.data.sources.read_source`; or a row lacks one of its answers, or they are equal.
        SettingsError: as `instil.data.sources.read_source`.
    """
    rows = open_pairs(data, skip_bad=skip_bad, keep_equal=keep_equal, mapping=mapping)
    return rows.source(tuple(rows))


def pairs_from(
    rows: Sequence[Any],
    name: str = IN_MEMORY,
    *,
    skip_bad: bool = False,
    keep_equal: bool = False,
    mapping: Sequence[str] = (),
) -> PairSource:
    """Parsed rows as pairs, whatever shape of `instil.data.shapes` they have.

    >>> pairs_from([{"instruction": "Say hi.", "chosen": "Hi.", "rejected": "What?"}]).pairs[0].rejected
    'What?'
    """
    found = open_pairs(rows, name=name, skip_bad=skip_bad, keep_equal=keep_equal, mapping=mapping)
    return found.source(tuple(found))


def _is_equal(pair: Pair) -> bool:
    return pair.chosen.strip() == pair.rejected.strip()


def _in_nfc(pair: Pair) -> Pair:
    """A pair with all its texts in Unicode's NFC."""
    return Pair(in_nfc(pair.example), normal(pair.chosen), normal(pair.rejected))
