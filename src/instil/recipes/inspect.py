"""The mask microscope: every token of a row, and whether the model is trained to say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from instil.records import Example
from instil.tasks.task import Prepared, View

Fate = Literal["seen", "trained", "cut"]


@dataclass(frozen=True, slots=True)
class Token:
    """One id, its text, and its fate: only seen, trained on, or cut off."""

    id: int
    text: str
    fate: Fate


@dataclass(frozen=True, slots=True)
class Slide:
    """One row under the microscope."""

    example: Example
    part: str
    tokens: tuple[Token, ...]

    @property
    def trained(self) -> int:
        """How many tokens the model is trained to say."""
        return sum(token.fate == "trained" for token in self.tokens)


def slides(prepared: Prepared, row: int) -> list[Slide]:
    """The row of that number in the file; of a preference pair both answers; nothing if it is not there."""
    for part, rows in prepared.rows.items():
        for encoded, example in zip(rows, prepared.split.part(part), strict=True):
            if example.row == row:
                return [
                    Slide(example, f"{part}, {view.name}" if view.name else part, tuple(_tokens(prepared, view)))
                    for view in prepared.task.views(encoded)
                ]
    return []


def _tokens(prepared: Prepared, view: View) -> list[Token]:
    tokens = []
    for position, (id_, trained) in enumerate(zip(view.row.ids, view.learnt, strict=True)):
        fate: Fate = "trained" if trained and position else "seen"  # nothing comes before the first token
        if position > prepared.max_length:
            fate = "cut"
        text = prepared.tokenizer.decode([id_]) or "<end>"
        tokens.append(Token(id_, text, fate))
    return tokens
