"""Proof that a training goes on where it was: the loss of the step that comes next, without taking it.

It hangs on every trained weight, on which rows come next (so on seed, position and, in the book's order, the state of
torch's generator), and on how this machine computes. It is looked at whenever a state is taken, and again when a
training goes on from one: bit for bit the same, or something has changed. It costs a forward pass over one step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from instil.batches import Batch
from instil.model.decoder import Decoder
from instil.train.objective import Objective, look
from instil.train.ranks import ALONE, Ranks
from instil.train.state import random_states, set_random_states


class Steps(Protocol):
    """What the loop asks of a loader: the micro-batches of each step of an epoch, in order."""

    def __len__(self) -> int: ...

    def steps(self, epoch: int = 0, start: int = 0) -> Iterator[list[Batch]]:
        """The steps of an epoch, from step ``start`` on."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The loss of the step after ``done`` of ``planned``, as the state has it (None: it has none), and as it is now.

    At the end of a training it is that of the last step.
    """

    done: int
    planned: int
    was: float | None
    now: float

    @property
    def same(self) -> bool:
        """Whether both are the same bits, or there is nothing to compare."""
        return self.was is None or self.was == self.now or (math.isnan(self.was) and math.isnan(self.now))


def loss_of_next(
    decoder: Decoder,
    objective: Objective,
    loader: Steps,
    done: int,
    planned: int,
    epoch_random: Mapping[str, str],
    ranks: Ranks = ALONE,
) -> float:
    """The mean loss of the step that comes after ``done`` of ``planned``, or, at the end, of the last one.

    Nothing is changed by it: an embedding of which only some rows are trained is not made whole, and generators are put
    back to where they were.

    Args:
        decoder: as it is trained.
        objective: whose loss it is.
        loader: gives the steps.
        done: steps done.
        planned: steps there will be.
        epoch_random: the generators as they were when the epoch of step ``done`` began.
        ranks: the processes that train together; all have to ask.
    """
    now = random_states()
    epoch, at = divmod(min(done, planned - 1), len(loader))
    try:
        if epoch_random and (at or done == planned):  # else it begins with what is drawn now
            set_random_states(epoch_random)
        step = next(loader.steps(epoch, at))
    finally:
        set_random_states(now)
    training = decoder.training
    decoder.eval()
    loss, _ = look(objective, decoder, step, ranks)
    decoder.train(training)
    return loss.mean if loss.tokens else 0.0
