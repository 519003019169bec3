"""The verb that lists the settings."""

from __future__ import annotations

import typer

from instil.cli.options import JsonOpt, print_json
from instil.cli.show import show_settings

commands = typer.Typer()


@commands.command("settings")
def settings_command(as_json: JsonOpt = False) -> None:
    """Every setting with its default and its meaning."""
    from instil.settings.options import Settings
    from instil.settings.resolve import known_settings

    if as_json:
        print_json(Settings().model_dump())
    else:
        show_settings(known_settings())
