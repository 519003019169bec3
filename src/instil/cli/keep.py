"""The verbs that look at what a run lost: keep, and blend, which gives some of it back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instil.cli.options import JsonOpt, print_json
from instil.cli.show import show_lines

commands = typer.Typer()

RunArg = Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.")]


@commands.command("keep")
def keep_command(
    run: RunArg,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what was measured already.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """What was lost? Base against tuned model on general texts, small skills, refusals and chats."""
    from instil.recipes.keep.keep import keep
    from instil.screen import Screen

    found = keep(run, again=again, screen=Screen())
    if as_json:
        print_json(found.as_json())
    else:
        show_lines(found.lines())


@commands.command("blend")
def blend_command(
    run: RunArg,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FOLDER", help="Save the chosen mixture as a model here.")
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Answer the test rows with it, too, and compare; they choose nothing.")
    ] = False,
    as_json: JsonOpt = False,
) -> None:
    """Give it back: mixtures of base and tuned weights, and which keeps 98 % of the gain with the least loss."""
    from instil.recipes.keep.blend import blend
    from instil.screen import Screen

    found = blend(run, save=save, test=test, screen=Screen())
    if as_json:
        print_json(found.as_json())
    else:
        show_lines(found.lines())
