"""A run that was made of a model by a path relative to some folder is looked at from any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instil.assistant.assistant import load
from instil.cli.chat import _Chat
from instil.errors import ModelError
from instil.recipes.base_of_run import base_of
from instil.recipes.chat import Conversation, Side
from instil.recipes.export.export import export
from instil.recipes.keep.blend import blend
from instil.recipes.keep.keep import keep
from instil.recipes.more.more import more
from instil.recipes.rivals.rivals import rivals
from instil.recipes.run.run import finetune
from instil.recipes.serve import Serving, loaded
from instil.recipes.verify import verify
from instil.runs.folder import RunFolder
from instil.screen import Screen
from tests.conftest import rows

QUIET = Screen(quiet=True)


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters whose model was called by a relative path."""
    place = tmp_path_factory.mktemp("beside")
    shutil.copytree(tiny_folder, place / "models" / "base")
    (place / "rows.json").write_text(json.dumps(rows(80)))
    with pytest.MonkeyPatch.context() as there:
        there.chdir(place)
        finetune(
            "rows.json", model="models/base", out="run", template="plain", method="lora", lora={"rank": 2}, max_steps=2,
            max_new_tokens=3,
        )  # fmt: skip
    return place / "run"


def versus(run: Path) -> list[Side]:
    """The sides of a chat with the run's base beside it."""
    assistant = load(run)
    talk = Conversation([Side("", assistant)], assistant.options, run)
    _Chat(talk, str(run)).versus()
    return talk.sides


ASKED: dict[str, Callable[[Path, Path], Any]] = {
    "keep": lambda run, out: keep(run, again=True, screen=QUIET),
    "blend": lambda run, out: blend(run, screen=QUIET),
    "rivals": lambda run, out: not rivals(run, screen=QUIET).notes,
    "more": lambda run, out: more(run, screen=QUIET),
    "verify": lambda run, out: verify(run, screen=QUIET).answered["base"],
    "export, base's numbers": lambda run, out: export(run, "hf", out / "hf", screen=QUIET),
    "export, adapters": lambda run, out: export(run, "gguf-lora", out / "lora.gguf", screen=QUIET),
    "adapters on their base": lambda run, out: load(run.parent / "models" / "base", adapter=run),
    "chat": lambda run, out: len(versus(run)) == 2,
    "serve": lambda run, out: len(loaded({"mine": str(run)}, Serving(), QUIET)) == 2,
}


@pytest.mark.parametrize("what", ASKED)
def test_from_another_folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert ASKED[what](made, tmp_path)


def test_the_path_is_that_of_the_run_or_where_it_was_moved_to(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, base = RunFolder(made), made.parent / "models" / "base"
    assert run.read_settings()["model"] == "models/base"
    assert run.base() == str(base)
    moved = base.rename(base.with_name("moved"))
    try:
        assert run.base() == str(base)  # which an error names
        with pytest.raises(ModelError, match="models/base"):
            base_of(run)
        monkeypatch.chdir(made.parent)
        assert run.base() == str(base)
        moved.rename(base)
        changed = run.read_settings()
        monkeypatch.setattr(RunFolder, "read_settings", lambda self: {**changed, "model_path": "/gone/base"})
        assert run.base() == "models/base"  # all of it lies elsewhere by now
        monkeypatch.setattr(
            RunFolder, "read_settings", lambda self: {**changed, "model": "smollm2-135m", "model_path": ""}
        )
        assert run.base() == "smollm2-135m"
    finally:
        if moved.exists():
            moved.rename(base)
