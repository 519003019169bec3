"""Where a training goes back to, and which rows it goes on without: its checkpoints, and ``skipped.jsonl``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from instil.errors import verb
from instil.files import records_in, write_whole
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
        begins: the step after which training begins now, if that is known. What was found out when it had gone back to
            a later one (of which the checkpoint is damaged since) is forgotten: with the rows it comes to the same.

    Raises:
        DataError: the file is damaged.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        file: Path,
        screen: Screen,
        first: Callable[[], Mapping[str, Tensor]],
        begins: int | None = None,
    ) -> None:
        self._checkpoints, self._file, self._screen, self._first = checkpoints, file, screen, first
        advice = "; remove the line (all of them: the file), and training goes on with its rows once more"
        self._skipped = records_in(file, Skipped, advice=advice) if file.exists() else []
        if begins is not None and any(one.back_to > begins for one in self._skipped):
            self._skipped = [one for one in self._skipped if one.back_to <= begins]
            self._note()

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
        try:  # before it is noted: who is killed in between finds out once more what is wrong
            self._checkpoints.drop_after(skipped.back_to)
        except OSError as error:
            self._screen.warn(f"  later checkpoints cannot be removed: {error.strerror or error}")
        self._skipped.append(skipped)
        self._note()

    def _note(self) -> None:
        try:
            if self._skipped:
                write_whole(self._file, self._write)
            else:
                self._file.unlink(missing_ok=True)
        except OSError as error:
            self._screen.warn(f"  {self._file}: the rows cannot be named there: {error.strerror or error}")

    def _write(self, path: Path) -> None:
        with path.open("wb") as file:
            file.writelines(json.dumps(asdict(one)).encode() + b"\n" for one in self._skipped)
            file.flush()
            os.fsync(file.fileno())
