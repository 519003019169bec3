"""The verb that checks this machine."""

from __future__ import annotations

import typer

from instil.cli.options import JsonOpt, ModelOpt, print_json
from instil.cli.tables import show_selftest

commands = typer.Typer()


@commands.command("selftest")
def selftest_command(model: ModelOpt = "smollm2-135m", as_json: JsonOpt = False) -> None:
    """Is what is promised true here? Layouts, micro-batches, resuming, adapters, decoding, export, on this machine."""
    from instil.recipes.selftest.selftest import selftest

    done = selftest(model)
    if as_json:
        print_json(done.as_json())
    else:
        show_selftest(done)
    done.check()
