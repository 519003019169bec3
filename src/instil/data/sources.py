"""A data set's rows as examples: read by `instil.data.files`, understood by `instil.data.shapes`.

Nothing is lost in silence: rows that cannot be used are refused with their numbers, or, when the
user asks for it, left out and listed. Chapter 7.2 (listing 7.1) reads one JSON list without checks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instil.data.files.rows import open_rows
from instil.data.shapes.mapping import Renames
from instil.data.shapes.reading import InMemory, Offer, Raw, Rejected, ShapedRows
from instil.data.words import normal
from instil.records import Example, Turn
from instil.settings.options import Normalise

IN_MEMORY = "(rows in memory)"


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one file, and where they came from.

    ``sha256`` is of the parsed rows, so a BOM or CRLF does not change it. ``rejected`` holds the rows
    left out (only with ``skip_bad``), ``notes`` what the user may want to know.
    """

    name: str
    examples: tuple[Example, ...]
    sha256: str
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def skipped(self) -> tuple[str, ...]:
        """One line for each row left out."""
        return tuple(one.line() for one in self.rejected)

    def __len__(self) -> int:
        return len(self.examples)

    def normalised(self, form: Normalise) -> Source:
        """The same with texts in a normal form (``data.normalise``); the hash stays that of the rows as read."""
        return self if form == "none" else replace(self, examples=tuple(map(in_nfc, self.examples)))


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
    rows = open_rows(data)
    source = _source(rows.twice(), str(data), skip_bad, need_output, mapping, offers)
    return replace(source, notes=(*rows.notes, *source.notes))


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
    return _source([InMemory(row) for row in rows], name, skip_bad, need_output, mapping, offers)


def _source(
    rows: Iterable[Raw],
    name: str,
    skip_bad: bool,
    need_output: bool,
    mapping: Sequence[str],
    offers: Collection[Offer],
) -> Source:
    shaped = ShapedRows(rows, name, "answers" if need_output else "prompts", Renames(mapping), offers)
    good: list[Example] = []
    bad: list[Rejected] = []
    digest = hashlib.sha256()
    for made in shaped:
        if isinstance(made, Example):
            good.append(made)
            digest.update(json.dumps(made.as_json(), sort_keys=True).encode())
        elif isinstance(made, Rejected):
            bad.append(made)
    if not good or (bad and not skip_bad):
        shaped.refuse(bad, len(good))
    return Source(name, tuple(good), digest.hexdigest(), tuple(bad), shaped.notes)
