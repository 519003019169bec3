"""Preference pairs from a file, in any of the shapes of `instil.data.shapes`.

That of the chapter's ``instruction-data-with-preference.json`` is ``instruction``, ``chosen`` and ``rejected``;
``input`` and ``output`` may be there.
A pair of equal answers prefers nothing: it is refused like any other unusable row, unless it is asked to be kept
(the chapter's file has six).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instil.data.files.faults import may_be_left_out
from instil.data.files.rows import open_rows
from instil.data.shapes.labels import pairs_of_labelled
from instil.data.shapes.mapping import Renames
from instil.data.shapes.origins import Origins
from instil.data.shapes.reading import InMemory, Raw, Rejected, ShapedRows
from instil.data.shapes.rows import Labelled
from instil.data.sources import IN_MEMORY, Source, hashed_as, in_nfc
from instil.data.words import normal
from instil.errors import counted
from instil.records import Pair
from instil.settings.options import Normalise

EQUAL = "chosen and rejected are equal, so it prefers nothing"


@dataclass(frozen=True, slots=True)
class PairSource(Source):
    """The pairs of one file; as ``examples`` their wanted answer is the chosen one.

    ``equal`` holds the rows whose two answers are the same, which were kept.
    """

    pairs: tuple[Pair, ...] = ()
    equal: tuple[int, ...] = ()

    def normalised(self, form: Normalise) -> PairSource:
        """As `Source.normalised`, of both answers."""
        if form == "none":
            return self
        pairs = tuple(Pair(in_nfc(pair.example), normal(pair.chosen), normal(pair.rejected)) for pair in self.pairs)
        return replace(self, examples=tuple(map(in_nfc, self.examples)), pairs=pairs)


def read_pairs(
    data: str | Path, *, skip_bad: bool = False, keep_equal: bool = False, mapping: Sequence[str] = ()
) -> PairSource:
    """Read preference pairs by name (``book-preference``), path or URL.

    Raises:
        DataError: as `instil.data.sources.read_source`; or a row lacks one of its answers, or they are equal.
        SettingsError: as `instil.data.sources.read_source`.
    """
    with may_be_left_out(True):
        rows = open_rows(data, skip_bad=skip_bad)
        source = _pairs(rows.twice(), str(data), skip_bad, keep_equal, mapping)
    return replace(source, notes=(*rows.notes, *source.notes))


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
    return _pairs([InMemory(row) for row in rows], name, skip_bad, keep_equal, mapping)


def _pairs(rows: Iterable[Raw], name: str, skip_bad: bool, keep_equal: bool, mapping: Sequence[str]) -> PairSource:
    shaped = ShapedRows(rows, name, "pairs", Renames(mapping))
    good: list[Pair] = []
    bad: list[Rejected] = []
    labelled: list[Labelled] = []
    for made in shaped:
        if isinstance(made, Rejected):
            bad.append(made)
        elif isinstance(made, Labelled):
            labelled.append(made)
        elif isinstance(made, Pair):
            good.append(made)
    notes = list(shaped.notes)
    if labelled:
        paired, single = pairs_of_labelled(labelled)
        good += paired
        bad = sorted([*bad, *_placed(single, shaped.origins)], key=lambda one: one.row)
        notes.append(
            f"{counted(len(paired), 'pair is', 'pairs are')} made of {2 * len(paired):,} labelled answers, each of a "
            "good and a bad one"
        )
    equal = [pair.row for pair in good if pair.chosen.strip() == pair.rejected.strip()]
    if equal and not keep_equal:
        bad = sorted([*bad, *_placed([Rejected(row, EQUAL) for row in equal], shaped.origins)], key=lambda one: one.row)
        good = [pair for pair in good if pair.row not in set(equal)]
        equal = []
    if not good or (bad and not skip_bad):
        shaped.refuse(bad, len(good))
    if equal:
        notes.append(
            f"{counted(len(equal), 'pair has', 'pairs have')} equal answers, which teaches nothing: rows {equal[:20]}"
        )
    digest = hashlib.sha256()
    for place, pair in enumerate(good):
        digest.update(hashed_as(pair, pair.row, place))
    return PairSource(
        name=name,
        examples=tuple(replace(pair.example, output=pair.chosen) for pair in good),
        sha256=digest.hexdigest(),
        rejected=tuple(bad),
        notes=tuple(notes),
        pairs=tuple(good),
        equal=tuple(equal),
        origins=shaped.origins,
    )


def _placed(rejected: Sequence[Rejected], origins: Origins) -> list[Rejected]:
    """The same with the places of the rows."""
    return [replace(one, where=origins.of(one.row)) for one in rejected]
