"""Activations made again are those that were not kept, bit by bit."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any
from weakref import WeakSet

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instil.data.loader import Loader
from instil.model.decoder import Block, Decoder
from instil.model.fast.gemm import Linear
from instil.model.fast.recompute import recomputed
from instil.model.lora import add_lora
from instil.records import EncodedPair
from instil.settings.options import DpoOptions, TrainOptions
from instil.tasks.pairs.batches import PairCollator
from instil.tasks.pairs.losses import Preference
from instil.train.loop import train
from instil.train.objective import Likelihood, Objective
from tests.model.fast.test_fused import compare
from tests.train.test_training import decoder, some_rows

FAMILIES = ["gpt2", "llama", "gemma3", "qwen3", "gemma2", "olmo3", "lfm2"]
ROWS = some_rows(11)


def pairs() -> list[EncodedPair]:
    """Two answers each to a prompt of two ids, some of which begin alike."""
    made = []
    for row, other in pairwise(ROWS):
        chosen, rejected = (replace(row, ids=(*row.ids[:2], *one.ids[2:]), trained=one.trained) for one in (row, other))
        made.append(EncodedPair(chosen, rejected, range(2, len(chosen.ids)), range(2, len(rejected.ids))))
    return made


def tuned(model: Decoder, loader: Any, measured: Objective, **options: Any) -> tuple[list[float], dict[str, Any]]:
    """The losses of some steps, and every weight after them."""
    chosen = TrainOptions(epochs=2, batch_size=4, learning_rate=1e-2, eval_every=0, **options)
    records = train(model, loader, chosen, objective=measured).records
    return [record.train_loss for record in records if record.train_loss is not None], model.state_dict()


@pytest.mark.parametrize("how", ["all", "lora", "few", "bf16", "clip", "parts", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_the_same_bit_by_bit(family: str, how: str) -> None:
    options: dict[str, Any] = {
        "bf16": {"precision": "bf16"},
        "clip": {"clip": 0.3},
        "parts": {"micro_batch": 3},
    }.get(how, {})
    made = []
    for again in (False, True):
        model = decoder(family)
        if how in ("lora", "few"):  # nothing below the first adapter has a gradient
            add_lora(model, rank=2, targets=("all",) if how == "lora" else ("down",))
        if how == "few":
            for block in model.blocks[:-1]:
                block.requires_grad_(False)
        if how == "untied":
            model.untie()
        if how == "bf16":
            model.float()
        loader = Loader(ROWS, 4, pad_id=0, micro_batch=options.get("micro_batch", 4))
        made.append(tuned(model, loader, Likelihood(), gradient_checkpointing=again, **options))
        assert not model.gradient_checkpointing  # it ends with the training
    assert made[0][0] == made[1][0]
    assert made[0][0][0] != made[0][0][-1]
    assert all(torch.equal(value, made[1][1][name]) for name, value in made[0][1].items())


def test_so_is_preference_tuning() -> None:
    made = []
    for again in (False, True):
        loader = Loader(pairs(), 4, pad_id=0, micro_batch=3, collator=PairCollator)
        objective = Preference(DpoOptions(loss="orpo"))
        made.append(tuned(decoder(), loader, objective, objective="dpo", gradient_checkpointing=again, micro_batch=3))
    assert made[0][0] == made[1][0]
    assert all(torch.equal(value, made[1][1][name]) for name, value in made[0][1].items())


class Held:
    """A tensor that autograd holds for backward."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def test_blocks_run_twice_and_keep_their_input_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    real = Block.forward

    def forward(self: Block, *args: Any) -> Any:
        runs.append(self.attention.layer)
        return real(self, *args)

    monkeypatch.setattr(Block, "forward", forward)
    batch = next(Loader(ROWS, 11, pad_id=0).steps())[0]
    bytes_held = {}
    for again in (False, True):
        model, held = decoder("llama"), WeakSet[Held]()
        model.gradient_checkpointing = again
        runs.clear()
        with torch.autograd.graph.saved_tensors_hooks(partial(remember, held), lambda one: one.tensor):
            hidden = model(batch)
        gc.collect()
        bytes_held[again] = sum(one.tensor.nbytes for one in held)
        hidden.sum().backward()
        assert runs == ([0, 1, 1, 0] if again else [0, 1])
    assert bytes_held[True] < bytes_held[False] / 4
    runs.clear()
    with torch.no_grad():
        model(batch)
    assert runs == [0, 1]


def remember(held: WeakSet[Held], tensor: torch.Tensor) -> Held:
    found = Held(tensor.detach())  # with its history it would hold itself
    held.add(found)
    return found


@pytest.mark.parametrize("cheap", [F.gelu, torch.nn.LayerNorm(8, dtype=torch.float64)])
@pytest.mark.parametrize("bias", [False, True])
def test_what_is_made_again_gives_the_same_gradients(cheap: Any, bias: bool) -> None:
    linear = Linear(8, 5, bias=bias, dtype=torch.float64)
    x = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    inputs = [x, *linear.parameters(), *(cheap.parameters() if isinstance(cheap, torch.nn.Module) else ())]
    compare(linear(recomputed(cheap, x)), linear(cheap(x)), inputs)


def test_what_is_made_again_is_not_kept() -> None:
    linear = Linear(32, 4, bias=False)
    x = torch.randn(64, 32, requires_grad=True)
    made: list[weakref.ref[Tensor]] = []

    def cheap(x: Tensor) -> Tensor:
        result = x * 2  # keeps nothing itself
        made.append(weakref.ref(result.untyped_storage()))
        return result

    y = linear(recomputed(cheap, x))
    assert made[0]() is None
    y.sum().backward()
    assert len(made) == 2
    assert linear.weight.grad is not None
    torch.testing.assert_close(linear.weight.grad, (2 * x).sum(0).expand(4, -1))


def test_a_graph_is_let_go_of_at_once() -> None:
    """What makes a value again must not hold the graph it is a part of."""
    linear = Linear(4, 4)
    x = torch.randn(2, 4, requires_grad=True) * 1
    y = linear(recomputed(F.gelu, x))
    seen = weakref.ref(y)
    inner = weakref.ref(x)
    del x, y
    assert seen() is None
    assert inner() is None
