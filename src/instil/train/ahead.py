"""The batches of the next step on their way to a GPU while the present one is computed.

A GPU works through what it is given by itself, and the host has nothing to do until it wants to know the loss. In that
time the next step's batches are made and sent, from pinned memory and beside what is computed. On a CPU nobody works
meanwhile: each step is made when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from instil.batches import Batch


class Lane(Protocol):
    """A way to a device, on which batches are under way while others are computed there."""

    def send(self, batches: Sequence[Batch]) -> list[Batch]:
        """Set them off; what they will be there."""

    def arrive(self, batches: Sequence[Batch]) -> None:
        """Have what is computed from now on begin when they are there."""


class Ahead:
    """The steps of a loader, of which the next can be fetched before it is asked for.

    Args:
        steps: the batches of each step.
        lane: the way to where they are computed; None where nothing is gained by it.
    """

    def __init__(self, steps: Iterator[list[Batch]], lane: Lane | None) -> None:
        self._steps, self._lane = steps, lane
        self._fetched: list[Batch] | None = None
        self._problem: BaseException | None = None

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        if self._lane is None:
            return next(self._steps)
        if self._fetched is None:
            self.fetch()
        if self._problem is not None:
            raise self._problem
        assert self._fetched is not None, "it is fetched, or there is a problem"
        step, self._fetched = self._fetched, None
        self._lane.arrive(step)
        return step

    def fetch(self) -> None:
        """Make and send the next step, if that is not done; what goes wrong is said when it is asked for."""
        if self._lane is None or self._fetched is not None or self._problem is not None:
            return
        try:
            self._fetched = self._lane.send(next(self._steps))
        except BaseException as error:  # the step under way has nothing to do with it, and is ended first
            self._problem = error


class CudaLane:
    """A stream of its own, so that copies need not wait until the GPU has done what it has to do."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, batches: Sequence[Batch]) -> list[Batch]:
        with torch.cuda.stream(self._stream):
            return [batch.to(self._device) for batch in batches]

    def arrive(self, batches: Sequence[Batch]) -> None:
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for batch in batches:
            for tensor in batch.tensors():  # whose memory is the other stream's to use again
                tensor.record_stream(computing)


def lane_to(device: torch.device) -> Lane | None:
    """The way to a device that works by itself; None to one that does not."""
    return CudaLane(device) if device.type == "cuda" else None
