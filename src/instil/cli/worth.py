"""The verbs that ask whether tuning was worth it: rivals and more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instil.cli.options import JsonOpt, print_json
from instil.cli.show import show_lines
from instil.cli.show_verdicts import show_rivals
from instil.errors import UserError

commands = typer.Typer()


@commands.command("rivals")
def rivals_command(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    against: Annotated[
        list[str] | None, typer.Option("--against", metavar="MODEL", help="Another model, by name or path; repeatable.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option("--instruction", help="What the base is told before the question.")
    ] = None,
    shots: Annotated[
        str, typer.Option("--shots", metavar="N,N,...", help="Numbers of examples, chosen among on validation rows.")
    ] = "1,2,4,8",
    as_json: JsonOpt = False,
) -> None:
    """Was it needed? The tuned model beside its base as it is, instructed, and shown training rows; beside others."""
    try:
        counts = [int(one) for one in shots.split(",") if one.strip()]
    except ValueError as error:
        raise UserError(f"--shots {shots}: wanted whole numbers with commas between them, such as 1,2,4") from error
    from instil.recipes.rivals.rivals import INSTRUCTION, rivals
    from instil.screen import Screen

    told = INSTRUCTION if instruction is None else instruction
    if not told.strip():
        raise UserError("--instruction is blank; leave it out, and the base is told to answer with what is asked for")
    found = rivals(run, instruction=told, shots=counts, others=against or (), screen=Screen())
    if as_json:
        print_json(found.as_json())
    else:
        show_rivals(found)


@commands.command("more")
def more_command(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    as_json: JsonOpt = False,
) -> None:
    """What would more rows bring? Runs on a quarter and half of them, and a law. Goes on where it was stopped."""
    from instil.recipes.more.more import more
    from instil.screen import Screen

    found = more(run, screen=Screen())
    if as_json:
        print_json(found.as_json())
    else:
        show_lines(found.lines())
