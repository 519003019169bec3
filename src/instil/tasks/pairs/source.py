"""Preference pairs from a file: rows with ``instruction``, ``chosen`` and ``rejected``, validated row by row.

The form is that of the chapter's ``instruction-data-with-preference.json``; ``input`` and ``output`` may be there.
A pair of equal answers prefers nothing: it is refused like any other unusable row, unless it is asked to be kept
(the chapter's file has six).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instil.data.files.rows import open_rows
from instil.data.sources import ABSENT, IN_MEMORY, KNOWN_KEYS, Source, in_nfc, row_problem, text_problem
from instil.data.words import normal
from instil.errors import DataError, listed
from instil.records import Example, Pair
from instil.settings.options import Normalise

PAIR_KEYS = KNOWN_KEYS | {"chosen", "rejected"}


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


def read_pairs(data: str | Path, *, skip_bad: bool = False, keep_equal: bool = False) -> PairSource:
    """Read preference pairs by name (``book-preference``), path or URL.

    Raises:
        DataError: as `instil.data.sources.read_source`; or a row lacks one of its answers, or they are equal.
    """
    rows = open_rows(data)
    values = [row.value for row in rows.shown()]
    source = pairs_from(values, str(data), skip_bad=skip_bad, keep_equal=keep_equal)
    return replace(source, notes=(*rows.notes, *source.notes))


def pairs_from(
    rows: Sequence[Any], name: str = IN_MEMORY, *, skip_bad: bool = False, keep_equal: bool = False
) -> PairSource:
    """Validate parsed rows and make them pairs.

    >>> pairs_from([{"instruction": "Say hi.", "chosen": "Hi.", "rejected": "What?"}]).pairs[0].rejected
    'What?'
    """
    if not rows:
        raise DataError(f"{name}: no rows in it; wanted a list of objects with instruction, chosen and rejected")
    good: list[Pair] = []
    bad: list[str] = []
    equal: list[int] = []
    unused: dict[str, int] = {}
    for index, row in enumerate(rows):
        problem = _pair_problem(row)
        same = problem is None and row["chosen"].strip() == row["rejected"].strip()
        if same and keep_equal:
            equal.append(index)
        elif same:
            problem = "chosen and rejected are equal, so it prefers nothing"
        if problem:
            bad.append(f"row {index}: {problem}")
            continue
        for key in row.keys() - PAIR_KEYS:
            unused[key] = unused.get(key, 0) + 1
        instruction, output, about, task = (row.get(key) or "" for key in ("instruction", "output", "input", "task"))
        example = Example(instruction, output, about, task, row=index)
        good.append(Pair(example, row["chosen"], row["rejected"]))
    if bad and not skip_bad:
        raise DataError(
            f"{name}: {len(bad)} of {len(rows)} rows cannot be used as preference pairs (rows are counted from 0):\n"
            f"{listed(bad)}\nmend them, or leave them out with --set data.skip_bad=true"
        )
    if not good:
        raise DataError(f"{name}: none of its {len(rows)} rows can be used as a preference pair:\n{listed(bad)}")
    notes = [f"key {key!r} of {count} rows is not used" for key, count in sorted(unused.items())]
    if equal:
        notes.append(f"{len(equal)} pairs have equal answers, which teaches nothing: rows {equal[:20]}")
    digest = hashlib.sha256()
    for pair in good:
        digest.update(json.dumps(pair.as_json(), sort_keys=True).encode())
    return PairSource(
        name=name,
        examples=tuple(replace(pair.example, output=pair.chosen) for pair in good),
        sha256=digest.hexdigest(),
        skipped=tuple(bad),
        notes=tuple(notes),
        pairs=tuple(good),
        equal=tuple(equal),
    )


def _pair_problem(row: Any) -> str | None:
    found = row_problem(row, need_output=False)
    if not isinstance(row, dict):
        return found
    problems = [found] if found else []
    for key in ("chosen", "rejected"):
        problem = text_problem(row.get(key, ABSENT))
        if problem:
            problems.append(f"{key} {problem}")
    return ", ".join(problems) or None
