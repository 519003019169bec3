"""The mask microscope: every token of a row, and whether the model is trained to say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from instil.data.leaks import Leaks
from instil.data.preflight import Preflight
from instil.errors import UserError
from instil.records import Example
from instil.screen import Screen
from instil.settings.options import Settings
from instil.tasks.prepare import prepare
from instil.tasks.task import Prepared, View

TokenMask = Literal["seen", "trained", "cut"]


@dataclass(frozen=True, slots=True)
class Token:
    """One id, its text, and its mask: only seen, trained on, or cut off."""

    id: int
    text: str
    mask: TokenMask


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """One row under the microscope."""

    example: Example
    part: str
    tokens: tuple[Token, ...]

    @property
    def trained(self) -> int:
        """How many tokens the model is trained to say."""
        return sum(token.mask == "trained" for token in self.tokens)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "row": self.example.row,
            "part": self.part,
            "tokens": [{"id": token.id, "text": token.text, "fate": token.mask} for token in self.tokens],
        }


@dataclass(frozen=True, slots=True)
class Inspection:
    """The pre-flight of the rows, and some of them under the microscope."""

    preflight: Preflight
    rows: tuple[InspectedRow, ...]
    leaks: Leaks

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "preflight": self.preflight.as_json(),
            "leaks": self.leaks.as_json(),
            "rows": [row.as_json() for row in self.rows],
        }


def inspect(
    data: str, model: str, settings: Settings, numbers: Sequence[int], screen: Screen | None = None
) -> Inspection:
    """Look at rows by their numbers, or at the first training row.

    Raises:
        UserError: there is no such row, or the rows, the model or the settings cannot be used.
    """
    prepared = prepare(data, model, settings, screen=screen)
    rows: list[InspectedRow] = []
    for number in numbers or [prepared.split.train[0].row]:
        found = inspected_rows(prepared, number)
        if not found:
            raise UserError(f"no row {number}; {data} has {len(prepared.source)} usable rows, counted from 0")
        rows += found
    return Inspection(prepared.preflight, tuple(rows), prepared.leaks)


def inspected_rows(prepared: Prepared, row: int) -> list[InspectedRow]:
    """The row of that number in the file; of a preference pair both answers; nothing if it is not there."""
    for part, rows in prepared.rows.items():
        for encoded, example in zip(rows, prepared.split.part(part), strict=True):
            if example.row == row:
                return [
                    InspectedRow(example, f"{part}, {view.name}" if view.name else part, tuple(_tokens(prepared, view)))
                    for view in prepared.task.views(encoded)
                ]
    return []


def _tokens(prepared: Prepared, view: View) -> list[Token]:
    tokens = []
    for position, (id_, trained) in enumerate(zip(view.row.ids, view.learnt, strict=True)):
        mask: TokenMask = "trained" if trained and position else "seen"  # nothing comes before the first token
        if position > prepared.max_length:
            mask = "cut"
        text = "<end>" if id_ == prepared.tokenizer.eos_id else prepared.tokenizer.shown(id_)
        tokens.append(Token(id_, text, mask))
    return tokens
