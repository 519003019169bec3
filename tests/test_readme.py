"""The README cannot lie: its commands, options, settings and Python parts exist and do what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from instil.cli import app
from instil.settings.resolve import known_settings

ROOT = Path(__file__).parents[1]
TEXT = "\n".join(
    path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
)
SOURCE = sorted((ROOT / "src" / "instil").rglob("*.py"))
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


def test_no_verb_is_promised_that_is_not_there() -> None:
    """In running text, in docstrings and in messages; a name after `instil` is a verb or `python -m instil`."""
    verbs = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for text in (TEXT, *(path.read_text(encoding="utf-8") for path in SOURCE)):
        assert set(re.findall(r"(?<![\w./])`{0,2}instil ([a-z]+)(?= [A-Z-]|`)", text)) - {"import"} <= verbs


# Where something stopped is said to go on, and the test that holds it. Sweeps and probes take no --resume yet.
GOES_ON = {
    "README.md": "tests/faults/test_judge_faults.py::test_a_judge_that_dies_at_row_57_and_comes_back",
    "docs/exercises.md": "tests/e2e/test_sweep.py::test_killed_it_goes_on_with_the_next_run",
    "docs/book.md": "tests/recipes/test_synthesize.py::test_a_model_that_dies_and_comes_back_ends_in_the_same_bytes",
    "docs/house.md": "tests/test_downloads.py::test_a_later_call_goes_on_too",
    "docs/data.md": "tests/test_downloads.py::test_a_later_call_goes_on_too",
    "docs/scale.md": "tests/e2e/test_processes.py::test_one_that_dies_ends_all_and_the_run_goes_on",
    "docs/resume.md": "tests/recipes/test_resume.py::test_a_killed_training_ends_as_one_that_was_not",
    "docs/runs.md": "tests/recipes/test_resume.py::test_a_killed_training_ends_as_one_that_was_not",
    "docs/many_rows.md": "tests/tasks/pairs/test_many_pairs.py::test_a_build_that_was_killed_goes_on_to_the_same_bytes",
    "docs/worth.md": "tests/recipes/test_more.py::test_a_quarter_twice_and_half_are_trained_on_and_kept",
}
PROMISE = r"goes on where|same command goes on|taken up|take up|resum|--resume|in the middle"


def test_nothing_is_said_to_go_on_that_does_not() -> None:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        name = str(path.relative_to(ROOT))
        said = path.read_text(encoding="utf-8")
        if name == "docs/log.md":
            continue  # what was tried
        assert bool(re.search(PROMISE, said)) <= (name in GOES_ON), name
    for test in GOES_ON.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", TEXT, re.MULTILINE)):
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
