"""When the model is evaluated during training, and on what.

`HeldOut` is the default: all validation batches, weighted by tokens. `AsInBook` is chapter 7.6's
``evaluate_model``: the mean of the mean losses of a few batches, of the training data too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import mean
from typing import Protocol

from instil.batches import Batch
from instil.model.decoder import Decoder
from instil.train.objective import Likelihood, Objective, look
from instil.train.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Losses in nats for each target (for each pair in preference tuning); None where there were no batches.

    ``metrics`` is what else is known of the validation rows.
    """

    validation: float | None
    train: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Evaluator(Protocol):
    """Evaluates, and says when."""

    def __call__(self, decoder: Decoder) -> Evaluation:
        """Evaluate now."""

    def due(self, done: int, ends_epoch: bool) -> bool:
        """Whether to evaluate after ``done`` optimizer steps."""


class HeldOut:
    """The loss over validation batches as a token-weighted mean.

    Args:
        batches: the validation batches.
        every: steps between evaluations; the end of an epoch is always one; 0 means only those.
        limit: at most so many batches; 0 means all.
        objective: whose loss it is.
        ranks: the processes among which the batches are dealt; each has all of them.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        every: int = 0,
        limit: int = 0,
        objective: Objective | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._batches = batches[:limit] if limit else batches
        self._every, self._ranks = every, ranks
        self._objective = objective or Likelihood()

    def __call__(self, decoder: Decoder) -> Evaluation:
        if not self._batches:
            return Evaluation(None)
        own = self._batches if self._ranks.alone else self._batches[self._ranks.rank :: self._ranks.world]
        loss, metrics = look(self._objective, decoder, own, self._ranks)
        return Evaluation(loss.mean, metrics=metrics)

    def due(self, done: int, ends_epoch: bool) -> bool:
        return ends_epoch or bool(self._every and done % self._every == 0)


class AsInBook:
    """Means of batch means over the first few batches of both loaders, as the chapter prints them.

    Each evaluation opens the training loader anew, which draws another order: the chapter's loop does so
    too, and its later batches depend on it. Due after steps 1, 1 + every, 1 + 2 * every, ...

    Args:
        train: opens the training loader.
        validation: opens the validation loader.
        every: the chapter's ``eval_freq``.
        limit: the chapter's ``eval_iter``.
        objective: whose loss it is.
        ranks: the processes among which the rows of each batch are dealt, by what both give.
    """

    def __init__(
        self,
        train: Callable[[], Iterable[Sequence[Batch]]],
        validation: Callable[[], Iterable[Sequence[Batch]]],
        every: int,
        limit: int,
        objective: Objective | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._train, self._validation, self._ranks = train, validation, ranks
        self._every, self._limit = every, limit
        self._objective = objective or Likelihood()

    def __call__(self, decoder: Decoder) -> Evaluation:
        train, _ = self._mean_of_means(decoder, self._train())
        validation, metrics = self._mean_of_means(decoder, self._validation())
        return Evaluation(validation, train, metrics)

    def due(self, done: int, ends_epoch: bool) -> bool:
        del ends_epoch
        return bool(self._every) and (done - 1) % self._every == 0

    def _mean_of_means(
        self, decoder: Decoder, steps: Iterable[Sequence[Batch]]
    ) -> tuple[float | None, dict[str, float]]:
        """Micro-batches are one batch here, too."""
        found = [look(self._objective, decoder, step, self._ranks) for step in islice(steps, self._limit or None)]
        if not found:
            return None, {}
        names = found[0][1]
        return mean(loss.mean for loss, _ in found), {name: mean(one[name] for _, one in found) for name in names}
