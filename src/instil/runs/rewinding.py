"""Where a training goes back to, and which rows it goes on without: its checkpoints, and ``skipped.jsonl``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from instil.errors import counted, verb
from instil.files import records_in
from instil.runs.checkpoints import Checkpoints
from instil.screen import Screen
from instil.train.rewind import Skipped
from instil.train.state import TrainState

SHOWN = 20  # rows named on the screen


class EarlierOnDisk:
    """The checkpoints of a run, and the file of the rows that were skipped in it.

    Args:
        checkpoints: see above.
        file: a line for each time that the training went back; absent as long as it did not.
        screen: where it is said.
        first: makes the weights again that there were before training.

    Raises:
        DataError: the file is damaged.
    """

    def __init__(
        self, checkpoints: Checkpoints, file: Path, screen: Screen, first: Callable[[], Mapping[str, Tensor]]
    ) -> None:
        self._checkpoints, self._file, self._screen, self._first = checkpoints, file, screen, first
        self._skipped = records_in(file, Skipped) if file.exists() else []

    def states(self) -> Iterator[TrainState]:
        return self._checkpoints.states()

    def first(self) -> Mapping[str, Tensor]:
        return self._first()

    def skipped(self) -> Sequence[Skipped]:
        return self._skipped

    def skip(self, skipped: Skipped) -> None:
        rows = skipped.rows
        more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        named = f"{verb(len(rows), 'row', 'rows')} {', '.join(map(str, rows[:SHOWN]))}{more}"
        back = f"after step {skipped.back_to:,}" if skipped.back_to else "before the first step"
        self._screen.warn(f"  {skipped.why}. Training goes back to where it was {back}, and on without {named}")
        self._skipped.append(skipped)
        try:
            with self._file.open("ab") as file:
                file.write(json.dumps(asdict(skipped)).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._screen.warn(f"  {self._file}: {counted(len(rows), 'row')} cannot be named there: {error.strerror}")
