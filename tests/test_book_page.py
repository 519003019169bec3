"""docs/book.md cannot lie: its functions, tests, settings and commands exist, and no choice of the book is left out."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from instil.cli import app
from instil.recipes.run.run import run
from instil.screen import Screen
from instil.settings.options import Settings
from instil.settings.presets import AS_IN_BOOK
from instil.settings.resolve import known_settings, resolve
from tests.conftest import rows

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "book.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"`([^`]+)`", TEXT.replace("```", ""))
COMMANDS = sorted({line for line in (*QUOTED, *TEXT.splitlines()) if re.match(r"instil [a-z]+ \S", line)})
PROGRAMS = sorted({quoted for quoted in QUOTED if quoted.startswith("python ")})
NAMES = sorted({name for name in QUOTED if re.fullmatch(r"instil(\.\w+)+", name)})
TESTS = sorted(set(re.findall(r"tests/[\w/]+\.py::\w+", TEXT)))


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the table under a heading, by their first cell."""
    part = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in cells}


@pytest.mark.parametrize("name", NAMES)
def test_every_function_can_be_imported(name: str) -> None:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        assert callable(found) and found.__doc__
        return
    raise AssertionError(name)


@pytest.mark.parametrize("test", TESTS)
def test_every_test_exists(test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_given(command: str) -> None:
    """Parsed by the command line itself, without being run; its settings resolved, its data and model known."""
    group = typer.main.get_command(app)
    words = shlex.split(command)[1:]
    with group.make_context("instil", list(words)) as context:
        name, chosen, rest = group.resolve_command(context, words)  # type: ignore[attr-defined]
        with chosen.make_context(name, rest, parent=context) as parsed:
            given = parsed.params
    resolve(as_in_book=given.get("as_in_book", False), assignments=given.get("settings") or [])
    assert given.get("model") in (None, "gpt2-medium", "runs/book")


@pytest.mark.parametrize("command", PROGRAMS)
def test_every_program_knows_its_options(command: str) -> None:
    words = shlex.split(command)
    shown = subprocess.run([sys.executable, ROOT / words[1], "--help"], capture_output=True, text=True, check=True)
    for word in words[2:]:
        assert not word.startswith("--") or word in shown.stdout, word


def test_there_is_something_to_check() -> None:
    assert min(len(COMMANDS) - 10, len(NAMES) - 10, len(TESTS) - 20, len(PROGRAMS) - 2) >= 0


def test_every_setting_that_is_named_exists_with_its_value() -> None:
    named = set(re.findall(r"\b((?:data|train|generate)\.[a-z_]+=[\w.-]+)", TEXT))
    assert len(named) >= 15
    for assignment in named:
        resolve(assignments=[assignment])
    bare = set(re.findall(r"`((?:data|train|generate)\.[a-z_]+)`", TEXT))
    assert bare <= known_settings().keys()


def test_every_choice_of_the_book_that_is_not_the_default_is_explained() -> None:
    explained = " ".join(cell for row in table("What differs by default").values() for cell in row)
    default = Settings().model_dump()
    for section, choices in AS_IN_BOOK.items():
        for name, value in choices.items():
            if default[section][name] != value:
                said = re.findall(rf"`{section}\.{name}=(\S+?)`", explained)
                wanted = resolve(as_in_book=True).model_dump()[section][name]
                given = [resolve(assignments=[f"{section}.{name}={v}"]).model_dump()[section][name] for v in said]
                assert wanted in given, f"{section}.{name}"


def test_what_the_page_says_of_defaults_is_so() -> None:
    data, train, generate = Settings().data, Settings().train, Settings().generate
    assert (data.template, data.split, data.max_length) == ("auto", "book", 1024)
    assert (train.epochs, train.batch_size, train.weight_decay, train.warmup, train.clip) == (4, 8, 0.1, 0.0, 0.0)
    assert (train.seed, generate.temperature, generate.max_new_tokens) == (123, 0.0, 256)
    assert (train.learning_rate, train.schedule, train.eval_every) == (1e-4, "cosine", 25)
    assert (data.train_on, generate.header, train.untie_head, train.drop_last) == ("response", True, False, False)


@pytest.mark.parametrize(
    ("heading", "keys"),
    [
        ("The listings", [f"7.{n}" for n in range(1, 12)]),
        ("The exercises", ["7.1", "7.2, the book's way", "7.2, the clean way", "7.3", "7.4"]),
    ],
)
def test_every_listing_and_exercise_has_function_command_and_test(heading: str, keys: list[str]) -> None:
    found = table(heading)
    assert list(found) == keys
    for key, (_, function, command, test, *_) in found.items():
        assert re.search(r"`instil\.\w+|`\w+` in `examples/", function), key
        assert re.fullmatch(r"`(instil|python) [^`]+`", command), key
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", test), key


def test_every_mended_thing_has_its_proof() -> None:
    for what, cells in table("What is mended for good").items():
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", cells[-1]), what


def test_exercise_7_3_works_on_rows_of_its_kind(tiny_folder: Path, tmp_path: Path) -> None:
    """Its command on fewer rows: one without an output is listed, one beyond the limit is cut and named."""
    (found,) = (command for command in COMMANDS if command.startswith("instil run alpaca"))
    given = [word for word in shlex.split(found) if "=" in word]
    made = rows(40)
    made[3]["output"] = ""
    made[5]["output"] = "word " * 600
    file = tmp_path / "alpaca.json"
    file.write_text(json.dumps(made))
    settings = resolve(as_in_book=True, assignments=[*given, "train.max_steps=2"])
    finished = run(file, tiny_folder, tmp_path / "run", settings, answers=False, screen=Screen(quiet=True))
    report = (finished.path / "report.html").read_text()
    assert "1 row of the file was left out" in report
    assert "1 row is longer than 512 tokens" in report
    assert (settings.train.batch_size, settings.data.max_length) == (4, 512)
