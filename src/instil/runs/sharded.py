"""Checkpoints of weights that lie in parts in several processes, each of which writes its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from instil.runs.checkpoints import Checkpoints
from instil.train.observer import Observer
from instil.train.parallel.shards import PATTERN
from instil.train.ranks import ALONE, Ranks
from instil.train.state import TrainState


@dataclass(frozen=True, slots=True)
class ShardedCheckpoints(Checkpoints):
    """The checkpoints of a run as the first of several processes sees to them; the others have `WritesItsPart`.

    What is written are PyTorch's own files (``torch.distributed.checkpoint``), under the same manifest; any number of
    processes can go on from them, one alone included.
    """

    ranks: Ranks = ALONE
    _told: list[str] = field(default_factory=list)  # where the others write

    def save(self, state: TrainState, first: Sequence[Callable[[], None]] = ()) -> Path:
        self._told.clear()
        try:
            # Without the others' names: `super()` knows no class that was made again for its slots.
            return Checkpoints.save(self, state, first)
        finally:
            if not self._told:
                self.ranks.agree("")

    def _write_parts(self, folder: Path, state: TrainState) -> Iterable[Path]:
        self._told.append(self.ranks.agree(str(folder)))
        self.ranks.save(state.tensors, folder)
        return sorted(folder.glob(PATTERN))


class WritesItsPart(Observer):
    """Writes what this process has of a state where the first has it written."""

    shares_state = True

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def on_state(self, state: TrainState) -> None:
        folder = self._ranks.agree("")
        if folder:
            with suppress(OSError):  # the first is told of it as well
                self._ranks.save(state.tensors, Path(folder))
