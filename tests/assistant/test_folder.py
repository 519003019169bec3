"""A model folder appears whole or not at all, and nothing of the user's is removed for it."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from instil.assistant.assistant import load
from instil.errors import UserError
from instil.model.files import shards
from instil.recipes.export.export import export


def test_a_folder_of_the_users_in_the_way_is_left_alone(tiny_folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out.unfinished"
    mine.mkdir()
    (mine / "notes.txt").write_text("precious")
    (mine / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"out\.unfinished is in the way and is no unfinished model; move it"):
        export(tiny_folder, "hf", tmp_path / "out")
    assert (mine / "notes.txt").read_text() == "precious"
    (mine / "notes.txt").unlink()  # as a command leaves it that was killed
    export(tiny_folder, "hf", tmp_path / "out")
    assert not mine.exists()
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {"config.json", "model.safetensors"}
    (tmp_path / "next.unfinished").write_text("a file")
    with pytest.raises(UserError, match="in the way"):
        export(tiny_folder, "hf", tmp_path / "next")


def test_nothing_is_left_where_it_cannot_be_written(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, tensors: Any) -> None:
        path.write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "write_safetensors", full)
    with pytest.raises(OSError, match="No space left"):
        export(tiny_folder, "hf", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.02, 0.8], ids=["the beginning", "the end"])
def test_a_full_disk_is_one_line(share: float, tiny_folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails where a full disk fails."""
    limit = int(share * (tiny_folder / "model.safetensors").stat().st_size)
    program = (
        "import resource, sys; from instil.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"sys.argv = ['instil', 'export', {str(tiny_folder)!r}, '--to', 'hf', '--out', 'out']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.rstrip().splitlines()[-1] == (
        "instil: out.unfinished/model.safetensors: File too large; make room there, or choose another place"
    )
    assert not list(tmp_path.iterdir())


def test_tokenizers_are_saved_as_they_were(tiny_folder: Path, tmp_path: Path) -> None:
    """Through our own writing, to the bytes that the package itself writes."""
    export(tiny_folder, "hf", tmp_path / "out")
    from tokenizers import Tokenizer

    Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).save(str(tmp_path / "theirs.json"))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "theirs.json").read_bytes()
    assert load(tmp_path / "out").template is not None
