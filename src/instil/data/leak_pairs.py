"""Pairs of rows that the leak gate found, in columns: there may be millions, and each is made when it is asked for.

The texts of the first thousand of a kind are kept with them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar, overload

import numpy as np

from instil.data.differences import in_a_line, marked
from instil.data.duplicates.grams import Numbers
from instil.data.near_duplicates import Near
from instil.data.splits import Part

INDENT = "    "
LONGEST = 2000  # characters of a text in JSON
HELD_OUT: tuple[Part, ...] = ("test", "validation")
Made_co = TypeVar("Made_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Leak:
    """A held-out row that is nearly a training row, with both prompts; without them beyond the first thousand."""

    near: Near
    part: Part
    text: str
    train_text: str

    def lines(self) -> list[str]:
        """Both prompts under one another, what differs in «»."""
        names = [f"{self.part} row {self.near.row}", f"training row {self.near.train_row}"]
        one, other = _side_by_side(names, self.text, self.train_text)
        same = "equal" if self.text == self.train_text else f"cosine {self.near.cosine:.2f}"
        return [one, f"{other}  ({same})"]

    def as_json(self) -> dict[str, Any]:
        """For ``--json`` and the report."""
        return {
            "row": self.near.row,
            "part": self.part,
            "train_row": self.near.train_row,
            "cosine": self.near.cosine,
            "text": self.text[:LONGEST],
            "train_text": self.train_text[:LONGEST],
        }


@dataclass(frozen=True, slots=True)
class Twin:
    """A training row and an earlier one that it is like, each with what is to be shown of it."""

    row: int
    like: int
    text: str = ""
    like_text: str = ""

    def lines(self) -> list[str]:
        """Both texts under one another, what differs in «»."""
        return _side_by_side([f"row {self.row}", f"row {self.like}"], self.text, self.like_text)

    def as_json(self) -> dict[str, Any]:
        """For ``--json`` and the report."""
        texts = {"text": self.text[:LONGEST], "like_text": self.like_text[:LONGEST]} if self.text else {}
        return {"row": self.row, "like": self.like, **texts}


def _none() -> Numbers:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Pairs(Sequence[Made_co], Generic[Made_co]):
    """Rows by their numbers in the file, each with that which it is like.

    ``texts`` are those of some of the pairs, by their place.
    """

    row: Numbers = field(default_factory=_none)
    like: Numbers = field(default_factory=_none)
    texts: Mapping[int, tuple[str, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row)

    @overload
    def __getitem__(self, at: int) -> Made_co: ...
    @overload
    def __getitem__(self, at: slice) -> list[Made_co]: ...
    def __getitem__(self, at: int | slice) -> Made_co | list[Made_co]:
        if isinstance(at, slice):
            return [self.made(place) for place in range(len(self))[at]]
        return self.made(range(len(self))[at])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == its for one, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of a list: what is compared by its members

    @abstractmethod
    def made(self, at: int) -> Made_co:
        """The pair of a place."""


@dataclass(frozen=True, eq=False)
class Twins(Pairs[Twin]):
    """Training rows that are like earlier ones."""

    def made(self, at: int) -> Twin:
        return Twin(int(self.row[at]), int(self.like[at]), *self.texts.get(at, ("", "")))


@dataclass(frozen=True, eq=False)
class OfParts(Pairs[Made_co]):
    """Pairs across parts: with their cosine, and the part of the held-out row, as its place in `HELD_OUT`."""

    cosine: Numbers = field(default_factory=_none)
    part: Numbers = field(default_factory=_none)

    def first(self, part: Part, count: int) -> list[Made_co]:
        """The first of a part."""
        return [self.made(int(at)) for at in islice(np.flatnonzero(self.part == HELD_OUT.index(part)), count)]


@dataclass(frozen=True, eq=False)
class Leaking(OfParts[Leak]):
    """Held-out rows that are nearly training rows."""

    def made(self, at: int) -> Leak:
        return Leak(self._near(at), HELD_OUT[int(self.part[at])], *self.texts.get(at, ("", "")))

    def of(self, part: str) -> list[Near]:
        """Those of a part, without their texts."""
        own = [place for place, name in enumerate(HELD_OUT) if name == part]
        return [self._near(int(at)) for at in np.flatnonzero(np.isin(self.part, own))]

    def _near(self, at: int) -> Near:
        return Near(int(self.row[at]), int(self.like[at]), float(self.cosine[at]))


@dataclass(frozen=True, eq=False)
class Dropped(OfParts[tuple[int, str]]):
    """Training rows that are left out for being nearly held-out rows."""

    def made(self, at: int) -> tuple[int, str]:
        said = f"{HELD_OUT[int(self.part[at])]} row {self.like[at]} (cosine {self.cosine[at]:.2f})"
        return int(self.row[at]), f"nearly the same as {said}, data.leaks=drop"


def _side_by_side(names: Sequence[str], text: str, other: str) -> list[str]:
    width = max(map(len, names))
    return [
        f"{INDENT}{name:{width}}  {in_a_line(pieces)}" for name, pieces in zip(names, marked(text, other), strict=True)
    ]
