"""Trainings on a GPU that is pretended: they end as on the CPU, and the host waits for a step once.

A tensor of the CPU among those of the GPU, and each time that the host waits, would be seen on a real one alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from instil.batches import Batch
from instil.data.collate import collate
from instil.data.loader import Loader
from instil.model.decoder import Decoder
from instil.model.frozen import quantise_base
from instil.model.lora import add_lora
from instil.model.token_rows import train_rows
from instil.settings.options import DpoOptions, TrainOptions
from instil.tasks.pairs.batches import collate_pairs
from instil.tasks.pairs.losses import Preference, reference_log_probs
from instil.train.loop import train
from instil.train.losses import held_out_loss
from instil.train.objective import Likelihood, Objective, look
from instil.train.optimizer import AdamWInBackward
from instil.train.step import take_step
from tests.closeness import assert_e1
from tests.gpu.pretended import GPU, Mixed, OnGpu, PretendedGpu, from_gpu, to_gpu
from tests.train.test_state import some_pairs
from tests.train.test_training import SPECS, decoder, some_rows


def batches(layout: str, micro: int = 0) -> list[Batch]:
    return next(Loader(some_rows(), 6, pad_id=0, layout=layout, micro_batch=micro).steps())  # type: ignore[arg-type]


def prepared(how: str, family: str) -> Decoder:
    model = decoder(family)
    if how in ("lora", "few bits"):
        if how == "few bits":
            quantise_base(model, "nf4")
        add_lora(model, rank=2, alpha=4.0)
        for layer in model.modules():  # B is zero at first, which would hide mistakes
            if hasattr(layer, "lora_b"):
                torch.nn.init.normal_(layer.lora_b, std=0.3) if layer.inside_TO is None else None
    if how == "token rows":
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        train_rows(model, [3, 5, 11])
    return model


def step_of(
    model: Decoder,
    step: Sequence[Batch],
    objective: Objective,
    *,
    clip: float = 0.0,
    precision: str = "fp32",
    check: Callable[[Any], None] = lambda found: None,
) -> tuple[float, list[torch.Tensor]]:
    """The loss of a step, and the weights after two of them."""
    optimizer = AdamWInBackward(model.parameters(), weight_decay=0.1, clip=clip)
    optimizer.learning_rate = 1e-2
    loss, _, metrics = take_step(model, step, optimizer, objective, precision)
    take_step(model, step, optimizer, objective, precision)
    check(metrics)
    optimizer.close()
    return loss.total, [from_gpu(one.detach()) for one in model.parameters() if one.requires_grad]


@pytest.mark.parametrize(
    ("how", "family", "layout"),
    [
        *(("full", family, "shared") for family in SPECS),
        *(("full", family, "padded") for family in ("gpt2", "gemma3", "lfm2")),
        *((how, "llama", "shared") for how in ("lora", "few bits")),
        ("token rows", "gpt2", "padded"),
    ],
)
def test_a_step_is_the_same_and_waited_for_once(how: str, family: str, layout: str) -> None:
    step, objective = batches(layout, micro=4), Likelihood()
    model = prepared(how, family)
    with PretendedGpu() as gpu:
        there = to_gpu(copy.deepcopy(model))
        found = step_of(there, step, objective)
    assert len(step) == 2
    wanted = step_of(model, step, objective)
    assert found[0] == pytest.approx(wanted[0], rel=1e-12)
    assert_e1(found[1], wanted[1], within=1e-9)
    assert len(gpu.waits) == 2, gpu.waits  # two steps, each of two micro-batches


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_clipped_step_is_waited_for_once(clip: float) -> None:
    step = batches("shared")
    with PretendedGpu() as gpu:
        found = step_of(to_gpu(decoder()), step, Likelihood(), clip=clip)
    wanted = step_of(decoder(), step, Likelihood(), clip=clip)
    assert_e1(found[1], wanted[1], within=1e-9)
    assert len(gpu.waits) == 2, gpu.waits


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("how", ["full", "lora"])
def test_a_step_in_bfloat16_is_near_and_waited_for_once(how: str, checkpointing: bool) -> None:
    step = batches("shared")
    found = []
    for pretended in (True, False):
        model = prepared(how, "llama").float()
        model.gradient_checkpointing = checkpointing
        if not pretended:
            found.append(step_of(model, step, Likelihood())[0])
            continue
        with PretendedGpu() as gpu:
            found.append(step_of(to_gpu(model), step, Likelihood(), precision="bf16")[0])
            assert all(one.dtype == torch.float32 for one in model.parameters() if one.is_floating_point())
        assert len(gpu.waits) == 2, gpu.waits
    assert found[0] == pytest.approx(found[1], rel=0.02) and found[0] != found[1]


@pytest.mark.parametrize(
    ("loss", "layout"), [("dpo", "shared"), ("dpo", "padded"), ("orpo", "shared"), ("kto", "shared")]
)
def test_a_step_of_pairs_is_the_same(loss: str, layout: str) -> None:
    def made() -> list[Batch]:
        return [collate_pairs(some_pairs(4)[at : at + 2], layout=layout) for at in (0, 2)]  # type: ignore[arg-type]

    told: list[Any] = []
    objective = Preference(DpoOptions(loss=loss))
    with PretendedGpu() as gpu:
        found = step_of(to_gpu(decoder()), made(), objective, check=told.append)
    wanted = step_of(decoder(), made(), objective, check=told.append)
    assert found[0] == pytest.approx(wanted[0], rel=1e-9)
    assert_e1(found[1], wanted[1], within=1e-9)
    assert told[0] == pytest.approx(told[1], rel=1e-9)
    assert len(gpu.waits) <= 4, gpu.waits  # for the loss, and, when all is done, for what else is told


def test_what_a_reference_thinks_is_read_at_once() -> None:
    batch = collate_pairs(some_pairs(4))
    with PretendedGpu() as gpu:
        found = reference_log_probs(to_gpu(decoder()), batch)
    assert len(gpu.waits) == 1, gpu.waits
    wanted = reference_log_probs(decoder(), batch)
    flat = [[value for pair in one for side in pair for value in side] for one in (found, wanted)]
    assert flat[0] == pytest.approx(flat[1], rel=1e-9)


@pytest.mark.parametrize("scores", [1, 400])
def test_a_head_in_pieces_and_a_table_in_pieces_wait_no_more(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that are too many are made some at a time; so is the gradient of a table that is embedding and head."""
    step, model = batches("shared"), decoder("gpt2")
    wanted = step_of(model, step, Likelihood())
    also = held_out_loss(model, step)
    monkeypatch.setattr("instil.train.head_loss.LARGEST_SCORES", scores)
    monkeypatch.setattr("instil.train.head_loss.CHEAP_SCORES", scores)
    monkeypatch.setattr("instil.model.fast.tied.PIECE", 300)
    monkeypatch.setattr("instil.model.fast.tied.GPU_PIECE", 300)
    monkeypatch.setattr("instil.train.optimizer.SMALL", 0)
    with PretendedGpu() as gpu:
        there = to_gpu(decoder("gpt2"))
        found = step_of(there, step, Likelihood())
        looked = held_out_loss(there, step, there.device)
    assert_e1(found[1], wanted[1], within=1e-9)
    assert looked.total == pytest.approx(also.total, rel=1e-9)
    assert len(gpu.waits) == 3, gpu.waits


def test_an_evaluation_is_waited_for_once() -> None:
    several = [collate([row], pad_id=0) for row in some_rows()]
    with PretendedGpu() as gpu:
        found, _ = look(Likelihood(), to_gpu(decoder()), several)
    wanted, _ = look(Likelihood(), decoder(), several)
    assert found.total == pytest.approx(wanted.total, rel=1e-12) and found.tokens == wanted.tokens
    assert len(gpu.waits) == 1, gpu.waits


@pytest.mark.parametrize("seen", [False, True])
def test_a_whole_training_is_the_same(seen: bool) -> None:
    """With an embedding of which only some rows are trained, too; each step is fetched while the one before is under
    way."""
    options = TrainOptions(epochs=2, batch_size=4, learning_rate=1e-2, eval_every=2)
    loader = Loader(some_rows(), 4, pad_id=0)
    ids = loader.ids() if seen else ()
    validation = [collate(some_rows()[:3], pad_id=0)]
    with PretendedGpu(lane=True) as gpu:
        there = to_gpu(decoder())
        found = train(there, loader, options, validation=validation, seen_ids=ids)
    model = decoder()
    wanted = train(model, Loader(some_rows(), 4, pad_id=0), options, validation=validation, seen_ids=ids)
    told = [[(one.train_loss, one.val_loss) for one in result.records] for result in (found, wanted)]
    assert [one for one, _ in told[0][1:]] == pytest.approx([one for one, _ in told[1][1:]], rel=1e-9)
    assert_e1(
        [from_gpu(one.detach()) for one in there.parameters()],
        [one.detach() for one in model.parameters()],
        within=1e-8,
    )
    assert gpu.waits


def test_a_loss_that_is_no_number_changes_nothing_there_either() -> None:
    """What the host does not know before it asks, the update asks on the GPU."""
    model = decoder()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")  # type: ignore[index]
    step = batches("shared", micro=4)
    before = [one.detach().clone() for one in model.parameters()]
    with PretendedGpu() as gpu:
        there = to_gpu(model)
        optimizer = AdamWInBackward(there.parameters(), weight_decay=0.1)
        optimizer.learning_rate = 1e-2
        loss, _, _ = take_step(there, step, optimizer, Likelihood(), "fp32")
        states = [from_gpu(one) for state in optimizer.state.values() for one in state]
    assert loss.total != loss.total
    for now, then in zip(there.parameters(), before, strict=True):
        assert torch.equal(torch.nan_to_num(from_gpu(now.detach())), torch.nan_to_num(then))
    assert not any(one.any() for one in states)
    assert len(gpu.waits) == 1, gpu.waits


def test_a_tensor_of_the_cpu_is_seen() -> None:
    with PretendedGpu():
        there = OnGpu(torch.ones(2, 2))
        with pytest.raises(Mixed, match="beside one on the GPU"):
            there @ torch.ones(2, 2)
        with pytest.raises(Mixed, match="beside one on the GPU"):
            there[torch.tensor([0, 1])]
        assert from_gpu(there + torch.tensor(1.0)).tolist() == [[2.0, 2.0]] * 2  # one number goes along


def test_waits_are_seen() -> None:
    with PretendedGpu() as gpu:
        there = OnGpu(torch.tensor([1.0, 0.0]))
        for wait in (
            lambda: float(there[0]), there.tolist, there.cpu, lambda: bool(there.any()),
            there.nonzero, lambda: there[there > 0], lambda: torch.unique(there),
            lambda: torch.ones(2).to(GPU), lambda: torch.tensor([1, 2], device=GPU),
            lambda: torch.ones(2).to(GPU, non_blocking=True), lambda: there.copy_(torch.ones(2)),
        ):  # fmt: skip
            with gpu.counting() as waits:
                wait()
            assert len(waits) == 1
        with gpu.counting() as waits:
            torch.ones(2).pin_memory().to(GPU, non_blocking=True)
            there.sum(), torch.zeros(2, device=GPU), there.where(there > 0, 1.0)
        assert not waits
