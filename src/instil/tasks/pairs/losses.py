"""Preference tuning: losses of the log-probabilities of chosen and rejected answers, written from their papers.

==========  ===============================================================================  ======================
``loss``    of a pair, with x = (chosen - its reference) - (rejected - its reference)         source
==========  ===============================================================================  ======================
``dpo``     -log sigmoid(beta x); with label smoothing cDPO                                  arXiv 2305.18290, eq. 7
``ipo``     (x - 1 / (2 beta))^2                                                             arXiv 2310.12036, eq. 17
``simpo``   -log sigmoid(beta (chosen - rejected) - gamma), without a reference              arXiv 2405.14734, eq. 6
``orpo``    -beta log sigmoid(log odds of chosen - those of rejected), and the likelihood    arXiv 2403.07691, eq. 6
            of the chosen answer
``kto``     1 - sigmoid(beta (chosen's ratio - z)), and 1 - sigmoid(beta (z - rejected's))   arXiv 2402.01306, eq. 8
==========  ===============================================================================  ======================

An answer's log-probability is the sum over its scored ids (``dpo``, ``kto``), or their mean (``ipo``, as its authors
compute it; ``simpo``; ``orpo``; and ``dpo`` as chapter 7's bonus has it, ``dpo.reduction=mean``). What else each loss
needs stands in the table `instil.settings.losses.LOSSES`; all functions take the same two things.

The reference's log-probabilities come with the batch: they are computed once, before training.

Shape suffixes: P pairs · M scored ids of all rows · S predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from instil.batches import Batch, PairBatch
from instil.model.decoder import Decoder
from instil.model.fast.tied import RowGradientHook
from instil.settings.losses import LOSSES
from instil.settings.options import DpoOptions
from instil.train.losses import added, log_probs
from instil.train.objective import Measure
from instil.train.ranks import ALONE, Ranks
from instil.train.step import products_in

LARGEST = 20.0  # nats by which one id may have become less likely in the estimate of the divergence


@dataclass(frozen=True, slots=True)
class Answers:
    """Log-probabilities of the chosen and the rejected answer of each pair, and the reference's, [P] each.

    Where the loss wants to know it, ``distance`` is how far the model is from the reference in nats, at least 0; a
    constant to the gradient.
    """

    chosen_P: Tensor
    rejected_P: Tensor
    reference_chosen_P: Tensor
    reference_rejected_P: Tensor
    distance: Tensor | None = None

    @property
    def chosen_ratio_P(self) -> Tensor:
        """How much likelier the chosen answer has become, in nats."""
        return self.chosen_P - self.reference_chosen_P

    @property
    def rejected_ratio_P(self) -> Tensor:
        """The same for the rejected answer."""
        return self.rejected_P - self.reference_rejected_P


def dpo_loss(answers: Answers, options: DpoOptions) -> Tensor:
    """Direct preference optimisation, [P]; with ``label_smoothing`` that share of the labels is taken for wrong (cDPO).

    >>> zero = torch.zeros(1)
    >>> round(dpo_loss(Answers(zero, zero, zero, zero), DpoOptions()).item(), 6)  # ln 2, before anything is learnt
    0.693147
    """
    x_P = options.beta * (answers.chosen_ratio_P - answers.rejected_ratio_P)
    smoothing = options.label_smoothing
    return -(1 - smoothing) * F.logsigmoid(x_P) - smoothing * F.logsigmoid(-x_P)


def ipo_loss(answers: Answers, options: DpoOptions) -> Tensor:
    """Identity preference optimisation, [P]: a margin of 1 / (2 beta), and no more."""
    return (answers.chosen_ratio_P - answers.rejected_ratio_P - 1 / (2 * options.beta)) ** 2


def simpo_loss(answers: Answers, options: DpoOptions) -> Tensor:
    """Simple preference optimisation, [P]: means of log-probabilities, a margin gamma, no reference."""
    return -F.logsigmoid(options.beta * (answers.chosen_P - answers.rejected_P) - options.gamma)


def orpo_loss(answers: Answers, options: DpoOptions) -> Tensor:
    """The odds-ratio part of ORPO, [P]; the likelihood of the chosen answer is added by `Preference`."""
    log_odds_P = answers.chosen_P - answers.rejected_P - _log1mexp(answers.chosen_P) + _log1mexp(answers.rejected_P)
    return -options.beta * F.logsigmoid(log_odds_P)


def kto_loss(answers: Answers, options: DpoOptions) -> Tensor:
    """Kahneman-Tversky optimisation, [P]: of each pair one wanted and one unwanted answer, their mean."""
    z = answers.distance
    assert z is not None, "KTO needs the distance from the reference"
    gain_P = 1 - torch.sigmoid(options.beta * (answers.chosen_ratio_P - z))
    loss_P = 1 - torch.sigmoid(options.beta * (z - answers.rejected_ratio_P))
    return (options.desirable * gain_P + options.undesirable * loss_P) / 2


def _log1mexp(x_P: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact at both ends (Maechler, 2012); what is not used is kept harmless."""
    near = x_P > -math.log(2)
    return torch.where(
        near,
        torch.log(-torch.expm1(x_P.where(near, -0.5).clamp_max(-1e-7))),
        torch.log1p(-torch.exp(x_P.where(~near, -1.0))),
    )


class Preference:
    """The objective of preference tuning; an item is a pair.

    With ``options.nll`` (and always for ORPO, with weight 1) the mean negative log-likelihood of the chosen answers'
    targets is added, over all of the step's targets.
    """

    def __init__(self, options: DpoOptions) -> None:
        self.options = options
        self._kind = LOSSES[options.loss]
        self.loss_P: Callable[[Answers, DpoOptions], Tensor] = self._kind.load()
        self.nll = options.nll + self._kind.likelihood

    def count(self, batch: Batch) -> int:
        return batch.pairs if isinstance(batch, PairBatch) else 0

    def measure(self, batches: Sequence[Batch], ranks: Ranks = ALONE) -> Measure:
        return _Measure(self, [batch for batch in batches if isinstance(batch, PairBatch)], ranks)

    @property
    def needs_reference(self) -> bool:
        """Whether the log-probabilities of a reference model take part."""
        return self._kind.reference

    @property
    def needs_distance(self) -> bool:
        """Whether the loss asks how far the model is from the reference, on the answers of other rows."""
        return self._kind.distance

    @property
    def means(self) -> bool:
        """Whether an answer's log-probability is the mean over its scored ids, and not their sum."""
        return (self.options.reduction if self._kind.of == "reduction" else self._kind.of) == "mean"

    @property
    def reward_scale(self) -> float:
        """What a log-ratio is multiplied by in the metrics: beta, but the chapter shows it as it is."""
        return 1.0 if self.options.scored == "book" else self.options.beta


class _Measure:
    def __init__(self, objective: Preference, batches: Sequence[PairBatch], ranks: Ranks) -> None:
        self.objective, self.batches, self.ranks = objective, batches, ranks
        own = sum(batch.pairs for batch in batches), sum(batch.trained_tokens for batch in batches)
        self.pairs, self.targets = ranks.sum(own)
        self._z: Tensor | None = None
        self._sums: dict[str, Tensor] = {}
        self._measured = 0

    def begin(self, decoder: Decoder) -> None:
        if self.objective.needs_distance:
            self._z = self._distance(decoder)

    def __call__(self, decoder: Decoder, batch: Batch, grad_hook: RowGradientHook | None = None) -> Tensor:
        assert isinstance(batch, PairBatch), "preference tuning needs pairs"
        found_S = log_probs(decoder, batch, grad_hook)
        answers = replace(answers_of(batch, found_S, mean=self.objective.means), distance=self._z)
        total = self.objective.loss_P(answers, self.objective.options).sum()
        if self.objective.nll and self.targets:
            nll = -(found_S * batch.weights_S).sum()
            total = total + self.objective.nll * nll * (self.pairs / self.targets)
        self._note(batch, answers, found_S)
        return total

    @torch.no_grad()
    def _distance(self, decoder: Decoder) -> Tensor:
        """KTO's z: the mean log-ratio of answers that belong to other prompts, over the whole step, at least 0."""
        ratios = []
        for one in self.ranks.level(self.batches):
            assert isinstance(one.batch, PairBatch)
            assert one.batch.others is not None, "the distance is measured on the answers of other rows"
            others = one.batch.others.to(decoder.device)
            found_S = log_probs(decoder, others)
            if one.counts:
                answers = answers_of(others, found_S, mean=self.objective.means)
                ratios += [answers.chosen_ratio_P, answers.rejected_ratio_P]
        own = torch.cat(ratios) if ratios else decoder.embed.weight.new_zeros(0)
        if self.ranks.alone and ratios:
            return own.mean().clamp_min(0)
        total, count = self.ranks.sum([float(own.double().sum()), own.numel()])
        return own.new_tensor(total / max(count, 1)).clamp_min(0)  # a step may be left without any row

    @torch.no_grad()
    def _note(self, batch: PairBatch, answers: Answers, found_S: Tensor) -> None:
        """Sums over pairs: rewards, whether the chosen answer is ahead, and how far the model has moved."""
        scale = self.objective.reward_scale
        chosen_P, rejected_P = scale * answers.chosen_ratio_P, scale * answers.rejected_ratio_P
        found = {
            "chosen_reward": chosen_P,
            "rejected_reward": rejected_P,
            "margin": chosen_P - rejected_P,
            "accuracy": chosen_P > rejected_P,
            "chosen_logp": answers.chosen_P,
            "rejected_logp": answers.rejected_P,
        }
        if self.objective.needs_reference:
            change_M = found_S[batch.prediction_M] - batch.reference_M
            by_row = _by_row(batch, change_M) / _by_row(batch, torch.ones_like(change_M))
            found["chosen_change"] = by_row[::2]
            # An estimate of the divergence from the reference, never negative (Schulman, 2020), here on given answers
            kl_M = torch.exp((-change_M).clamp_max(LARGEST)) - 1 + change_M
            found["kl"] = (_by_row(batch, kl_M) / _by_row(batch, torch.ones_like(kl_M))).view(-1, 2).mean(1)
        for name, values in found.items():
            self._sums[name] = added(self._sums.get(name), values.sum())
        self._measured += batch.pairs

    def metrics(self) -> dict[str, float]:
        sums: dict[str, float] = {}
        read = torch.stack(list(self._sums.values())).tolist() if self._sums else []  # all at once
        parts = self.ranks.gather((dict(zip(self._sums, read, strict=True)), self._measured))
        for part, _ in parts:
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + value
        measured = sum(pairs for _, pairs in parts)
        return {name: value / measured for name, value in sums.items()}


def answers_of(batch: PairBatch, found_S: Tensor, *, mean: bool = False) -> Answers:
    """Log-probabilities of a batch's answers from those of its predictions: sums over scored ids, or their means."""
    own, reference = _by_row(batch, found_S[batch.prediction_M]), _by_row(batch, batch.reference_M)
    if mean:
        scored = _by_row(batch, torch.ones_like(batch.reference_M))
        own, reference = own / scored, reference / scored
    return Answers(own[::2], own[1::2], reference[::2], reference[1::2])


def _by_row(batch: PairBatch, values_M: Tensor) -> Tensor:
    """Sums over the scored ids of each row, [2 P]."""
    return values_M.new_zeros(2 * batch.pairs).index_add(0, batch.row_M, values_M)


def reference_log_probs(
    decoder: Decoder, batch: PairBatch, precision: str = "fp32"
) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """The log-probability of each scored id of each pair's two answers, as `EncodedPair.reference` wants them.

    In the ``precision`` of what they will stand beside: what bfloat16 rounds away of model and reference is nearly the
    same, and goes in the difference.
    """
    with decoder.without_graph(), products_in(decoder.device, precision):
        there = batch.to(decoder.device)
        found_M = log_probs(decoder, there)[there.prediction_M].tolist()
    rows: list[list[float]] = [[] for _ in range(2 * batch.pairs)]
    for row, value in zip(batch.row_M.tolist(), found_M, strict=True):
        rows[row].append(value)
    return [(tuple(rows[at]), tuple(rows[at + 1])) for at in range(0, len(rows), 2)]
