"""The verbs that make several runs: sweep and probe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instil.cli.options import (
    BookOpt,
    ConfigOpt,
    DataArg,
    JsonOpt,
    MapOpt,
    MethodOpt,
    ModelOpt,
    SetOpt,
    chosen_settings,
    print_json,
)
from instil.cli.show import show_rates, show_sweep
from instil.errors import UserError

commands = typer.Typer()


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
    mapping: MapOpt = None,
    settings: SetOpt = None,
    as_in_book: BookOpt = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace runs there that are other ones.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where it was stopped, as the same command does anyway.")
    ] = False,
    processes: Annotated[bool, typer.Option("--processes", help="Each run in a process of its own.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Several runs and a table of what they came to. Goes on where it was stopped; finished runs are kept."""
    del resume
    from instil.recipes.sweep.file import Overrides, read_sweep

    mapped = (f"data.map={','.join(mapping)}",) if mapping else ()
    over = Overrides(data, model, out, judge, (*(settings or ()), *mapped), as_in_book)
    read_sweep(file, over)  # refused before anything heavy loads
    from instil.recipes.sweep.sweep import sweep

    done = sweep(file, over, overwrite=overwrite, processes=processes)
    if as_json:
        print_json(done.as_json())
    else:
        show_sweep(done)
    done.check()


@commands.command("probe")
def probe_command(
    data: DataArg = "starter",
    model: ModelOpt = "smollm2-135m",
    rates: Annotated[
        str, typer.Option("--rates", metavar="R,R,...", help="Rates to try.  [default: six about the method's usual]")
    ] = "",
    steps: Annotated[
        int,
        typer.Option("--steps", min=0, help="Of each first run.  [default: a thirtieth of the real run's, 10 to 100]"),
    ] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A folder for probe.png and probe.json.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take over the runs that lie in --out already; make the others.")
    ] = False,
    method: MethodOpt = None,
    mapping: MapOpt = None,
    settings: SetOpt = None,
    config: ConfigOpt = None,
    as_in_book: BookOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """A learning rate for these rows and this model: short runs judged by validation rows, the better half going on."""
    chosen = chosen_settings(
        settings, config, as_in_book=as_in_book, methods=method, mapping=mapping
    )  # before anything heavy loads
    try:
        wanted = [float(rate) for rate in rates.split(",") if rate.strip()]
    except ValueError as error:
        raise UserError(f"--rates {rates}: wanted numbers with commas between, such as 1e-5,1e-4") from error
    if rates and not wanted:
        raise UserError(f"--rates {rates}: no number in it; wanted some, such as 1e-5,1e-4, or no --rates")
    from instil.recipes.probe import probe

    found = probe(data, model, chosen, rates=wanted, steps=steps, out=out, resume=resume)
    if as_json:
        print_json(found.as_json())
    else:
        show_rates(found, out)
