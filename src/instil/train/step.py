"""One optimizer step, and what happens between two of them with the model whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from instil.batches import Batch
from instil.model.decoder import Decoder
from instil.model.fast.tied import RowGradientHook
from instil.train.losses import LossSum, added, nll_sum, number
from instil.train.objective import Objective
from instil.train.optimizer import AdamWInBackward
from instil.train.ranks import ALONE, Ranks
from instil.train.touched import TouchedRows


@contextmanager
def aside(decoder: Decoder, touched: TouchedRows | None) -> Iterator[None]:
    """Something other than a training step: the model whole, and not in training mode."""
    decoder.eval()
    with touched.whole() if touched is not None else nullcontext():
        yield
    decoder.train()


def products_in(device: torch.device, precision: str) -> torch.autocast:
    """A context in which products are computed in ``train.precision``, ``"fp32"`` or ``"bf16"``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def take_step(
    decoder: Decoder,
    step: Sequence[Batch],
    optimizer: AdamWInBackward,
    objective: Objective,
    precision: str,
    ranks: Ranks = ALONE,
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[LossSum, int, dict[str, float]]:
    """One optimizer step on the mean loss of all its micro-batches; their summed loss, real tokens, and metrics.

    A loss that is not finite ends it before anything is updated. Without anything to learn nothing is. Of several
    processes each brings micro-batches of its own, and what is returned is that of all of them.

    A GPU is given the whole step before its loss is read, which is the one time that it is waited for: whether it is
    finite the update asks on the GPU. ``meanwhile`` is called just before, when the host has nothing else to do.
    """
    batches = [batch for batch in step if objective.count(batch)]
    (count,) = ranks.sum([sum(objective.count(batch) for batch in batches)])
    if not count:
        return LossSum(0.0, 0), 0, {}
    autocast = products_in(decoder.device, precision)
    measure = objective.measure(batches, ranks)
    with autocast:
        measure.begin(decoder)
    count_here: float = 0
    tokens, summed = 0, None
    ahead = decoder.device.type != "cpu"  # of a device that works through what it is given by itself
    for one in ranks.passes(batches):
        batch = one.batch.to(decoder.device)
        grad_hook = optimizer.row_hook(decoder.head.weight) if one.last else None
        with autocast:
            if one.counts:
                total = ranks.forward(decoder, _loss(measure, batch, grad_hook))
            else:
                total = 0.0 * ranks.forward(decoder, _loss(nll_sum, batch, None))
        if one.counts:
            summed = added(summed, total)
            count_here += objective.count(batch)
            tokens += batch.real_tokens
        if ranks.alone and not ahead and not math.isfinite(number(summed)):
            return LossSum(number(summed), count_here), tokens - batch.real_tokens, {}
        if ranks.alone and ahead and one.last:
            optimizer.only_if(summed)
        optimizer.backward(total / (count / ranks.divided), last=one.last)
    if not ranks.alone:
        *sums, tokens_of_all = ranks.sum([number(summed), count_here, tokens])
        loss, tokens = LossSum(*sums), int(tokens_of_all)
        if not math.isfinite(loss.total):
            return loss, tokens, {}
    optimizer.finish()
    meanwhile()
    if ranks.alone:
        loss = LossSum(number(summed), count_here)
    return loss, tokens, measure.metrics()


def _loss(
    measure: Callable[..., Tensor], batch: Batch, grad_hook: RowGradientHook | None
) -> Callable[[Decoder], Tensor]:
    return lambda decoder: measure(decoder, batch, grad_hook)
