"""The mask microscope: every token of a row, and whether the model is trained to say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from instil.recipes.sft import Prepared
from instil.records import Encoded, Example

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


def slide(prepared: Prepared, row: int) -> Slide | None:
    """The row of that number in the file, or None if it is not there."""
    for part, encoded in prepared.encoded.items():
        for example, coded in zip(prepared.split.part(part), encoded, strict=True):
            if coded.row == row:
                return Slide(example, part, tuple(_tokens(prepared, coded)))
    return None


def _tokens(prepared: Prepared, row: Encoded) -> list[Token]:
    tokens = []
    for position, (id_, trained) in enumerate(zip(row.ids, row.trained, strict=True)):
        fate: Fate = "trained" if trained and position else "seen"  # nothing comes before the first token
        if position > prepared.max_length:
            fate = "cut"
        text = prepared.tokenizer.decode([id_]) or "<end>"
        tokens.append(Token(id_, text, fate))
    return tokens
