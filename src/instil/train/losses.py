"""Losses as token sums with a token count; the mean is taken once, by whoever holds all of the tokens.

Shape suffixes: N tokens · D width · S supervised predictions · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from instil.batches import Batch
from instil.model.decoder import Decoder
from instil.model.fast.tied import RowGradientHook, TiedGradient
from instil.model.lora_layer import LoraLinear
from instil.model.token_rows import TokenHead
from instil.train.head_loss import head_log_probs, head_nll_sum


@dataclass(frozen=True, slots=True)
class LossSum:
    """The summed negative log-likelihood of so many predicted tokens, each as often as it counts."""

    total: float
    tokens: float

    @property
    def mean(self) -> float:
        """Nats for each token; NaN when there were none."""
        return self.total / self.tokens if self.tokens else float("nan")

    def __add__(self, other: LossSum) -> LossSum:
        """Two sums are one sum; two means are not one mean.

        >>> (LossSum(2.0, 1) + LossSum(2.0, 3)).mean
        1.0
        """
        return LossSum(self.total + other.total, self.tokens + other.tokens)


def nll_sum(decoder: Decoder, batch: Batch, grad_hook: RowGradientHook | None = None) -> Tensor:
    """Summed negative log-likelihood of a batch's targets, a scalar that can be differentiated.

    The head is applied to the supervised rows alone. A batch without targets gives zero. ``grad_hook`` is given
    the gradient of a tied table in pieces (`instil.model.fast.tied`), which then does not go to ``.grad``.
    """
    hidden_UD, row_S, tied, adapter = _at_targets(decoder, batch, grad_hook)
    weights = decoder.head.weight, row_S, batch.targets_S, batch.weights_S
    return head_nll_sum(hidden_UD, *weights, tied, adapter, decoder.spec.logits_softcap)


def log_probs(decoder: Decoder, batch: Batch, grad_hook: RowGradientHook | None = None) -> Tensor:
    """Log-probability of each of a batch's targets, [S], which can be differentiated; otherwise as `nll_sum`."""
    hidden_UD, row_S, tied, adapter = _at_targets(decoder, batch, grad_hook)
    head = decoder.head.weight, row_S, batch.targets_S
    return head_log_probs(hidden_UD, *head, tied, adapter, decoder.spec.logits_softcap)


def _at_targets(
    decoder: Decoder, batch: Batch, grad_hook: RowGradientHook | None
) -> tuple[Tensor, Tensor, TiedGradient | None, tuple[Tensor, Tensor] | None]:
    """Hidden states where something is predicted, which of them each prediction is made from, and the head's extras."""
    weight_VD = decoder.head.weight
    joined = torch.is_grad_enabled() and weight_VD.requires_grad and weight_VD is decoder.embed.weight
    tied = TiedGradient(grad_hook) if joined else None
    at_U, row_S = batch.states()
    hidden_UD = decoder(batch, tied=tied, wanted_U=at_U if len(at_U) < len(batch.ids_N) else None)
    adapter = None
    if isinstance(decoder.head, LoraLinear | TokenHead):
        adapter = decoder.head.low_rank(hidden_UD), decoder.head.lora_b
    return hidden_UD, row_S, tied, adapter


@torch.inference_mode()
def held_out_loss(decoder: Decoder, batches: Iterable[Batch], device: torch.device | None = None) -> LossSum:
    """The loss over batches that are not trained on, weighted by tokens (not a mean of batch means)."""
    total: Tensor | None = None
    count: float = 0
    for batch in batches:
        total = added(total, nll_sum(decoder, batch.to(device) if device is not None else batch))
        count += batch.trained_tokens
    return LossSum(number(total), count)


def added(total: Tensor | None, loss: Tensor) -> Tensor:
    """A sum of losses in float64, on their device: whoever reads each has a GPU stand still as often."""
    loss = loss.detach().double()
    return loss if total is None else total + loss


def number(total: Tensor | None) -> float:
    """What a sum came to."""
    return 0.0 if total is None else float(total)
