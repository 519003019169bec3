"""Folders sent to the hub: all files in one commit, or one clear line and nothing there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from instil.errors import SettingsError, UserError
from instil.recipes.export.export import export
from tests.hub_server import TOKEN, HubServer, hub_server
from tests.recipes.test_export_gguf import folder_of


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("base") / "model", "llama", max_position_embeddings=256)


def asked(hub: HubServer, work: Path, code: str, *arguments: str, token: str = TOKEN) -> str:
    """What a process says that sends something to this hub."""
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(work / "cache"), "HF_TOKEN": token, "NO_PROXY": "*",
        "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    for name in ("HF_HUB_OFFLINE", *(["HF_TOKEN"] if not token else [])):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr if done.returncode else done.stdout


COMMAND = "from instil.cli import main; main()"
PUSHES = """
import sys
from pathlib import Path
from instil.errors import UserError
from instil.hub import check_push, push
folder, *names = sys.argv[1:]
for name in names:
    try:
        check_push(name)
        print(push(Path(folder), name, public=True))
    except UserError as error:
        print(error)
"""


def test_a_folder_comes_to_the_hub_as_one_commit(hub: HubServer, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    how = ("export", str(model), "--to", "hf", "--out", str(out), "--template", "chatml", "--push", "me/mine", "--json")
    assert json.loads(asked(hub, tmp_path, COMMAND, *how))["pushed"] == f"{hub.url}/me/mine"
    files = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert hub.files == files
    assert "model.safetensors" in files
    assert len(hub.commits) == 1
    assert hub.repositories["me/mine"]["visibility"] == "private"


def test_what_the_hub_does_not_take(hub: HubServer, model: Path, tmp_path: Path) -> None:
    """One line; where it stopped half-way the repository is gone again."""
    hub.repositories["me/there"] = {}
    said = asked(hub, tmp_path, PUSHES, str(model), "mine", "me/-- x", "me/there", "you/mine", "me/new").splitlines()
    assert said[0] == "--push mine: wanted OWNER/NAME"
    assert said[1] == "--push me/-- x: not an id on the hub; wanted OWNER/NAME"
    assert said[2] == "--push me/there: is on the hub already; choose another name"
    assert said[3].startswith("--push you/mine: the token may not write there; take one with the right to write")
    assert said[4] == f"{hub.url}/me/new"
    assert hub.repositories["me/new"]["visibility"] == "public"
    hub.fails = {"/commit/": 400}
    hub.files.clear()
    (line,) = asked(hub, tmp_path, PUSHES, str(model), "me/half").splitlines()
    assert line.startswith("--push me/half: the hub did not take it (")
    assert line.endswith("; nothing of it is there, and the folder is kept")
    assert hub.asked[-1] == "DELETE /api/repos/delete"
    assert "me/half" not in hub.repositories
    assert not hub.files
    (line,) = asked(hub, tmp_path, PUSHES, str(model), "me/mine", token="").splitlines()
    assert line.endswith("the hub wants to know who sends it: hf auth login (or set HF_TOKEN)")


def test_nothing_is_written_for_a_name_that_is_taken(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(name: str) -> None:
        raise UserError(f"--push {name}: is on the hub already")

    monkeypatch.setattr("instil.recipes.export.export.check_push", taken)
    with pytest.raises(UserError, match="me/mine: is on the hub already"):
        export(model, "hf", tmp_path / "out", push_to="me/mine")
    assert not list(tmp_path.iterdir())


def test_only_folders_are_sent(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="it goes with --to hf"):
        export(model, "gguf", tmp_path / "x.gguf", push_to="me/mine")
    with pytest.raises(SettingsError, match="--public goes with --push"):
        export(model, "hf", tmp_path / "x", public=True)
    assert not list(tmp_path.iterdir())
