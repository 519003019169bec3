"""Rows token by token: what is trained on, only read, cut, and filled up in the row's own batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from instil.batches import Batch
from instil.data.splits import PARTS, Part
from instil.data.tokenizers import Tokenizer
from instil.errors import counted
from instil.layouts import Grid
from instil.records import Example
from instil.tasks.task import Prepared, View, loader_for

TokenMask = Literal["seen", "trained", "cut"]
END = "<end>"


@dataclass(frozen=True, slots=True)
class Token:
    """One id, its text, and its mask: only seen, trained on, or cut off.

    ``weight`` is how often it counts in the loss, and ``control`` whether it is a token that no text is made of.
    """

    id: int
    text: str
    mask: TokenMask
    weight: float = 1.0
    control: bool = False

    @property
    def counts(self) -> str:
        """How often it counts in the loss, where it is trained on and that is not once; else nothing."""
        return f"{self.weight:g}" if self.mask == "trained" and self.weight != 1 else ""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        more = {"weight": self.weight} if self.counts else {}
        return {
            "id": self.id,
            "text": self.text,
            "fate": self.mask,
            **more,
            **({"control": True} if self.control else {}),
        }


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """One row under the microscope.

    ``why`` says what is suspicious of it. ``padding`` is how many tokens fill it up in its batch of the first epoch;
    None where rows are laid out without padding, or the row is in no batch.
    """

    example: Example
    part: str
    tokens: tuple[Token, ...]
    why: tuple[str, ...] = ()
    padding: int | None = None

    @property
    def trained(self) -> int:
        """How many tokens the model is trained to say."""
        return self._of("trained")

    @property
    def cut(self) -> int:
        """How many tokens lie beyond the limit."""
        return self._of("cut")

    @property
    def weighted(self) -> bool:
        """Whether some of what is trained on does not count once."""
        return any(token.counts for token in self.tokens)

    def _of(self, mask: TokenMask) -> int:
        return sum(token.mask == mask for token in self.tokens)

    def sentence(self) -> str:
        """Its counts, for people."""
        said = f"{counted(len(self.tokens), 'token')}, {self.trained:,} trained on"
        if self.weighted:
            said += f" (counted as {sum(token.weight for token in self.tokens if token.mask == 'trained'):g})"
        if self.cut:
            said += f", {self.cut:,} cut"
        if self.padding:
            said += f", {self.padding:,} of padding in its batch"
        return said

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "row": self.example.row,
            "part": self.part,
            "why": list(self.why),
            "padding": self.padding,
            "tokens": [token.as_json() for token in self.tokens],
        }


def inspected(prepared: Prepared, wanted: Mapping[int, Sequence[str]]) -> list[InspectedRow]:
    """Rows by their numbers in the data, in this order; of a preference pair both answers. Absent ones are left out.

    Args:
        prepared: the rows.
        wanted: numbers, each with what is suspicious of it.
    """
    places = {}
    for part in PARTS:
        for at, example in enumerate(prepared.split.part(part)):
            if example.row in wanted:
                places[example.row] = (part, at)
    filled = _filled(prepared, places)
    shown = []
    for number, why in wanted.items():
        if number not in places:
            continue
        part, at = places[number]
        example = prepared.split.part(part)[at]
        for view in prepared.task.views(prepared.rows[part][at]):
            tokens = tuple(_tokens(prepared, view))
            name = f"{part}, {view.name}" if view.name else part
            shown.append(InspectedRow(example, name, tokens, tuple(why), _padding(prepared, view, filled.get(number))))
    return shown


def inspected_rows(prepared: Prepared, row: int) -> list[InspectedRow]:
    """The row of that number in the file; of a preference pair both answers; nothing if it is not there."""
    return inspected(prepared, {row: ()})


def _tokens(prepared: Prepared, view: View) -> Iterator[Token]:
    tokenizer = prepared.tokenizer
    weights = view.weights or (1.0,) * len(view.row.ids)
    for position, (id_, trained, weight) in enumerate(zip(view.row.ids, learnt(prepared, view), weights, strict=True)):
        mask: TokenMask = "trained" if trained else "cut" if position > prepared.max_length else "seen"
        text, control = _shown(tokenizer, id_)
        yield Token(id_, text, mask, weight, control)


def learnt(prepared: Prepared, view: View) -> list[bool]:
    """Of each id whether it is trained on: not the first, before which nothing comes, nor those beyond the limit."""
    return [bool(one) and 0 < at <= prepared.max_length for at, one in enumerate(view.learnt)]


def _shown(tokenizer: Tokenizer, id_: int) -> tuple[str, bool]:
    if id_ == tokenizer.eos_id:
        return END, True
    name = tokenizer.token(id_)
    return (name, True) if name in tokenizer.control_tokens else (tokenizer.shown(id_), False)


def _padding(prepared: Prepared, view: View, length: int | None) -> int | None:
    """How many tokens fill up a row of so many positions; its last id is only ever a target."""
    if length is None:
        return None
    return max(0, length - min(len(view.row.ids) - 1, prepared.max_length))


def _filled(prepared: Prepared, places: Mapping[int, tuple[Part, int]]) -> dict[int, int]:
    """Rows, each with the positions that it has in its batch of the first epoch, where that is padded."""
    if prepared.settings.train.layout != "padded":
        return {}
    found: dict[int, int] = {}
    for part in PARTS:
        rows = {row for row, (where, _) in places.items() if where == part}
        for batch in _batches(prepared, part, rows):
            if isinstance(batch.layout, Grid):
                found |= dict.fromkeys(rows & set(batch.examples), batch.layout.length)
    return found


def _batches(prepared: Prepared, part: Part, rows: set[int]) -> Iterable[Batch]:
    """Batches of the first epoch that have these rows in them, and perhaps others."""
    loader = loader_for(prepared, part) if rows else None
    if loader is None:
        return
    if loader.resumable:
        order = loader.order(0)
        steps = {at // loader.batch_size for at, index in enumerate(order) if loader.rows[index].row in rows}
        for step in sorted(steps):
            if step < len(loader):  # an incomplete last one may be left out
                yield from loader.step(step)
        return
    with torch.random.fork_rng(devices=[]):  # the book's order is drawn from the global generator
        yield from loader.batches()
