"""One optimizer step, and what happens between two of them with the model whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from instil.model.decoder import Decoder
from instil.records import Batch
from instil.train.losses import LossSum
from instil.train.objective import Objective
from instil.train.optimizer import AdamWInBackward
from instil.train.touched import TouchedRows


@contextmanager
def aside(decoder: Decoder, touched: TouchedRows | None) -> Iterator[None]:
    """Something other than a training step: the model whole, and not in training mode."""
    decoder.eval()
    with touched.whole() if touched is not None else nullcontext():
        yield
    decoder.train()


def take_step(
    decoder: Decoder, step: Sequence[Batch], optimizer: AdamWInBackward, objective: Objective, precision: str
) -> tuple[LossSum, int, dict[str, float]]:
    """One optimizer step on the mean loss of all its micro-batches; their summed loss, real tokens, and metrics.

    A loss that is not finite ends it before anything is updated. Without anything to learn nothing is.
    """
    batches = [batch for batch in step if objective.count(batch)]
    if not batches:
        return LossSum(0.0, 0), 0, {}
    count = sum(objective.count(batch) for batch in batches)
    measure = objective.measure(batches)
    loss = LossSum(0.0, 0)
    tokens = 0
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        grad_hook = optimizer.row_hook(decoder.head.weight) if last else None
        with torch.autocast(decoder.device.type, torch.bfloat16, enabled=precision == "bf16"):
            total = measure(decoder, batch.to(decoder.device), grad_hook)
        loss += LossSum(float(total.detach()), objective.count(batch))
        if not math.isfinite(loss.total):
            return loss, tokens, {}
        optimizer.backward(total / count, last=last)
        tokens += batch.real_tokens
    optimizer.finish()
    return loss, tokens, measure.metrics()
