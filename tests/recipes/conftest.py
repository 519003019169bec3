"""One small run that several tests look at; who changes it takes a copy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import instil
from tests.conftest import rows

SEPARATORS = "\u2028 \u2029 \x85 \x0b \x1c"  # str.splitlines() cuts at each of them, JSON Lines at none


@pytest.fixture(scope="session")
def plain_run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the template "plain" on forty rows of a file, every one with line separators in its text."""
    folder = tmp_path_factory.mktemp("plain")
    lines = [
        json.dumps({**row, "instruction": f"{row['instruction']}{SEPARATORS}!"}, ensure_ascii=False) for row in rows(40)
    ]
    (folder / "rows.jsonl").write_bytes("\n".join(lines).encode())
    return instil.finetune(
        folder / "rows.jsonl",
        model=tiny_folder,
        out=folder / "run",
        template="plain",
        max_steps=2,
        max_new_tokens=3,
    ).path


@pytest.fixture
def copied_run(plain_run: Path, tmp_path: Path) -> Path:
    """That run to be damaged."""
    return Path(shutil.copytree(plain_run, tmp_path / "run"))
