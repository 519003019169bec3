"""The mask microscope: every token of a row, and whether the model is trained to say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from instil.records import Encoded, Example
from instil.tasks.task import Prepared

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
    for part, encoded in prepared.encoded.items():
        for index, example in enumerate(prepared.split.part(part)):
            if example.row != row:
                continue
            if prepared.pairs is None:
                return [Slide(example, part, tuple(_tokens(prepared, encoded[index], encoded[index].trained)))]
            pair = prepared.pairs[part][index]
            sides = (("chosen", pair.chosen, pair.chosen_scored), ("rejected", pair.rejected, pair.rejected_scored))
            return [
                Slide(
                    example,
                    f"{part}, {name}",
                    tuple(_tokens(prepared, one, [position in scored for position in range(len(one.ids))])),
                )
                for name, one, scored in sides
            ]
    return []


def _tokens(prepared: Prepared, row: Encoded, targets: Sequence[bool]) -> list[Token]:
    tokens = []
    for position, (id_, trained) in enumerate(zip(row.ids, targets, strict=True)):
        fate: Fate = "trained" if trained and position else "seen"  # nothing comes before the first token
        if position > prepared.max_length:
            fate = "cut"
        text = prepared.tokenizer.decode([id_]) or "<end>"
        tokens.append(Token(id_, text, fate))
    return tokens
