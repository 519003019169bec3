"""The verbs that look at runs: runs and watch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instil.cli.live import show_live, show_once
from instil.cli.options import JsonOpt, print_json
from instil.cli.show import show_lines
from instil.cli.tables import confirmed, show_pruned, show_runs
from instil.errors import UserError

commands = typer.Typer()


@commands.command("verify")
def verify_command(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    rows: Annotated[int, typer.Option("--rows", min=0, help="Rows that are answered once more; 0: none.")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which ones are drawn.")] = 0,
    as_json: JsonOpt = False,
) -> None:
    """Is it so? Files, scores and figures of a run are computed again, and some answers made once more."""
    from instil.recipes.verify import verify
    from instil.screen import Screen

    found = verify(run, rows=rows, seed=seed, screen=Screen())
    if as_json:
        print_json(found.as_json())
    else:
        show_lines(found.lines())
    if not found.good:
        raise typer.Exit(1)


@commands.command("runs")
def runs_command(
    folder: Annotated[Path, typer.Argument(help="Where the runs lie, or one of them.")] = Path("runs"),
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Remove checkpoints: of finished runs, and of stopped ones, for which it asks apart."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; those of stopped runs stay.")] = False,
    stopped: Annotated[
        bool, typer.Option("--stopped", help="With --yes: those of runs that did not finish, too.")
    ] = False,
    as_json: JsonOpt = False,
) -> None:
    """The runs of a folder: state, model, data, steps, losses, scores before and after, age and size on disk."""
    if yes and not prune:
        raise UserError("--yes goes with --prune")
    if stopped and not yes:
        raise UserError("--stopped goes with --prune --yes; without --yes it is asked")
    from instil.recipes.runs import list_runs, question
    from instil.recipes.runs import prune as remove

    found = list_runs(folder)
    if not prune:
        if as_json:
            print_json(found.as_json())
        else:
            show_runs(found)
        return
    chosen = []
    for finished in (True, False):
        runs = found.with_checkpoints(finished=finished)
        wanted = finished or stopped if yes else bool(runs) and confirmed(question(runs, finished=finished))
        chosen += runs if wanted else []
    done = remove(chosen)
    if as_json:
        print_json(list_runs(folder).as_json(done))
    else:
        show_pruned(done)
    done.check()


@commands.command("watch")
def watch_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
    once: Annotated[bool, typer.Option("--once", help="Show how it stands now, and end.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """A run as it goes on: losses, speed, time left, last answers. Ends with the run; q or Ctrl-C leaves it alone."""
    from instil.recipes.watch import follow

    following = follow(run)
    if as_json:
        print_json(following.look().as_json())
    elif once:
        show_once(following.look())
    else:
        show_live(following)
