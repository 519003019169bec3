"""What broke a promise once, and the good inputs that the search begins with, through their targets, without atheris."""

from __future__ import annotations

from pathlib import Path

import pytest

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
