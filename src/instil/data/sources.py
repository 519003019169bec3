"""Rows from anywhere (`instil.data.files`), validated one by one.

Nothing is lost in silence: rows that cannot be used are refused with their numbers, or, when the
user asks for it, left out and listed. Chapter 7.2 (listing 7.1) reads one JSON list without checks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instil.data.files.rows import open_rows
from instil.data.words import normal
from instil.errors import DataError, listed
from instil.files import json_kind
from instil.records import Example, Turn
from instil.settings.options import Normalise

IN_MEMORY = "(rows in memory)"
LARGEST_TEXT = 4_000_000  # characters of one field
KNOWN_KEYS = {"instruction", "input", "output", "task", "provenance"}  # the last: how a made row came about


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one file, and where they came from.

    ``sha256`` is of the parsed rows, so a BOM or CRLF does not change it. ``skipped`` holds one line
    for each row left out (only with ``skip_bad``), ``notes`` what the user may want to know.
    """

    name: str
    examples: tuple[Example, ...]
    sha256: str
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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


def read_source(data: str | Path, *, skip_bad: bool = False, need_output: bool = True) -> Source:
    """Read a data set: whatever `instil.data.files.rows.open_rows` opens.

    Args:
        data: a name, a path, a pattern, a folder, an address, ``hf:owner/name``, or several with commas between.
        skip_bad: leave unusable rows out, and list them in ``Source.skipped``.
        need_output: whether rows must carry the wanted answer (not so for rows only to be answered).

    Raises:
        DataError: as `instil.data.files.rows.open_rows`, or there are unusable rows.
    """
    rows = open_rows(data)
    values = [row.value for row in rows.shown()]
    source = examples_from(values, str(data), skip_bad=skip_bad, need_output=need_output)
    return replace(source, notes=(*rows.notes, *source.notes))


def examples_from(
    rows: list[Any], name: str = IN_MEMORY, *, skip_bad: bool = False, need_output: bool = True
) -> Source:
    """Validate parsed rows (Alpaca form) and make them examples.

    >>> examples_from([{"instruction": "Say hi.", "output": "Hi."}]).examples[0].output
    'Hi.'
    """
    if not rows:
        raise DataError(f"{name}: no rows in it; wanted a list of objects with instruction and output")
    good: list[Example] = []
    bad: list[str] = []
    unused: dict[str, int] = {}
    for index, row in enumerate(rows):
        problem = row_problem(row, need_output=need_output)
        if problem:
            bad.append(f"row {index}: {problem}")
            continue
        for key in row.keys() - KNOWN_KEYS:
            unused[key] = unused.get(key, 0) + 1
        good.append(
            Example(
                instruction=row["instruction"],
                output=row.get("output") or "",
                input=row.get("input") or "",
                task=row.get("task") or "",
                row=index,
            )
        )
    if bad and not skip_bad:
        if need_output and all(isinstance(row, dict) and row.keys() >= {"chosen", "rejected"} for row in rows):
            raise DataError(f"{name}: these are preference pairs ({bad[0]}); add --method dpo to tune on them")
        raise DataError(
            f"{name}: {len(bad)} of {len(rows)} rows cannot be used (rows are counted from 0):\n{listed(bad)}\n"
            "mend them, or leave them out with --set data.skip_bad=true"
        )
    if not good:
        raise DataError(f"{name}: none of its {len(rows)} rows can be used:\n{listed(bad)}")
    notes = [f"key {key!r} of {count} rows is not used" for key, count in sorted(unused.items())]
    digest = hashlib.sha256()
    for example in good:
        digest.update(json.dumps(example.as_json(), sort_keys=True).encode())
    return Source(name, tuple(good), digest.hexdigest(), tuple(bad), tuple(notes))


def row_problem(row: Any, *, need_output: bool) -> str | None:
    """Why a row cannot be used, or None."""
    if not isinstance(row, dict):
        return f"is a {json_kind(row)}; wanted an object"
    checks: list[tuple[str, Callable[[Any], str | None]]] = [
        ("instruction", text_problem),
        ("input", optional_text_problem),
        ("output", text_problem if need_output else optional_text_problem),
        ("task", optional_text_problem),
    ]
    problems = [f"{key} {problem}" for key, check in checks if (problem := check(row.get(key, ABSENT)))]
    return ", ".join(problems) or None


ABSENT = object()  # for `text_problem`: the row has no such key


def text_problem(value: Any) -> str | None:
    """Why a field that must hold text cannot be used, or None."""
    if value is ABSENT:
        return "is missing"
    if not isinstance(value, str):
        return f"is {json_kind(value)}; wanted text"
    if not value.strip():
        return "is empty"
    if len(value) > LARGEST_TEXT:
        return f"has {len(value):,} characters; at most {LARGEST_TEXT:,} are read"
    if "\x00" in value:
        return "holds a NUL character"
    if any("\ud800" <= char <= "\udfff" for char in value):
        return "holds half of a surrogate pair (broken Unicode)"
    return None


def optional_text_problem(value: Any) -> str | None:
    """The same for a field that may be absent or empty."""
    if value is ABSENT or value is None or value == "":
        return None
    problem = text_problem(value)
    return None if problem == "is empty" else problem
