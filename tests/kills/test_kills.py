"""Twelve kills, of the two hundred that `make kill-test` makes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from instil.model.fast import gemm
from tests.conftest import make_tinier
from tests.kills.killing import KINDS, Killer


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("kind", KINDS)
def test_runs_that_are_killed_end_as_runs_that_are_not(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSTIL_GEMM", "torch")
    gemm.backend.cache_clear()  # or a run goes on with another library than it was begun with here
    killer = Killer(kind, make_tinier(tmp_path / "model"), tmp_path, random.Random(kind))
    killer.go(3)
    assert killer.wrong == []
    assert killer.killed.total() == 3
