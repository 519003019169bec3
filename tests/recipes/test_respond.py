"""Answers of a run: with rounded weights where they are asked for, and with the products that it was made with."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.testing

from instil.assistant import assistant
from instil.cli.chat import commands as chat_commands
from instil.cli.models import commands as model_commands
from instil.errors import SettingsError
from instil.model.fast import gemm
from instil.recipes.respond import respond_one, respond_rows, stream_one
from instil.recipes.serve import Serving, loaded
from instil.runs.folder import RUN_FILE
from instil.screen import Screen
from instil.settings.options import Settings


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How weights were asked to be held, of each model that was loaded."""
    found: list[str] = []
    plain = assistant.round_weights
    monkeypatch.setattr(
        assistant, "round_weights", lambda decoder, weights: (found.append(weights), plain(decoder, weights))
    )
    return found


def asked(commands: typer.Typer, *arguments: object) -> typer.testing.Result:
    """What a command says to one question."""
    return typer.testing.CliRunner().invoke(commands, [str(one) for one in arguments], input="Go.\n")


def command(name: str) -> typer.Typer:
    """A command by itself."""
    alone = typer.Typer()
    (found,) = (
        one for one in model_commands.registered_commands + chat_commands.registered_commands if one.name == name
    )
    alone.registered_commands.append(found)
    return alone


@pytest.mark.parametrize("kind", ["int8", "bf16", "fp32"])
def test_weights_are_held_as_the_command_line_says(plain_run: Path, held: list[str], kind: str) -> None:
    flags = [] if kind == "fp32" else [f"--{kind}"]
    one = asked(command("respond"), plain_run, "-i", "Go.", "--json", *flags)
    assert one.exit_code == 0, one.output
    assert (f'"weights": "{kind}"' in one.stdout) == bool(flags)
    for more in (["-i", "Go."], []):
        said = asked(command("respond"), plain_run, *more, *flags)
        assert said.exit_code == 0
        assert ("not exactly the model's" in said.output) == bool(flags)
    assert asked(command("chat"), plain_run, *flags).exit_code == 0
    loaded({"mine": str(plain_run)}, Serving(int8=kind == "int8", bf16=kind == "bf16"), Screen(quiet=True))
    assert held == [kind] * 6  # a run is served with its base


def test_both_kinds_are_none(plain_run: Path) -> None:
    with pytest.raises(SettingsError, match="choose one"):
        respond_one(str(plain_run), "Go.", "", None, Settings(), int8=True, bf16=True)


ASKED: dict[str, Callable[[str], object]] = {
    "one": lambda run: respond_one(run, "Go.", "", None, Settings()),
    "pieces": lambda run: list(stream_one(run, "Go.", "", None, Settings())),
    "rows": lambda run: respond_rows(run, None, None, None, Settings(), Screen(quiet=True)),
}


@pytest.mark.parametrize("how", ASKED)
@pytest.mark.parametrize("found", gemm.PRODUCTS)
def test_what_the_run_has_measured_is_not_measured_again(
    copied_run: Path, how: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where it was made elsewhere, or its file says nothing of that kind."""
    used: list[str] = []
    plain = assistant.load_decoder
    monkeypatch.setenv("INSTIL_GEMM", "")
    monkeypatch.setattr(assistant, "load_decoder", lambda *a, **b: (used.append(gemm._before), plain(*a, **b))[1])
    file, before = copied_run / RUN_FILE, gemm._before
    stored = re.sub("^products = .*$", f'products = "{found}"', file.read_text(), flags=re.M)
    for old, new in (
        ("^products", "products"),
        ("^processor = .*$", 'processor = "another"'),
        ("^products = .*$", 'products = "another"'),
        ("^products = .*$", "products = 3"),
        (r"^\[versions\]$", "[of_old]"),
    ):
        changed, count = re.subn(old, new, stored, flags=re.M)
        assert count == 1
        file.write_text(changed)
        ASKED[how](str(copied_run))
        assert gemm._before == before
    assert used == [found, before, before, before, before]
