"""Imports only look down: a file imports its own room or lower floors, wherever in the file it does so."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "instil"
FLOOR = {
    "errors": 0, "screen": 0, "files": 0, "machine": 0, "stopping": 0, "version": 0, "layouts": 0,
    "records": 1, "batches": 1, "settings": 1, "downloads": 2, "hub": 2, "gguf_header": 2,
    "data": 3, "model": 3, "train": 4, "generate": 4, "ask": 4, "evaluate": 5, "tasks": 5, "runs": 6, "assistant": 7,
    "serve": 8, "synthesis": 8, "recipes": 9, "cli": 10,
}  # fmt: skip
# Rooms on one floor that have nothing to say to one another.
APART = [
    {"data", "model"}, {"train", "generate"}, {"train", "ask"}, {"generate", "ask"}, {"evaluate", "tasks"},
    {"serve", "synthesis"},  {"downloads", "gguf_header"},
]  # fmt: skip
ENTRY_POINT = re.compile(r"instil(\.\w+)+:\w+")
NETWORK = {"socket", "urllib", "http", "httpx", "httpx2", "requests", "huggingface_hub", "aiohttp"}
NETWORK_AT_HOME = {"downloads.py", "hub.py", "model/find.py", "ask/http.py", "serve/server.py", "serve/protocol.py"}
NETWORK_ROOMS = ("serve/", "train/parallel/")


def run_parts(source: str) -> Iterator[ast.AST]:
    """All that a source consists of, without what is for annotations only."""
    rest: list[ast.AST] = [ast.parse(source)]
    while rest:
        node = rest.pop()
        yield node
        annotating = isinstance(node, ast.If) and (
            getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING"
        )
        rest += node.orelse if annotating else ast.iter_child_nodes(node)


@cache  # several tests ask about each file
def modules_imported(source: str, package: str, *, annotating: bool = True) -> frozenset[str]:
    """Full names of all modules a source imports: plain, from, relative, and inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)) if annotating else run_parts(source):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
            "import_module",
            "__import__",
        ):
            found.update(a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))
    return frozenset(found)


def entry_points(source: str) -> set[str]:
    """Modules named in texts of the form ``module:name``, which are imported when they are needed."""
    texts = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {text.partition(":")[0] for text in texts if isinstance(text, str) and ENTRY_POINT.fullmatch(text)}


def rooms_imported(source: str, package: str) -> set[str]:
    """The rooms of this package that a source imports."""
    parts = (name.split(".") for name in modules_imported(source, package))
    return {name[1] for name in parts if name[0] == "instil" and len(name) > 1 and name[1] in FLOOR}


def room_of(file: Path) -> str:
    """The room a file stands in."""
    return file.relative_to(SRC).parts[0].removesuffix(".py")


FILES = sorted(file for file in SRC.rglob("*.py") if str(file.relative_to(SRC)) not in ("__init__.py", "__main__.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SRC)))
def test_imports_only_look_down(file: Path) -> None:
    room = room_of(file)
    package = ".".join(["instil", *file.relative_to(SRC).parts[:-1]])
    for other in rooms_imported(file.read_text(encoding="utf-8"), package):
        assert {room, other} not in APART, f"{file}: {room} may not import {other}"
        assert other == room or FLOOR[other] < FLOOR[room] or FLOOR[room] == FLOOR[other] == 0, (
            f"{file}: {room} may not import {other}"
        )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SRC)))
def test_only_the_table_of_losses_names_what_stands_above_it(file: Path) -> None:
    """Each line of it says where its function is; who computes with it loads it, the table itself never does."""
    named = entry_points(file.read_text(encoding="utf-8"))
    assert not named or (str(file.relative_to(SRC)), named) == ("settings/losses.py", {"instil.tasks.pairs.losses"})


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SRC)))
def test_the_network_is_used_in_its_rooms_only(file: Path) -> None:
    where = str(file.relative_to(SRC))
    found = modules_imported(file.read_text(encoding="utf-8"), "instil")
    used = {
        name.split(".")[0] for name in found if not name.startswith("urllib.parse")
    } & NETWORK  # parsing asks nobody
    assert not used or where in NETWORK_AT_HOME or where.startswith(NETWORK_ROOMS), f"{where} uses {used}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SRC)))
def test_one_room_talks_to_other_processes(file: Path) -> None:
    where, found = str(file.relative_to(SRC)), modules_imported(file.read_text(encoding="utf-8"), "instil")
    assert where.startswith("train/parallel/") or not any(name.startswith("torch.distributed") for name in found)


@pytest.mark.parametrize("reference", ["transformers", "trl", "peft"])
def test_the_core_never_imports_its_references(reference: str) -> None:
    for file in SRC.rglob("*.py"):
        found = modules_imported(file.read_text(encoding="utf-8"), "instil")
        assert not any(name.split(".")[0] == reference for name in found), file


def test_every_room_has_a_floor_and_there_are_files() -> None:
    assert len(FILES) > 30
    assert {room_of(file) for file in FILES} <= FLOOR.keys()


@pytest.mark.parametrize(
    "source",
    [
        "from instil import train",
        "def f():\n    import instil.train.loop",
        "from ..train import loop",
        "from .. import train",
        "from importlib import import_module\nimport_module('instil.train')",
    ],
)
def test_no_way_of_importing_is_overlooked(source: str) -> None:
    assert rooms_imported(source, "instil.data") == {"train"}


def files_imported(source: str, package: str, modules: set[str]) -> set[str]:
    """Those of the modules that running a source imports, at once or inside of a function."""
    return set(modules_imported(source, package, annotating=False) & modules)


def circle_in(imports: dict[str, set[str]]) -> list[str]:
    """A way along imports that comes back to where it began, or nothing."""
    done: set[str] = set()

    def follow(path: list[str]) -> list[str]:
        for other in sorted(imports[path[-1]]):
            if other in path:
                return [*path[path.index(other) :], other]
            if other not in done and (circle := follow([*path, other])):
                return circle
        done.add(path[-1])
        return []

    return next(filter(None, (follow([module]) for module in sorted(imports) if module not in done)), [])


def test_no_circle_of_files() -> None:
    """No file comes back to itself along imports, those inside of functions included.

    What stands under ``if TYPE_CHECKING`` is no import here: it is for annotations, never run, and such a name cannot
    be used in any other way. A room's ``__init__`` is a file like others; only what a file takes from that of its own
    room is not followed, because ``from instil.room import file`` names the room, too.
    """
    imports: dict[str, set[str]] = {}
    for file in FILES:
        parts = ["instil", *file.relative_to(SRC).with_suffix("").parts]
        imports[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = set()
    for file in FILES:
        parts = ["instil", *file.relative_to(SRC).with_suffix("").parts]
        name, package = ".".join(parts[:-1] if parts[-1] == "__init__" else parts), ".".join(parts[:-1])
        found = files_imported(file.read_text(encoding="utf-8"), package, set(imports))
        imports[name] = {other for other in found if not name.startswith(f"{other}.")} - {name}
    circle = circle_in(imports)
    assert not circle, f"a circle of files: {' -> '.join(circle)}"


def test_a_circle_is_found_wherever_its_imports_stand() -> None:
    modules = {"instil.a", "instil.b", "instil.c"}
    sources = {
        "instil.a": "from instil import b",
        "instil.b": "def f():\n    from instil.c import name",
        "instil.c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import instil.a",
    }
    imports = {name: files_imported(source, "instil", modules) for name, source in sources.items()}
    assert imports == {"instil.a": {"instil.b"}, "instil.b": {"instil.c"}, "instil.c": set()}
    assert circle_in(imports) == []
    imports["instil.c"] = files_imported("if True:\n    from .a import name", "instil", modules)
    assert circle_in(imports) == ["instil.a", "instil.b", "instil.c", "instil.a"]


def test_the_command_line_prints_in_one_place() -> None:
    """Commands hand what recipes give them to functions of ``cli/show.py`` and ``cli/show_verdicts.py``; ``options.py``
    writes the JSON.

    ``microscope.py`` shows tokens, which takes colours, ``tables.py`` what is fitted to the terminal's width, and
    ``live.py`` what is drawn again and again.
    """
    for file in (SRC / "cli").glob("*.py"):
        source = file.read_text(encoding="utf-8")
        if file.name not in ("show.py", "options.py", "microscope.py", "tables.py", "live.py"):
            assert ".echo(" not in source and ".secho(" not in source, file
            assert not any(name.split(".")[0] == "rich" for name in modules_imported(source, "instil.cli")), file
    for file in (SRC / "recipes").rglob("*.py"):
        found = modules_imported(file.read_text(encoding="utf-8"), "instil.recipes")
        assert not any(name.split(".")[0] in ("rich", "typer") for name in found), file


def test_no_file_is_much_over_four_hundred_lines() -> None:
    long = {str(f): n for f in FILES if (n := len(f.read_text(encoding="utf-8").splitlines())) > 420}
    assert not long
