"""Going back in a training to a state that was kept, where it cannot go on from where it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from instil.batches import Batch
from instil.errors import ModelError
from instil.model.decoder import Decoder
from instil.train.ranks import ALONE, Ranks, local
from instil.train.state import TrainState
from instil.train.touched import TABLE, TouchedRows

MOST = 3  # times that a training goes back because it diverged


@dataclass(frozen=True, slots=True)
class Skipped:
    """Rows that take no part in a training any more: it diverged with them in ``step``, and ``why`` says how.

    It went back to where it was after step ``back_to``.
    """

    step: int
    rows: list[int]
    why: str
    back_to: int


class Earlier(Protocol):
    """Where the states of a training are kept, and what was skipped in it."""

    def states(self) -> Iterator[TrainState]:
        """Those that can be used, the newest first."""

    def first(self) -> Mapping[str, Tensor] | None:
        """The weights that are trained as they were before training, by their names; None where they cannot be had."""

    def skipped(self) -> Sequence[Skipped]:
        """All so far, those of an earlier process included."""

    def skip(self, skipped: Skipped) -> None:
        """Note it, before training goes on."""


class Nothing:
    """Keeps nothing."""

    def states(self) -> Iterator[TrainState]:
        return iter(())

    def first(self) -> None:
        return None

    def skipped(self) -> Sequence[Skipped]:
        return ()

    def skip(self, skipped: Skipped) -> None:
        del skipped


@runtime_checkable
class Adjustable(Protocol):
    """A loader that can change while training goes on."""

    micro_batch: int

    def halve(self) -> list[Batch]:
        """The step given last, and all that come, in micro-batches half as large; nothing where each is one row."""

    def leave_out(self, rows: Iterable[int]) -> None:
        """Rows, by their numbers, that are in no step any more; a step may be left without any."""


class GoBack(Exception):
    """Training goes on from an earlier state."""

    def __init__(self, state: TrainState) -> None:
        super().__init__()
        self.state = state


def first_state(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], touched: TouchedRows | None, begun: TrainState
) -> TrainState:
    """The state before the first step, made again: moments are zeros.

    Args:
        weights: those that are trained, by their names.
        own: what `instil.train.state.named_tensors` says now.
        touched: where only some rows of the embedding are trained.
        begun: that very state without its tensors.
    """
    return replace(begun, tensors=_First(weights, own, touched))


class _First(Mapping[str, Tensor]):
    """What `first_state` makes, each when it is asked for: weights may be read one after another."""

    def __init__(self, weights: Mapping[str, Tensor], own: Mapping[str, Tensor], touched: TouchedRows | None) -> None:
        self._weights, self._own, self._touched = weights, own, touched

    def __getitem__(self, name: str) -> Tensor:
        tensor, (kind, _, of) = self._own[name], name.partition("/")
        if name == TABLE:
            return self._weights["embed.weight"]
        if kind != "weights":  # whole, where the other may be a part
            return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
        if self._touched is not None and of == "embed.weight":
            return self._touched.part_of(self._weights[of])
        return self._weights[of]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


def newest_good(earlier: Earlier, before: float = math.inf) -> TrainState | None:
    """The newest state with less than so many steps done, all of whose numbers are finite."""
    for state in earlier.states():
        if state.progress.done < before and _usable(state):
            return state
    return None


def state_after(earlier: Earlier, done: int) -> TrainState:
    """The state after so many steps.

    Raises:
        ModelError: there is none.
    """
    for state in earlier.states():
        if state.progress.done == done:
            return state
    raise ModelError(f"the state after step {done:,} cannot be read, and other processes go back to it")


def _usable(state: TrainState) -> bool:
    """Whether all of its numbers are finite; not of one that somebody removes or damages meanwhile."""
    try:
        return all(bool(torch.isfinite(state.tensors[name]).all()) for name in state.tensors)
    except (OSError, ModelError):
        return False


def is_finite(decoder: Decoder, ranks: Ranks = ALONE) -> bool:
    """Whether all weights are numbers; found without a second table in memory."""
    return not ranks.any(not all(_finite(local(parameter)) for parameter in decoder.parameters()))


def _finite(tensor: Tensor) -> bool:
    return not tensor.numel() or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def rows_of(step: Sequence[Batch], ranks: Ranks = ALONE) -> list[int]:
    """The numbers of a step's rows, each once, of all processes."""
    own = [row for batch in step for row in batch.examples]
    return list(dict.fromkeys(row for rows in ranks.gather(own) for row in rows))
