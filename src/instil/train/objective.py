"""What a step makes smaller: the likelihood of the targets, or something else that is handed in.

An objective counts the items of a batch (predicted tokens, pairs) and measures a sum over them; whoever holds all
batches of a step divides once. So micro-batches are exactly one big batch, whatever the objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from instil.model.decoder import Decoder
from instil.model.fast.tied import RowGradientHook
from instil.records import Batch
from instil.train.losses import LossSum, nll_sum


class Measure(Protocol):
    """The loss of the batches of one step, or of one evaluation, one batch after another."""

    def __call__(self, decoder: Decoder, batch: Batch, grad_hook: RowGradientHook | None = None) -> Tensor:
        """The summed loss of a batch, a scalar that can be differentiated (``grad_hook``: see `nll_sum`)."""

    def metrics(self) -> dict[str, float]:
        """What else is known of the batches measured so far."""


class Objective(Protocol):
    """What is made smaller."""

    def count(self, batch: Batch) -> float:
        """How many items the loss of a batch is a sum over, each as often as it counts."""

    def measure(self, batches: Sequence[Batch]) -> Measure:
        """What measures these batches, which belong together."""


class Likelihood:
    """The negative log-likelihood of the targets: supervised fine-tuning."""

    def count(self, batch: Batch) -> float:
        return batch.trained_tokens

    def measure(self, batches: Sequence[Batch]) -> Measure:
        del batches
        return _Likelihood()


class _Likelihood:
    def __call__(self, decoder: Decoder, batch: Batch, grad_hook: RowGradientHook | None = None) -> Tensor:
        return nll_sum(decoder, batch, grad_hook)

    def metrics(self) -> dict[str, float]:
        return {}


@torch.inference_mode()
def look(objective: Objective, decoder: Decoder, batches: Sequence[Batch]) -> tuple[LossSum, dict[str, float]]:
    """The loss over batches that are not trained on, weighted by their items, and what else is known of them."""
    measure = objective.measure(batches)
    total = LossSum(0.0, 0)
    for batch in batches:
        total += LossSum(float(measure(decoder, batch.to(decoder.device))), objective.count(batch))
    return total, measure.metrics()
