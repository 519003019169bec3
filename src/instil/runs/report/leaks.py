"""Held-out rows of the report that are nearly training rows, beside these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from instil.data.differences import Piece, marked


@dataclass(frozen=True, slots=True)
class LeakBeside:
    """A held-out row and its training row, each by what it is called and its prompt; words that differ are marked."""

    name: str
    train_name: str
    cosine: float
    text: list[Piece]
    train_text: list[Piece]


def beside(leaks: Sequence[Mapping[str, int | float | str]]) -> list[LeakBeside]:
    """Leaks as the run wrote them down (`instil.data.leaks.Leak.as_json`).

    Raises:
        KeyError: one lacks something.
    """
    found = []
    for leak in leaks:
        text, train_text = marked(str(leak["text"]), str(leak["train_text"]))
        names = f"{leak['part']} row {leak['row']}", f"training row {leak['train_row']}"
        found.append(LeakBeside(*names, float(leak["cosine"]), text, train_text))
    return found
