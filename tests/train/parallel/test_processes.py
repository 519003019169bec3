"""Several processes compute what one does, whatever is trained: losses, evaluations and weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from instil.train.parallel.processes import Processes
from instil.train.ranks import ALONE, Ranks
from tests.train.parallel.pool import Pool
from tests.train.test_state import CASES

SAME = {"bfloat16": 0.05}  # rounds sums that are added up in another order otherwise; others by 1e-12
WORLDS = (2, 4)


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, Pool]]:
    made = {world: Pool(world) for world in WORLDS}
    yield made
    for pool in made.values():
        pool.close()


def trained(ranks: Ranks, name: str, sharded: bool = False) -> dict[str, Any]:
    """All that a training leaves but times, in float64."""
    if sharded:
        ranks = Processes(ranks.rank, ranks.world, sharded=True)
    model, result = CASES[name].run([], ranks=ranks, double=name not in SAME)
    records = [asdict(one) | {"seconds": 0.0, "tokens_per_second": 0.0} for one in result.records]
    del model
    return {"records": records, "steps": result.steps, "best": result.best_step}


SOME = ("full", "untied, rows read", "tokens", "lora", "kto")  # with four; others only where there is time
slow = pytest.mark.slow
ALL = [pytest.param(name, 2) for name in CASES] + [
    pytest.param(name, 4, marks=() if name in SOME else slow) for name in CASES
]


@pytest.mark.parametrize(("name", "world"), ALL)
def test_together_they_compute_what_one_does(name: str, world: int, pools: dict[int, Pool]) -> None:
    wanted = trained(ALONE, name)
    for found in pools[world].call(trained, name):
        assert (found["steps"], found["best"]) == (wanted["steps"], wanted["best"])
        for one, other in zip(found["records"], wanted["records"], strict=True):
            assert_near(one, other, f"step {one['step']}", SAME.get(name, 1e-12))


def assert_near(found: Any, wanted: Any, where: str, rel: float) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key, value in wanted.items():
            assert_near(found[key], value, f"{where}, {key}", rel)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=rel, abs=rel), where
    else:
        assert found == wanted, where


IN_PARTS = [name for name in CASES if "patience" not in name]  # which keeps whole models


@pytest.mark.parametrize("name", IN_PARTS)
def test_with_parts_of_weights_they_compute_it_too(name: str, pools: dict[int, Pool]) -> None:
    wanted = trained(ALONE, name)
    for found in pools[2].call(trained, name, True):
        assert (found["steps"], found["best"]) == (wanted["steps"], wanted["best"])
        for one, other in zip(found["records"], wanted["records"], strict=True):
            assert_near(one, other, f"step {one['step']}", SAME.get(name, 1e-12))
