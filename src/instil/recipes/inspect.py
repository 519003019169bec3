"""The pre-flight of rows, and some of them under the mask microscope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instil.data.leaks import Leaks
from instil.data.preflight import Preflight
from instil.errors import UserError, counted
from instil.recipes.microscope.page import write_page
from instil.recipes.microscope.rows import InspectedRow, inspected
from instil.recipes.microscope.suspicious import suspicious
from instil.runs.card import data_card
from instil.screen import Screen
from instil.settings.options import Settings
from instil.tasks.prepare import prepare
from instil.tasks.rejected import RejectedRow, rejected_rows


@dataclass(frozen=True, slots=True)
class Inspection:
    """The pre-flight of the rows, some of them under the microscope, those left out or cut, and the data card."""

    preflight: Preflight
    rows: tuple[InspectedRow, ...]
    rejected: tuple[RejectedRow, ...]
    card: dict[str, Any]
    leaks: Leaks

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "preflight": self.preflight.as_json(),
            "leaks": self.leaks.as_json(),
            "rows": [row.as_json() for row in self.rows],
            "rejected": [row.as_json() for row in self.rejected],
            "card": self.card,
        }


def inspect(
    data: str,
    model: str,
    settings: Settings,
    numbers: Sequence[int],
    *,
    suspects: bool = False,
    html: Path | None = None,
    screen: Screen | None = None,
) -> Inspection:
    """Look at rows by their numbers, at suspicious ones, or at the first training row.

    Rows that would make a run worthless are shown as well; `Preflight.refuse` complains of them.

    Args:
        data: a name, a path or an address.
        model: a name, a folder or a file.
        settings: see `instil.settings.options`.
        numbers: of rows.
        suspects: look at suspicious rows, too.
        html: write a page of it.
        screen: where progress is shown; nowhere by default.

    Raises:
        UserError: there is no such row, or the rows, the model or the settings cannot be used, or the page cannot be
            written.
    """
    if html is not None and html.is_dir():
        raise UserError(f"{html} is a folder; wanted the name of a file for --html")
    prepared = prepare(data, model, settings, screen=screen, refuse=False)
    wanted: dict[int, Sequence[str]] = dict.fromkeys(numbers, ())
    if suspects:
        wanted |= suspicious(prepared)
    shown = inspected(prepared, wanted or {prepared.split.train[0].row: ()})
    there = {row.example.row for row in shown}
    for number in numbers:
        if number not in there:
            raise UserError(
                f"no row {number}; {data} has {counted(len(prepared.source), 'usable row')}, counted from 0"
            )
    rejected = tuple(rejected_rows(prepared))
    found = Inspection(prepared.preflight, tuple(shown), rejected, data_card(prepared, rejected), prepared.leaks)
    if html is not None:
        write_page(f"{Path(data).name} for {Path(model).name}", found.preflight, found.rows, html)
    return found
