"""What ``instil inspect`` prints: the pre-flight, and rows token by token."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from instil.cli.show import show_lines, show_note
from instil.errors import counted

if TYPE_CHECKING:
    from pathlib import Path

    from rich.text import Text

    from instil.recipes.inspect import Inspection
    from instil.recipes.microscope.rows import InspectedRow, Token, TokenMask

STYLES: dict[TokenMask, str] = {"trained": "bold green", "seen": "", "cut": "red strike"}
PART = "green"  # of what is trained on and does not count once
CONTROL = "magenta"
LEGEND = (
    "[bold green]«trained on»[/], only read, [red strike]cut off[/], [magenta]<control token>[/], "
    "[dim]↵ a line end, · a space that does not show[/]"
)
WEIGHTS = "[green]«a part»[/][dim]×0.5[/] counts so often in the loss"
REJECTED = 5  # rows that are named


def show_inspection(found: Inspection, html: Path | None = None) -> None:
    """The pre-flight, and rows with what is trained on."""
    from rich.console import Console

    show_lines(found.preflight.few_lines("--json and --html"))
    rejected = [row for row in found.rejected if row.part]  # the pre-flight has told of those that could not be read
    show_lines(f"row {row.row} is {row.outcome}: {row.reason}; {row.remedy}" for row in rejected[:REJECTED])
    if len(rejected) > REJECTED:
        show_lines([f"... and {counted(len(rejected) - REJECTED, 'more row')} left out or cut (--json has all)"])
    console = Console(highlight=False)
    console.print(f"\n{LEGEND}" + (f", {WEIGHTS}" if any(row.weighted for row in found.rows) else ""))
    for row in found.rows:
        console.print()
        console.print(f"row {row.example.row} ({row.part}): {row.sentence()}", markup=False, style="bold")
        for why in row.why:
            console.print(f"  {why}", markup=False, style="yellow")
        console.print(tokens(row))
    if html is not None:
        show_note(f"page: {html}")


def tokens(row: InspectedRow) -> Text:
    """Tokens on the terminal: trained ones bold green in brackets, seen ones plain, cut ones struck through in red.

    Behind the bracket of what does not count once, which is not bold, stands how often it does.
    """
    from rich.text import Text

    text = Text()
    for (mask, counts), group in groupby(row.tokens, key=lambda token: (token.mask, token.counts)):
        run = list(group)
        style = PART if counts else STYLES[mask]
        if mask == "trained":
            text.append("«", style="dim")
        for at, token in enumerate(run):
            before = run[at - 1].text if at else ""
            after = run[at + 1].text if at + 1 < len(run) else ""
            _append(text, token, style, before, after)
        if mask == "trained":
            text.append(f"»×{counts}" if counts else "»", style="dim")
    if row.padding:
        text.append(f" [{row.padding} of padding]", style="dim reverse")
    return text


def _append(text: Text, token: Token, style: str, before: str, after: str) -> None:
    """One token, with signs for what would not show; a space shows by itself where letters stand on both sides."""
    if token.control:
        text.append(token.text, style=f"{style} {CONTROL}".strip())
    else:
        around = before[-1:] + token.text + after[:1]
        first = len(before[-1:])
        for at, char in enumerate(token.text, start=first):
            if char == " " and (around[at - 1 : at].isspace() or not around[at + 1 : at + 2].strip()):
                text.append("·", style="dim")
            elif char == "\n":
                text.append("↵", style="dim")
                text.append("\n")
            elif char.isprintable():
                text.append(char, style=style)
            else:
                text.append("→" if char == "\t" else f"U+{ord(char):04X}", style="dim")
