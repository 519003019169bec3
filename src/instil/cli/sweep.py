"""The verbs that make several runs: sweep and probe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instil.cli.options import BookOpt, JsonOpt, SetOpt, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from instil.evaluate.sweep_table import SweepTable
    from instil.recipes.sweep import Swept

commands = typer.Typer()
WIDE = 200  # columns where stdout is no terminal


@commands.command("sweep")
def sweep_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="Which runs: [[run]] tables, a [grid], or both.")],
    data: Annotated[str | None, typer.Option("--data", help="Rows, in place of the file's.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="A model, in place of the file's.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where the runs' folders go.  [default: the file's, or runs/FILE]"),
    ] = None,
    judge: Annotated[str | None, typer.Option("--judge", "-j", help="As for score, in place of the file's.")] = None,
    settings: SetOpt = None,
    as_in_book: BookOpt = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace runs there that are other ones.")] = False,
    processes: Annotated[bool, typer.Option("--processes", help="Each run in a process of its own.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Several runs and a table of what they came to. Goes on where it was stopped; finished runs are kept."""
    from instil.recipes.sweep_file import Overrides, read_sweep

    over = Overrides(data, model, out, judge, tuple(settings or ()), as_in_book)
    read_sweep(file, over)  # refused before anything heavy loads
    from instil.recipes.sweep import sweep

    done = sweep(file, over, overwrite=overwrite, processes=processes)
    if as_json:
        print_json(done.as_json())
    else:
        _show(done)
    done.check()


def _show(done: Swept) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    typer.echo()
    console.print(_table(done.table))
    for note in done.table.notes():
        console.print(note, markup=False, style="dim")
    typer.echo(f"\ntable: {done.path / 'sweep.html'} (also sweep.md, sweep.csv, sweep.json)")


def _table(found: SweepTable) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False, pad_edge=False)
    for number, head in enumerate(found.columns()):
        table.add_column(Text(head), justify="right" if 0 < number < len(found.columns()) - 2 else "left")
    for row in found.rows:
        table.add_row(*map(Text, found.cells(row)), style="red" if row.status == "failed" else "")
    return table
