"""A training of several processes goes on with one, two or four of them, whoever held which part of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from instil.runs.checkpoints import Checkpoints
from instil.runs.saving import SavesCheckpoints
from instil.runs.sharded import ShardedCheckpoints, WritesItsPart
from instil.screen import Screen
from instil.train.observer import Observer
from instil.train.parallel.processes import Processes
from instil.train.ranks import ALONE, Ranks
from tests.train.parallel.pool import Pool
from tests.train.parallel.test_processes import assert_near
from tests.train.test_state import CASES

UNTIED = "llama, clipped, warmed"  # of whose embedding one process trains some rows only
HOW = ("alone", "2 in parts", "2", "4", "4 in parts")


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, Pool]]:
    made = {world: Pool(world) for world in (2, 4)}
    yield made
    for pool in made.values():
        pool.close()


def going_on(ranks: Ranks, name: str, folder: Path, sharded: bool, resume: bool) -> list[dict[str, Any]]:
    """The records of a training that is saved every four steps, from its last checkpoint on if it goes on."""
    if not ranks.alone:
        ranks = Processes(ranks.rank, ranks.world, sharded=sharded)
    checkpoints = ShardedCheckpoints(folder, keep=5, ranks=ranks) if sharded else Checkpoints(folder, keep=5)
    state = Checkpoints(folder).newest().state if resume else None
    if resume:
        assert state is not None
        assert state.progress.done == 4
    watching: list[Observer] = [WritesItsPart(ranks)] if sharded else []
    if ranks.rank == 0:
        watching = [] if resume else [SavesCheckpoints(checkpoints, "4", Screen(quiet=True))]
    _, result = CASES[name].run(watching, state, ranks=ranks, double=True)
    return [asdict(one) | {"seconds": 0.0, "tokens_per_second": 0.0} for one in result.records]


def by(how: str, pools: dict[int, Pool], *given: Any) -> list[dict[str, Any]]:
    """What the first process says."""
    name, folder, resume = given
    if how == "alone":
        return going_on(ALONE, name, folder, False, resume)
    first: list[dict[str, Any]] = pools[int(how[0])].call(going_on, name, folder, "parts" in how, resume)[0]
    return first


WAYS = [
    pytest.param(name, first, then, marks=() if (name, first) == (UNTIED, "2 in parts") else pytest.mark.slow)
    for name in (UNTIED, "lora")
    for first in ("2 in parts", "4 in parts", "2")
    for then in HOW
]


@pytest.mark.parametrize(("name", "first", "then"), WAYS)
def test_others_go_on(name: str, first: str, then: str, pools: dict[int, Pool], tmp_path: Path) -> None:
    wanted = by(first, pools, name, tmp_path, False)
    keep_first(tmp_path)
    found = by(then, pools, name, tmp_path, True)
    if then == first:
        assert found == wanted  # to the last bit
    for one, other in zip(found, wanted, strict=True):
        assert_near(one, other, f"step {one['step']}", 1e-12)


def keep_first(folder: Path) -> None:
    """Let the checkpoint after step 4 be the newest."""
    for later in Checkpoints(folder).complete():
        if not later.name.endswith("4"):
            for file in later.iterdir():
                file.unlink()
            later.rmdir()
