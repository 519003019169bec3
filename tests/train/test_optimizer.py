"""Updates inside backward are torch's own AdamW, bit by bit, with every way a step can go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from instil.train import optimizer as optimizer_room
from instil.train.optimizer import AdamWInBackward


def parameters() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(3))]


def losses(weights: list[Tensor], step: int) -> list[Tensor]:
    """Two micro-batches; of the second one the last parameter is no part."""
    matrix, bias = weights
    x = torch.arange(4.0) + step
    return [((x @ matrix + bias) ** 2).sum(), (x @ matrix).sin().sum()]


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("small", [0, 4, 99])  # each by itself, the bias with what is left, all together
@pytest.mark.parametrize("together", [0, 4, 14, 99])  # as many as on a GPU wait for one another
def test_updates_are_those_of_torchs_adamw(
    clip: float, small: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer_room, "SMALL", small)
    ours, theirs = parameters(), parameters()
    updates = AdamWInBackward(ours, weight_decay=0.1, clip=clip)
    updates._together = together
    optimizer = torch.optim.AdamW(theirs, lr=0.0, weight_decay=0.1, fused=True)
    for step in range(5):
        updates.learning_rate = optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
        first, second = losses(ours, step)
        updates.backward(first, last=False)
        updates.backward(second, last=True)
        updates.finish()
        for loss in losses(theirs, step):
            loss.backward()  # type: ignore[no-untyped-call]
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs, clip)
        optimizer.step()
        optimizer.zero_grad()
        for mine, wanted in zip(ours, theirs, strict=True):
            assert torch.equal(mine, wanted)
            assert mine.grad is None


def test_without_clipping_a_gradient_is_gone_before_the_next_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep in backward, the gradients above have been used already."""
    monkeypatch.setattr(optimizer_room, "SMALL", 0)
    matrix, bias = parameters()
    updates = AdamWInBackward([matrix, bias], weight_decay=0.0)
    held = []
    matrix.register_hook(lambda grad: held.append(bias.grad))
    updates.learning_rate = 0.1
    updates.backward(losses([matrix, bias], 1)[0], last=True)
    assert held == [None]
    assert matrix.grad is None
    assert all(state[0].any() for state in updates.state.values())


def test_nothing_is_updated_before_the_last_micro_batch_nor_once_closed() -> None:
    weights = parameters()
    before = [weight.detach().clone() for weight in weights]
    updates = AdamWInBackward(weights, weight_decay=0.1)
    updates.learning_rate = 0.1
    updates.backward(losses(weights, 0)[0], last=False)
    updates.close()
    losses(weights, 0)[0].backward()  # type: ignore[no-untyped-call]
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert not any(moment.any() for state in updates.state.values() for moment in state)


def test_what_is_frozen_stays() -> None:
    matrix, bias = parameters()
    matrix.requires_grad_(False)
    updates = AdamWInBackward([matrix, bias], weight_decay=0.1)
    assert updates.parameters == [bias]


def test_an_earlier_gradient_is_no_part_of_the_first_step() -> None:
    ours, theirs = parameters(), parameters()
    losses(ours, 7)[0].backward()  # type: ignore[no-untyped-call]
    for weights in (ours, theirs):
        updates = AdamWInBackward(weights, weight_decay=0.1)
        updates.learning_rate = 0.1
        updates.backward(losses(weights, 0)[0], last=True)
        updates.finish()
    assert all(torch.equal(mine, wanted) for mine, wanted in zip(ours, theirs, strict=True))


def test_what_an_interrupted_step_left_is_dropped() -> None:
    weights = parameters()
    updates = AdamWInBackward(weights, weight_decay=0.1)
    updates.backward(losses(weights, 0)[0], last=False)
    assert weights[0].grad is not None
    updates.close()
    assert weights[0].grad is None


def test_rows_given_in_pieces_get_the_update_of_the_whole() -> None:
    whole, pieces = parameters(), parameters()
    one, other = (AdamWInBackward(weights, weight_decay=0.1) for weights in (whole, pieces))
    for step in range(3):
        one.learning_rate = other.learning_rate = 0.01
        (grad,) = torch.autograd.grad(losses(whole, step)[0], whole[:1])
        whole[0].grad = grad
        one.finish()
        receive = other.row_hook(pieces[0])
        assert receive is not None
        for rows in (slice(0, 3), slice(3, 4)):
            receive(rows, grad[rows])
        assert torch.equal(whole[0], pieces[0])
    assert float(other.state[pieces[0]][2]) == 3


def test_pieces_are_not_for_clipping_nor_for_a_step_of_several_batches() -> None:
    weights = parameters()
    assert AdamWInBackward(weights, weight_decay=0.1, clip=1.0).row_hook(weights[0]) is None
    updates = AdamWInBackward(weights, weight_decay=0.1)
    assert updates.row_hook(torch.zeros(2, 2)) is None
    updates.backward(losses(weights, 0)[0], last=False)
    assert updates.row_hook(weights[0]) is None


def test_an_update_that_the_device_finds_unfit_changes_nothing() -> None:
    """Neither weights nor moments nor counts; and the next one is made as if it had not been."""
    ours, theirs = parameters(), parameters()
    updates, others = (AdamWInBackward(some, weight_decay=0.1) for some in (ours, theirs))
    updates.learning_rate = others.learning_rate = 0.1
    before = [weight.detach().clone() for weight in ours]
    for total in (float("nan"), float("inf")):
        updates.only_if(torch.tensor(total))
        updates.backward(losses(ours, 0)[0], last=True)
        updates.finish()
        assert all(torch.equal(one, other) for one, other in zip(ours, before, strict=True))
        assert not any(one.any() for state in updates.state.values() for one in state)
    for one, some in ((updates, ours), (others, theirs)):
        one.only_if(torch.tensor(1.0))
        one.backward(losses(some, 0)[0], last=True)
        one.finish()
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], before[0])


def test_an_update_counts_as_a_write_to_its_weights() -> None:
    """By this count others know that what they made of a weight is old."""
    weights = parameters()
    updates = AdamWInBackward(weights, weight_decay=0.1)
    updates.learning_rate = 0.1
    before = [weight._version for weight in weights]
    updates.backward(losses(weights, 0)[0], last=True)
    updates.finish()
    assert all(weight._version > then for weight, then in zip(weights, before, strict=True))
