"""``instil serve``: models over HTTP, and a page to talk with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from instil.cli.options import Bf16Opt, Int8Opt, SetOpt, chosen_settings

commands = typer.Typer()


@commands.command("serve")
def serve_command(
    models: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders, or any models; NAME=PATH names one.")
    ],
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; beyond this machine a key is wanted.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", help="0 takes a free one.")] = 8000,
    base: Annotated[
        bool, typer.Option("--base/--no-base", help="Serve what a run was tuned from as well, as NAME:base.")
    ] = True,
    int8: Int8Opt = False,
    bf16: Bf16Opt = False,
    template: Annotated[str | None, typer.Option("--template", help="For models that carry none.")] = None,
    under_way: Annotated[
        int, typer.Option("--under-way", min=1, max=10_000, help="Requests at once; more are told to come back.")
    ] = 64,
    rows: Annotated[
        int, typer.Option("--rows", min=1, max=1024, help="Answers that one model makes side by side.")
    ] = 32,
    folder: Annotated[
        Path, typer.Option("--folder", help="Where the page writes kept rows and pairs.", show_default="here")
    ] = Path(),
    runs: Annotated[
        Path | None,
        typer.Option("--runs", help="The folder whose runs are shown.", show_default="that of the first RUN"),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="Holds the key that clients give; so does INSTIL_API_KEY.")
    ] = None,
    host_names: Annotated[
        list[str] | None, typer.Option("--host-name", help="A further name by which clients reach the server.")
    ] = None,
    origins: Annotated[
        list[str] | None, typer.Option("--origin", help="A page of another server that may ask: https://NAME.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of what fails.")] = False,
    settings: SetOpt = None,
) -> None:
    """Serve models: OpenAI's and Ollama's interfaces, and a page at / to talk with them."""
    from instil.serve.extra import need_extra

    need_extra()
    from instil.recipes.serve import Serving, serve
    from instil.runs.folder import RUN_FILE
    from instil.screen import Screen

    changed = chosen_settings(settings, None, only="generate").generate.model_dump(exclude_unset=True)
    root = runs
    if root is None:
        first = next((Path(one.partition("=")[2] or one) for one in models), Path())
        root = first.resolve().parent if (first / RUN_FILE).is_file() else None
    serving = Serving(
        host=host,
        port=port,
        base=base,
        int8=int8,
        bf16=bf16,
        template=template,
        under_way=under_way,
        rows=rows,
        folder=folder,
        root=root,
        key_file=key_file,
        host_names=host_names or (),
        origins=origins or (),
        generate=changed,
        debug=debug,
    )
    serve(models, serving, os.environ, Screen())
