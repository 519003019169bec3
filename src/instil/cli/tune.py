"""The verbs that tune and look beforehand: run, train, plan, inspect."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instil.cli.microscope import show_inspection
from instil.cli.options import (
    BookOpt,
    ConfigOpt,
    DataArg,
    ExtendOpt,
    ForceOpt,
    JsonOpt,
    MapOpt,
    MethodOpt,
    ModelOpt,
    OutOpt,
    OverwriteOpt,
    ProcessesOpt,
    ResumeOpt,
    SetOpt,
    chosen_settings,
    print_json,
)
from instil.cli.paper import (
    EfficiencyOpt,
    GpuMemoryOpt,
    GpusOpt,
    LinkOpt,
    NodesOpt,
    TflopsOpt,
    planned_on_paper,
)
from instil.cli.show import show_lines, show_plan, show_run
from instil.cli.tables import show_paper
from instil.errors import UserError
from instil.stopping import let_through

if TYPE_CHECKING:
    from instil.settings.options import Settings
    from instil.train.ranks import Ranks

commands = typer.Typer()


@commands.command("run")
def run_command(
    data: DataArg = "starter",
    model: ModelOpt = "smollm2-135m",
    out: OutOpt = None,
    method: MethodOpt = None,
    mapping: MapOpt = None,
    settings: SetOpt = None,
    config: ConfigOpt = None,
    as_in_book: BookOpt = False,
    overwrite: OverwriteOpt = False,
    resume: ResumeOpt = False,
    extend: ExtendOpt = False,
    force: ForceOpt = False,
    processes: ProcessesOpt = 1,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="A first verdict within this time (60s, 5m), on a part of rows and steps; again for the whole run.",
        ),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """The whole job: check the data, answer the held-out rows, train, answer again, score, report."""
    since = time.perf_counter()
    chosen = chosen_settings(
        settings, config, as_in_book=as_in_book, methods=method, mapping=mapping
    )  # refused before anything heavy loads
    if budget is not None:
        if resume or extend or processes > 1:
            raise UserError("--budget is for a first look by one process; leave --resume, --extend and --processes out")
        if _first(data, model, out, chosen, budget, since, overwrite=overwrite, as_json=as_json):
            return
    _tune(
        data,
        model,
        out,
        chosen,
        overwrite=overwrite,
        resume=resume or (budget is not None and not overwrite),
        extend=extend,
        force=force,
        processes=processes,
        as_json=as_json,
        answers=True,
    )


@commands.command("train")
def train_command(
    data: DataArg = "starter",
    model: ModelOpt = "smollm2-135m",
    out: OutOpt = None,
    method: MethodOpt = None,
    mapping: MapOpt = None,
    settings: SetOpt = None,
    config: ConfigOpt = None,
    as_in_book: BookOpt = False,
    overwrite: OverwriteOpt = False,
    resume: ResumeOpt = False,
    extend: ExtendOpt = False,
    force: ForceOpt = False,
    processes: ProcessesOpt = 1,
    as_json: JsonOpt = False,
) -> None:
    """Training alone: no answers before or after. With --method dpo the rows are preference pairs."""
    chosen = chosen_settings(
        settings, config, as_in_book=as_in_book, methods=method, mapping=mapping
    )  # refused before anything heavy loads
    _tune(
        data,
        model,
        out,
        chosen,
        overwrite=overwrite,
        resume=resume,
        extend=extend,
        force=force,
        processes=processes,
        as_json=as_json,
        answers=False,
    )


@commands.command("plan")
def plan_command(
    data: Annotated[str | None, typer.Argument(help="The rows, as for run.  [default: starter]")] = None,
    model: ModelOpt = "smollm2-135m",
    data_option: Annotated[str | None, typer.Option("--data", help="The same, as an option.")] = None,
    method: MethodOpt = None,
    mapping: MapOpt = None,
    settings: SetOpt = None,
    config: ConfigOpt = None,
    as_in_book: BookOpt = False,
    gpus: GpusOpt = None,
    gpu_memory: GpuMemoryOpt = None,
    nodes: NodesOpt = None,
    gpu_tflops: TflopsOpt = None,
    efficiency: EfficiencyOpt = None,
    gpu_link: LinkOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Time and memory of a run: on this machine from a few timed steps, or, with --gpus, on others by arithmetic.

    Leaves nothing behind. With --gpus no weights are loaded, and of a model on the hub only config.json is fetched.
    """
    if data is not None and data_option is not None:
        raise UserError("the rows are given twice; leave out --data")
    chosen = chosen_settings(
        settings, config, as_in_book=as_in_book, methods=method, mapping=mapping
    )  # refused before anything heavy loads
    rows = data or data_option or "starter"
    of_gpus = {
        "--gpu-memory": gpu_memory,
        "--nodes": nodes,
        "--gpu-tflops": gpu_tflops,
        "--efficiency": efficiency,
        "--gpu-link": gpu_link,
    }
    if gpus is not None:
        given = _as_given(method, mapping, settings, config, as_in_book=as_in_book)
        on_paper = planned_on_paper(
            rows, model, chosen, given, gpus, gpu_memory, nodes, gpu_tflops, efficiency, gpu_link
        )
        if as_json:
            print_json(on_paper.as_json())
        else:
            show_paper(on_paper)
        return
    if idle := [name for name, value in of_gpus.items() if value is not None]:
        raise UserError(f"{idle[0]} is for GPUs that are not here; say how many there are: --gpus 8")
    from instil.recipes.plan.plan import plan

    made = plan(rows, model, chosen)
    if as_json:
        print_json(made.as_json())
    else:
        show_plan(made)


def _as_given(
    method: list[str] | None,
    mapping: list[str] | None,
    settings: list[str] | None,
    config: Path | None,
    *,
    as_in_book: bool,
) -> list[str]:
    """Options that another verb takes, too, as they were given."""
    named = {"--method": method, "--map": mapping, "--set": settings, "--config": [str(config)] if config else None}
    given = [part for name, values in named.items() for value in values or [] for part in (name, value)]
    return [*given, *(["--as-in-book"] if as_in_book else [])]


@commands.command("inspect")
def inspect_command(
    data: DataArg = "starter",
    model: ModelOpt = "smollm2-135m",
    row: Annotated[list[int] | None, typer.Option("--row", "-r", help="Number of a row (from 0).")] = None,
    suspicious: Annotated[bool, typer.Option("--suspicious", help="Rows that are worth a look, and why.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write the rows and all findings as a page, too.")] = None,
    method: MethodOpt = None,
    mapping: MapOpt = None,
    settings: SetOpt = None,
    config: ConfigOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Pre-flight, and the mask microscope: which tokens of a row are trained on, only read, cut or padding."""
    chosen = chosen_settings(settings, config, methods=method, mapping=mapping)
    from instil.recipes.inspect import inspect
    from instil.screen import Screen

    found = inspect(data, model, chosen, row or [], suspects=suspicious, html=html, screen=Screen())
    if as_json:
        print_json(found.as_json())
    else:
        show_inspection(found, html)
    found.preflight.refuse()


def _tune(
    data: str,
    model: str,
    out: Path | None,
    settings: Settings,
    *,
    overwrite: bool,
    resume: bool,
    extend: bool,
    force: bool,
    processes: int,
    as_json: bool,
    answers: bool,
) -> None:
    from instil.train.parallel.launch import end_with_launcher, launch
    from instil.train.parallel.processes import joined, restarted, started

    if overwrite and resume:
        raise UserError("--overwrite replaces the run that --resume goes on with; leave one of them out")
    if (extend or force) and not resume:
        raise UserError(f"{'--extend' if extend else '--force'} is for a run that goes on; add --resume")
    if processes > 1 and started():
        raise UserError("these processes are started already (by torchrun, say), so leave --processes out")
    if processes > 1:
        raise typer.Exit(launch(_without(sys.argv[1:], "--processes"), processes))
    import instil.recipes.run.run  # noqa: F401 - now, since libraries swallow a signal that comes as they are imported

    let_through()
    end_with_launcher()
    with joined(sharded=settings.train.shard == "full", device=settings.train.device) as ranks:
        if ranks.rank:
            raise typer.Exit(_follow(data, model, settings, ranks))
        again = restarted()
        _run(
            data,
            model,
            out,
            settings,
            ranks,
            overwrite=overwrite and not again,
            resume=resume or again,
            extend=extend,
            force=force,
            as_json=as_json,
            answers=answers,
        )


def _run(
    data: str,
    model: str,
    out: Path | None,
    settings: Settings,
    ranks: Ranks,
    *,
    overwrite: bool,
    resume: bool,
    extend: bool,
    force: bool,
    as_json: bool,
    answers: bool,
) -> None:
    from instil.recipes.run.run import run

    finished = run(
        data, model, out or _usual_place(data, model), settings,
        overwrite=overwrite, resume=resume, extend=extend, force=force, answers=answers, ranks=ranks,
    )  # fmt: skip
    if as_json:
        print_json(finished.as_json())
    else:
        show_run(finished)


def _usual_place(data: str, model: str) -> Path:
    """Where a run goes that nobody has named a place for."""
    from instil.data.files.places import short_name
    from instil.files import plain_name

    return Path("runs") / f"{short_name(data)}-{plain_name(model)}"


def _first(
    data: str,
    model: str,
    out: Path | None,
    settings: Settings,
    budget: str,
    since: float,
    *,
    overwrite: bool,
    as_json: bool,
) -> bool:
    """Make and show the first verdict; whether there is one now, so that the whole run is for another time."""
    from instil.recipes.run.first import first_verdict, seconds_of

    place = out or _usual_place(data, model)
    found = first_verdict(data, model, place, settings, seconds_of(budget), since=since, again=overwrite)
    if found is None:
        return False
    if as_json:
        print_json(found.as_json())
    else:
        show_lines(found.lines())
    return True


def _follow(data: str, model: str, settings: Settings, ranks: Ranks) -> int:
    """What a process does that is not the first, which alone shows what happens; the exit code."""
    from instil.recipes.run.follow import follow
    from instil.stopping import Stopped

    try:
        return follow(data, model, settings, ranks)
    except Stopped as stopped:
        return 128 + stopped.number


def _without(arguments: list[str], option: str) -> list[str]:
    """Arguments without an option that has a value."""
    left, skip = [], False
    for one in arguments:
        if skip or one == option:
            skip = not skip
        elif not one.startswith(f"{option}="):
            left.append(one)
    return left
