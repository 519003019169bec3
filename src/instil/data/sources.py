"""A data set's rows as examples: read by `instil.data.files`, understood by `instil.data.shapes`.

Nothing is lost in silence: rows that cannot be used are refused with their numbers, or, when the
user asks for it, left out and listed. Chapter 7.2 (listing 7.1) reads one JSON list without checks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from instil.data.files.faults import may_be_left_out
from instil.data.files.rows import open_rows
from instil.data.shapes.mapping import Renames
from instil.data.shapes.origins import Origins
from instil.data.shapes.reading import InMemory, Offer, Raw, Rejected, ShapedRows
from instil.data.words import normal
from instil.records import Example, Pair, Turn
from instil.settings.options import Normalise

IN_MEMORY = "(rows in memory)"
_as_text = json.JSONEncoder(sort_keys=True).encode


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one file, and where they came from.

    ``sha256`` is of the parsed rows, so a BOM or CRLF does not change it. ``rejected`` holds the rows
    left out (only with ``skip_bad``), ``notes`` what the user may want to know, and ``origins`` where each row
    stands in its files (nowhere, for rows in memory).
    """

    name: str
    examples: Sequence[Example]
    sha256: str
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()
    origins: Origins = field(default_factory=Origins, compare=False, repr=False)

    @property
    def skipped(self) -> tuple[str, ...]:
        """One line for each row left out."""
        return tuple(one.line() for one in self.rejected)

    def __len__(self) -> int:
        return len(self.examples)


def in_nfc(example: Example) -> Example:
    """A row with all its texts in Unicode's NFC."""
    return replace(
        example,
        instruction=normal(example.instruction),
        output=normal(example.output),
        input=normal(example.input),
        history=tuple(map(_turn_in_nfc, example.history)),
        steps=tuple(map(_turn_in_nfc, example.steps)),
        tools=normal(example.tools),
        reasoning=normal(example.reasoning),
        tool_calls=normal(example.tool_calls),
    )


def _turn_in_nfc(turn: Turn) -> Turn:
    return replace(
        turn,
        content=normal(turn.content),
        input=normal(turn.input),
        reasoning=normal(turn.reasoning),
        tool_calls=normal(turn.tool_calls),
    )


class SourceRows:
    """The rows of a data set as examples, one after another; nothing is held but what is to be said of them.

    Attributes:
        name: what messages call them.
        said: the first of the notes: those on the files, which are there before a row is read.
        origins: where each row stands in its files.

    Args:
        rows: what can be iterated over twice.
        name: what messages call them.
        skip_bad: leave unusable rows out, and list them in ``Source.rejected``.
        need_output: whether rows must carry the wanted answer (not so for rows only to be answered).
        mapping: keys that are read under another name, such as ``question=instruction``.
        offers: what whoever reads the messages can set: ``--map``, and ``data.skip_bad``.
        notes: what is said before the notes on shapes.
        form: the normal form of texts (``data.normalise``).

    Raises:
        DataError: they have no shape that is known.
        SettingsError: ``mapping`` is not of that form.
    """

    def __init__(
        self,
        rows: Iterable[Raw],
        name: str,
        *,
        skip_bad: bool = False,
        need_output: bool = True,
        mapping: Sequence[str] = (),
        offers: Collection[Offer] = ("map", "skip_bad"),
        notes: Sequence[str] = (),
        form: Normalise = "none",
    ) -> None:
        self._shaped = ShapedRows(rows, name, "answers" if need_output else "prompts", Renames(mapping), offers)
        self.name = name
        self.origins = self._shaped.origins
        self._skip_bad, self._form, self.said = skip_bad, form, tuple(notes)
        self._rejected: list[Rejected] = []
        self._digest = hashlib.sha256()

    def __len__(self) -> int:
        """How many rows there are, with those that cannot be used."""
        return self._shaped.count

    def __iter__(self) -> Iterator[Example]:
        """The examples.

        Raises:
            DataError: after the last of them: some rows cannot be used.
        """
        self._rejected, self._digest, good = [], hashlib.sha256(), 0
        for made in self._shaped:
            if isinstance(made, Example):
                self._digest.update(hashed_as(made, made.row, good))
                good += 1
                yield made if self._form == "none" else in_nfc(made)
            elif isinstance(made, Rejected):
                self._rejected.append(made)
        if not good or (self._rejected and not self._skip_bad):
            self._shaped.refuse(self._rejected, good)

    def source(self, examples: Sequence[Example]) -> Source:
        """After the last example: a source of these, with all that is to be said of the rows."""
        notes = (*self.said, *self._shaped.notes)
        return Source(self.name, examples, self._digest.hexdigest(), tuple(self._rejected), notes, self.origins)

    def key(self) -> str:
        """The hash of all rows, with those that cannot be used, and of all that is known of each."""
        digest = hashlib.sha256()
        for made in self._shaped:
            digest.update(json.dumps(asdict(made), sort_keys=True).encode())
        return digest.hexdigest()


def hashed_as(made: Example | Pair, row: int, place: int) -> bytes:
    """What goes into the hash of rows: a row, and its number where others before it were left out."""
    return _as_text(made.as_json()).encode() + (b"" if row == place else f" row {row}".encode())


def open_source(
    data: str | Path | Sequence[Any],
    *,
    skip_bad: bool = False,
    need_output: bool = True,
    mapping: Sequence[str] = (),
    offers: Collection[Offer] = ("map", "skip_bad"),
    form: Normalise = "none",
) -> SourceRows:
    """The rows of a data set, to be read one after another: of whatever `read_source` reads, or of a list.

    Raises:
        DataError: as `instil.data.files.rows.open_rows`; or they have no shape that is known.
        SettingsError: ``mapping`` is not of that form.
    """
    rows: Iterable[Raw]
    notes: tuple[str, ...] = ()
    with may_be_left_out("skip_bad" in offers):
        if isinstance(data, str | Path):
            found = open_rows(data, skip_bad=skip_bad)
            rows, name, notes = found.twice(), str(data), found.notes
        else:
            rows, name = [InMemory(row) for row in data], IN_MEMORY
        return SourceRows(
            rows,
            name,
            skip_bad=skip_bad,
            need_output=need_output,
            mapping=mapping,
            offers=offers,
            notes=notes,
            form=form,
        )


def read_source(
    data: str | Path,
    *,
    skip_bad: bool = False,
    need_output: bool = True,
    mapping: Sequence[str] = (),
    offers: Collection[Offer] = ("map", "skip_bad"),
) -> Source:
    """Read a data set: whatever `instil.data.files.rows.open_rows` opens, in whatever shape of `instil.data.shapes`.

    Args:
        data: a name, a path, a pattern, a folder, an address or a hub id.
        skip_bad: leave unusable rows out, and list them in ``Source.rejected``.
        need_output: whether rows must carry the wanted answer (not so for rows only to be answered).
        mapping: keys that are read under another name, such as ``question=instruction``.
        offers: what whoever reads the messages can set: ``--map``, and ``data.skip_bad``.

    Raises:
        DataError: as `instil.data.files.rows.open_rows`; or the rows have no shape that is known, or are unusable.
        SettingsError: ``mapping`` is not of that form.
    """
    rows = open_source(data, skip_bad=skip_bad, need_output=need_output, mapping=mapping, offers=offers)
    return rows.source(tuple(rows))


def examples_from(
    rows: Sequence[Any],
    name: str = IN_MEMORY,
    *,
    skip_bad: bool = False,
    need_output: bool = True,
    mapping: Sequence[str] = (),
    offers: Collection[Offer] = ("map", "skip_bad"),
) -> Source:
    """Parsed rows as examples, whatever shape of `instil.data.shapes` they have.

    Args:
        rows: the rows.
        name: what messages call them.
        skip_bad: see `read_source`; so are ``need_output`` and ``mapping``.
        need_output: see there.
        mapping: see there.
        offers: what whoever reads the messages can set.

    >>> examples_from([{"instruction": "Say hi.", "output": "Hi."}]).examples[0].output
    'Hi.'

    Raises:
        DataError: they have no shape that is known, or some of them cannot be used.
        SettingsError: ``mapping`` is not of the form ``question=instruction``.
    """
    found = SourceRows(
        [InMemory(row) for row in rows],
        name,
        skip_bad=skip_bad,
        need_output=need_output,
        mapping=mapping,
        offers=offers,
    )
    return found.source(tuple(found))
