"""The best model of a training: kept as it goes on, and what remains of it if it cannot go on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from instil.batches import Batch
from instil.errors import SettingsError, TrainingDiverged, counted
from instil.model.decoder import Decoder
from instil.model.files.safetensors import Later
from instil.settings.options import TrainOptions
from instil.train.evaluation import Evaluation
from instil.train.objective import Objective, look
from instil.train.ranks import ALONE, Ranks
from instil.train.rewind import is_finite
from instil.train.state import TrainState


class BestCheckpoint(Protocol):
    """Where the best model is kept while training goes on (`train.patience`)."""

    def save(self, tensors: Mapping[str, Tensor | Later]) -> bool:
        """Keep what is trained, by its names, as it is now; whether it could be, else what was kept before still is."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what was kept last, in place."""

    def kept(self) -> Mapping[str, Tensor]:
        """What was kept last, by the names of the parameters."""

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep these instead, which `kept` gave in an earlier training."""


class SharedBest:
    """The best model of processes that train together, kept by the first.

    Args:
        ranks: the processes.
        kept: where the first one keeps it; others have None.
    """

    def __init__(self, ranks: Ranks, kept: BestCheckpoint | None) -> None:
        self._ranks, self._kept = ranks, kept

    def save(self, tensors: Mapping[str, Tensor | Later]) -> bool:
        if not self._ranks.sharded:
            return self._ranks.agree(self._kept is not None and self._kept.save(tensors))
        parts = {name: one for name, one in tensors.items() if isinstance(one, Tensor)}
        if self._kept is None:
            self._ranks.hand_over(parts)
            return self._ranks.agree(False)
        try:
            done = self._kept.save(self._ranks.later(parts))
        finally:
            self._ranks.agree("")
        return self._ranks.agree(done)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        if self._ranks.sharded:
            found = self.kept()
            for name, own in tensors.items():  # one after another is whole
                whole = torch.empty(own.shape, dtype=own.dtype, device=own.device)  # and not of the kind of parts
                if name in found:
                    whole.copy_(found[name])
                self._ranks.spread([whole])
                self._ranks.put(own, whole)
            return
        if self._kept is not None:
            self._kept.restore(tensors)
        self._ranks.spread(tensors.values())

    def kept(self) -> Mapping[str, Tensor]:
        return {} if self._kept is None else self._kept.kept()

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        if self._kept is not None:
            self._kept.keep(tensors)


class Best:
    """The lowest validation loss so far, and for how many validations there was none lower."""

    def __init__(
        self, checkpoint: BestCheckpoint | None, options: TrainOptions, objective: Objective, ranks: Ranks = ALONE
    ) -> None:
        self._checkpoint, self._options, self._objective, self._ranks = checkpoint, options, objective, ranks
        self.loss = math.inf
        self.before: float | None = None  # the loss before training
        self.step: int | None = None
        self.worse = 0  # validations since

    def enough(self) -> bool:
        """Whether to stop."""
        return self._checkpoint is not None and self.worse >= self._options.patience

    def ended(self) -> str:
        """Why training ended before its last step, if it did for the sake of the best model."""
        if not self.enough():
            return ""
        return f"the validation loss was not lower in {counted(self.worse, 'validation')} after step {self.step}"

    def saw(self, decoder: Decoder, found: Evaluation, step: int) -> None:
        """A validation."""
        if self._checkpoint is None or found.validation is None:
            return
        if found.validation < self.loss:
            if self._checkpoint.save(_trained(decoder)):
                self.loss, self.step = found.validation, step
            self.worse = 0
        else:
            self.worse += 1

    def kept(self) -> Mapping[str, Tensor]:
        """The weights of the best model; none where there is none."""
        return {} if self._checkpoint is None or self.step is None else self._checkpoint.kept()

    def take_up(self, state: TrainState) -> None:
        """Be what it was in a training that goes on.

        Raises:
            SettingsError: a best model was kept there, and none is to be kept here.
        """
        progress = state.progress
        if progress.best_step is not None and self._checkpoint is None:
            raise SettingsError(
                "the state has a best model (train.patience), and here none is kept; set train.patience"
            )
        if self._checkpoint is not None and progress.best_step is not None:
            self._checkpoint.keep(state.best)
        self.loss = math.inf if progress.best_loss is None else progress.best_loss
        self.before, self.step, self.worse = progress.before, progress.best_step, progress.worse

    def diverged(self, what: str, done: int) -> TrainingDiverged:
        """What there is to say when it cannot go on."""
        kept = "Nothing was saved" if self.step is None else f"The model of step {self.step} is kept"
        clip = "" if self._options.clip else " or set train.clip=1"
        advice = f"{kept}. Lower train.learning_rate (now {self._options.learning_rate:g}){clip}"
        if not done:
            advice = "That is before the first update, so the model itself or its rows are at fault; nothing was saved"
        return TrainingDiverged(f"{what}. {advice}")

    def end(self, decoder: Decoder, step: Sequence[Batch], done: int, diverged: TrainingDiverged | None) -> str:
        """Leave the best model where one was kept; returns how training diverged, or nothing.

        Raises:
            TrainingDiverged: there is no model with a loss.
        """
        if diverged is None and not self._usable(decoder, step):  # no later step shows what the last update did
            self.step = None if self.step == done else self.step  # this very model is no use
            diverged = self.diverged(f"step {done}: the last update left a model without a loss", done)
        if self._checkpoint is not None and self.step is not None and (diverged is not None or self.step != done):
            self._checkpoint.restore(_trained(decoder))
        if diverged is not None and self.step is None:
            raise diverged
        if diverged is not None and self.before is not None and self.loss > self.before:
            worse = f"its validation loss was {self.loss:.3f}, above {self.before:.3f} before training"
            raise TrainingDiverged(f"{diverged}. But that model had learnt nothing: {worse}; it was not saved")
        if diverged is not None and not self._usable(decoder, step):
            raise TrainingDiverged(f"{diverged}. But that model has no loss on these rows either, and was not saved")
        return str(diverged or "")

    def _usable(self, decoder: Decoder, step: Sequence[Batch]) -> bool:
        return usable(decoder, step, self._objective, self._ranks)


def _trained(decoder: Decoder) -> dict[str, Tensor]:
    return {name: one.detach() for name, one in decoder.named_parameters() if one.requires_grad}


def usable(decoder: Decoder, step: Sequence[Batch], objective: Objective, ranks: Ranks = ALONE) -> bool:
    """Whether a model has numbers and a loss; its weights can be finite but too large to compute with."""
    return is_finite(decoder, ranks) and math.isfinite(look(objective, decoder, step[:1], ranks)[0].total)
