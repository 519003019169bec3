"""Rows that were made: where each comes from, what was left out and why, and whether a task is new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from instil.data.near_duplicates import Seen, prompt_text
from instil.records import Example
from instil.synthesis.reading import folded
from instil.synthesis.writing import TextRequest, TextResult

EXCERPT = 200  # characters of what was left out

Ask = Callable[[Sequence[TextRequest]], list[TextResult]]


@dataclass(frozen=True, slots=True)
class MadeRow:
    """A row with how it came about.

    ``provenance`` holds ``way`` (``kept``: the row is one of the given ones, unchanged), ``made_by`` (the model, as
    exactly as its server tells), ``prompt`` (name and hash), ``seed`` (of its request) and ``from`` (numbers of the
    given rows that it was made from); ``from_made`` are numbers of rows of the same file.
    """

    example: Example
    provenance: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The row in the book's form, with its provenance."""
        task = {"task": self.example.task} if self.example.task else {}
        return {**task, **self.example.as_json(), "provenance": self.provenance}


@dataclass(frozen=True, slots=True)
class Rejected:
    """What became no row: the number of its request, or of the row it was to be made from, and why."""

    number: int
    reason: str
    text: str = ""

    def as_json(self) -> dict[str, Any]:
        """For the report; the text is an excerpt."""
        return {"number": self.number, "reason": self.reason, "text": self.text[:EXCERPT]}


def kept_row(example: Example) -> MadeRow:
    """A given row as it is."""
    return MadeRow(example, {"way": "kept", "from": [example.row]})


class KnownTasks:
    """Tasks that exist, each with what it is called in messages.

    Args:
        given: named sets of rows.
        common: rows of which nothing but the rarity of letters is taken.
        near: a cosine from which on two tasks are nearly the same.
    """

    def __init__(self, given: dict[str, Sequence[Example]], common: Sequence[Example], near: float) -> None:
        there = [(f"row {row.row} of {name}", row) for name, rows in given.items() for row in rows]
        self._near = near
        self._names = [name for name, _ in there]
        self._exact: dict[str, str] = {}
        for name, row in there:
            self._exact.setdefault(folded(prompt_text(row)), name)
        self._seen = Seen([prompt_text(row) for _, row in there], [prompt_text(row) for row in common])

    def problem(self, example: Example) -> str:
        """Which task this one repeats, or nothing."""
        text = prompt_text(example)
        if name := self._exact.get(folded(text)):
            return f"it repeats {name}"
        cosine, at = self._seen.nearest(text)
        return f"it is nearly {self._names[at]} (cosine {cosine:.2f})" if at >= 0 and cosine >= self._near else ""

    def add(self, example: Example, name: str) -> None:
        """One more task."""
        text = prompt_text(example)
        self._names.append(name)
        self._exact.setdefault(folded(text), name)
        self._seen.add(text)
