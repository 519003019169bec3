"""The microscope as one HTML page that needs nothing beside it and nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instil.data.preflight import Preflight
from instil.errors import UserError, counted
from instil.files import write_whole
from instil.recipes.microscope.rows import InspectedRow, Token
from instil.runs.report.page import clean, environment, script_hash

SHOWN_ALONE = {"\n": "\u21b5", "\r": "\u240d", "\t": "\u21e5"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A token as the page shows it: its text in pieces, each of which is as it is or a sign for what does not show.

    ``weight`` is said behind the last of those that count equally often, where that is not once.
    """

    position: int
    token: Token
    pieces: tuple[tuple[str, bool], ...]
    weight: str = ""

    @property
    def look(self) -> str:
        """Classes of its style."""
        part = " part" if self.token.counts else ""
        return f"{self.token.mask}{part}{' control' if self.token.control else ''}"

    @property
    def said(self) -> str:
        """All that is known of it."""
        token = self.token
        fate = {"seen": "only read", "trained": "trained on", "cut": "cut off"}[token.mask]
        weight = f" with weight {token.counts}" if token.counts else ""
        kind = ", a control token" if token.control else ""
        return f"position {self.position}, id {token.id}{kind}: {fate}{weight}"


def pieces(text: str) -> tuple[tuple[str, bool], ...]:
    """A text cut into what shows as it is, and signs (True) for what does not show by itself.

    >>> pieces("a\\n"), pieces("\\u200b")
    ((('a', False), ('\u21b5', True), ('\\n', False)), (('U+200B', True),))
    """
    found: list[tuple[str, bool]] = []
    plain = ""
    for char in text:
        if char.isprintable():
            plain += char
            continue
        if plain:
            found.append((plain, False))
            plain = ""
        found.append((SHOWN_ALONE.get(char, f"U+{ord(char):04X}"), True))
        if char == "\n":
            plain = "\n"
    return (*found, (plain, False)) if plain else tuple(found)


def cells(row: InspectedRow) -> list[Cell]:
    """The tokens of a row for the page."""
    after = [token.counts for token in row.tokens[1:]] + [""]
    return [
        Cell(position, token, pieces(token.text), token.counts if token.counts != following else "")
        for position, (token, following) in enumerate(zip(row.tokens, after, strict=True))
    ]


def write_page(title: str, preflight: Preflight, rows: Sequence[InspectedRow], path: Path) -> None:
    """Write the page.

    Raises:
        UserError: it cannot be written.
    """
    page = environment("instil.recipes.microscope")
    page.filters["sha256"] = script_hash
    html = page.get_template("microscope.html.j2").render(
        title=title, lines=preflight.lines(), rows=rows, cells=cells, verdict=_verdict(preflight)
    )
    write_whole(path, clean(html), error=UserError, replace_surrogates=True)


def _verdict(preflight: Preflight) -> str:
    """What the page says in large letters."""
    worst = preflight.of("error") or preflight.of("warning")
    if not worst:
        return "Nothing is wrong with these rows that could be found."
    first = worst[0].said
    more = f", and {counted(len(worst) - 1, 'more thing')}" if len(worst) > 1 else ""
    return f"{'To be mended' if worst[0].severity == 'error' else 'Look at this'}: {first}{more}."
