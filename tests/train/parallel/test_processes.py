"""Several processes compute what one does, whatever is trained: losses, evaluations and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from instil.model.decoder import RMSNorm
from instil.model.fast.gemm import Linear
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


@pytest.mark.parametrize("name", CASES)
def test_with_parts_of_weights_they_compute_it_too(name: str, pools: dict[int, Pool]) -> None:
    wanted = trained(ALONE, name)
    for found in pools[2].call(trained, name, True):
        assert (found["steps"], found["best"]) == (wanted["steps"], wanted["best"])
        for one, other in zip(found["records"], wanted["records"], strict=True):
            assert_near(one, other, f"step {one['step']}", SAME.get(name, 1e-12))


def in_bfloat16(ranks: Ranks, name: str) -> tuple[list[float], set[tuple[str, torch.dtype]]]:
    """The losses of a training in parts with products in bfloat16, and in which types weights were read."""
    read: set[tuple[str, torch.dtype]] = set()
    ranks, case = Processes(ranks.rank, ranks.world, sharded=True), CASES[name]
    with pytest.MonkeyPatch.context() as patch:
        for what, kind in (("linear", Linear), ("norm", RMSNorm), ("norm", torch.nn.LayerNorm)):

            def noted(self: Any, x: Tensor, what: str = what, whole: Callable[..., Any] = kind.forward) -> Any:
                read.add((what, self.weight.dtype))
                return whole(self, x)

            patch.setattr(kind, "forward", noted)
        _, result = replace(case, options=case.options | {"precision": "bf16"}).run([], ranks=ranks)
    return [one.train_loss for one in result.records if one.train_loss is not None], read


@pytest.mark.parametrize("name", ["llama, clipped, warmed", "recomputed", "lora", "accumulated", "lora, dora"])
def test_linear_layers_are_gathered_as_products_read_them(name: str, pools: dict[int, Pool]) -> None:
    """And norms as they are held, so that the stream is no coarser than autocast leaves it."""
    case = CASES[name]
    _, alone = replace(case, options=case.options | {"precision": "bf16"}).run([])
    wanted = [one.train_loss for one in alone.records if one.train_loss is not None]
    for losses, read in pools[2].call(in_bfloat16, name):
        assert losses == pytest.approx(wanted, rel=0.01)
        assert ("norm", torch.float32) in read
        assert ("norm", torch.bfloat16) not in read
        if "lora" not in name:  # which do not call their base's
            assert ("linear", torch.bfloat16) in read
            assert ("linear", torch.float32) not in read
