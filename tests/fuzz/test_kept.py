"""What broke a promise once, and what the search begins with, through their targets, without atheris."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.fuzz.__main__ import main
from tests.fuzz.names import MODULES, target
from tests.fuzz.promise import keep

KEPT = Path(__file__).parent / "kept"


@pytest.mark.parametrize("path", sorted(KEPT.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_kept_inputs_end_in_a_result_or_an_error_of_ours(path: Path) -> None:
    keep(target(path.parent.name), path.read_bytes())


@pytest.mark.parametrize("name", MODULES)
def test_good_inputs_keep_the_promise(name: str) -> None:
    chosen = target(name)
    seeds = list(chosen.seeds())
    assert seeds
    for seed in seeds:
        keep(chosen, seed)
        assert len(seed) <= chosen.longest


def test_without_atheris_the_command_is_named_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["json"]) == 2
    assert "pip install 'instil[fuzz]'" in capsys.readouterr().err
