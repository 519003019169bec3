"""The README cannot lie: its commands, options, settings and Python parts exist and do what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from instil.cli import app
from instil.settings.resolve import known_settings

ROOT = Path(__file__).parents[1]
TEXT = "\n".join(
    path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
)
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = sorted(
    {
        line.split("#")[0].strip().removeprefix(".venv/bin/")
        for kind, block in BLOCKS
        if kind == "bash"
        for line in block.splitlines()
        if re.match(r"(\.venv/bin/)?instil ", line)
    }
)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_exists(command: str) -> None:
    words = shlex.split(command)
    shown = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert shown.exit_code == 0, command
    for word in words[2:]:
        if word.startswith("--"):
            assert word in shown.output, f"{word} in {command!r}"


def test_every_setting_that_is_named_exists() -> None:
    named = set(re.findall(r"`?\b((?:data|train|generate)\.[a-z_]+)=", TEXT))
    assert len(named) >= 3
    assert named <= known_settings().keys()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?make ([a-z-]+)", TEXT)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_pictures_and_links_are_there() -> None:
    for name in ["README.md", "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / target).is_file(), f"{name}: {target}"


def test_the_python_parts_run(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model in place of the named one, and the rows of the README itself."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.search(r"```json\n(.*?)```", readme, re.DOTALL)
    assert rows is not None
    (tmp_path / "rows.json").write_text(rows.group(1))
    monkeypatch.chdir(tmp_path)
    parts = [block for kind, block in re.findall(r"```(\w*)\n(.*?)```", readme, re.DOTALL) if kind == "python"]
    assert len(parts) == 2
    for part in parts:
        code = part.replace('"smollm2-135m"', repr(str(tiny_folder)))
        exec(compile(code, "README.md", "exec"), {})
