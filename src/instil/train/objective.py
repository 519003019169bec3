"""What a step makes smaller: the likelihood of the targets, or something else that is handed in.

An objective counts the items of a batch (predicted tokens, pairs) and measures a sum over them; whoever holds all
batches of a step divides once. So micro-batches are exactly one big batch, whatever the objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from instil.batches import Batch
from instil.model.decoder import Decoder
from instil.model.fast.tied import RowGradientHook
from instil.train.losses import LossSum, added, nll_sum, number
from instil.train.ranks import ALONE, Ranks


class Measure(Protocol):
    """The loss of the batches of one step, or of one evaluation, one batch after another."""

    def begin(self, decoder: Decoder) -> None:
        """Find out what the loss of each batch hangs on besides; once, before the first."""

    def __call__(self, decoder: Decoder, batch: Batch, grad_hook: RowGradientHook | None = None) -> Tensor:
        """The summed loss of a batch, a scalar that can be differentiated (``grad_hook``: see `nll_sum`)."""

    def metrics(self) -> dict[str, float]:
        """What else is known of the batches measured so far, by all processes; all have to ask."""


class Objective(Protocol):
    """What is made smaller."""

    def count(self, batch: Batch) -> float:
        """How many items the loss of a batch is a sum over, each as often as it counts."""

    def measure(self, batches: Sequence[Batch], ranks: Ranks = ALONE) -> Measure:
        """What measures these batches, which belong together, and with those of other processes."""


class Likelihood:
    """The negative log-likelihood of the targets: supervised fine-tuning."""

    def count(self, batch: Batch) -> float:
        return batch.trained_tokens

    def measure(self, batches: Sequence[Batch], ranks: Ranks = ALONE) -> Measure:
        del batches, ranks
        return _Likelihood()


class _Likelihood:
    def begin(self, decoder: Decoder) -> None:
        del decoder

    def __call__(self, decoder: Decoder, batch: Batch, grad_hook: RowGradientHook | None = None) -> Tensor:
        return nll_sum(decoder, batch, grad_hook)

    def metrics(self) -> dict[str, float]:
        return {}


def look(
    objective: Objective, decoder: Decoder, batches: Sequence[Batch], ranks: Ranks = ALONE
) -> tuple[LossSum, dict[str, float]]:
    """The loss over batches that are not trained on, weighted by their items, and what else is known of them.

    Of several processes each brings batches of its own, and all are told the same of all of them.
    """
    total: Tensor | None = None
    count: float = 0
    with decoder.without_graph():
        measure = objective.measure(batches, ranks)
        measure.begin(decoder)
        for one in ranks.level(batches):
            batch = one.batch.to(decoder.device)
            if one.counts:
                total = added(total, measure(decoder, batch))
                count += objective.count(batch)
            else:
                nll_sum(decoder, batch)
    ranks.let_go(decoder)
    return summed(LossSum(number(total), count), ranks), measure.metrics()


def summed(own: LossSum, ranks: Ranks) -> LossSum:
    """The sums of all processes; all have to ask."""
    return own if ranks.alone else LossSum(*ranks.sum([own.total, own.tokens]))
