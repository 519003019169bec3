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
