"""One run as it goes on: its losses, how fast it is, how long it takes, and what it last said. It reads files only."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from instil.errors import DataError
from instil.runs.folder import RUN_FILE, RunFolder
from instil.runs.listing import Curve, RunSummary, curve_of, new_records, own_file, planned, state_and_why, summary_of
from instil.train.metrics import StepRecord

RECENT = 50  # steps whose mean pace is the pace
LAST_BYTES = 1 << 16  # of a file of samples, in which the last ones are looked for
SHOWN = 2  # samples
COMPARED = 512  # bytes by which a file of metrics is known again: more than a line, which has the time that a step took

RUNNING, FINISHED = "running", "finished"

Stamps = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """What a run answered while it trained: after so many steps, to what, and what the row has for an answer."""

    step: int
    asked: str
    says: str
    wanted: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A run at one moment.

    ``tokens_per_second`` and ``seconds_left`` (of training) are by the last steps; None where it does not train.
    ``gone``: it was there, and is not any more.
    """

    about: RunSummary
    curve: Curve
    last: StepRecord | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    samples: tuple[Sample, ...] = ()
    gone: bool = False

    @property
    def state(self) -> str:
        """``running``, ``stopped``, ``finished`` or ``failed``."""
        return self.about.state

    @property
    def running(self) -> bool:
        """Whether there is more to come."""
        return self.state == RUNNING

    @property
    def stage(self) -> str:
        """What a run that is at work does."""
        if not self.running:
            return ""
        if self.last is None:
            return "before training"
        return "training" if self.last.step != self.about.steps else "after training"

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            **self.about.as_json(),
            "state": self.state,
            "stage": self.stage,
            "epoch": self.last.epoch if self.last else None,
            "tokens_per_second": self.tokens_per_second,
            "seconds_left": self.seconds_left,
            "curve": self.curve.as_json(),
            "samples": [{"step": one.step, "asked": one.asked, "says": one.says} for one in self.samples],
        }


@dataclass(slots=True)
class Following:
    """Looks at a run again and again, and reads only what has been written since.

    Args:
        name: what it is called.
        path: its folder.
    """

    name: str
    path: Path
    _records: list[StepRecord] = field(default_factory=list)
    _read: int = 0
    _before: bytes = b""  # what stood before that byte
    _known: tuple[Stamps, RunSummary, Mapping[str, Any]] | None = None

    def look(self) -> Picture:
        """How it stands now."""
        run = RunFolder(self.path)
        self._take(run)
        about, options = self._about(run)
        last = self._records[-1] if self._records else None
        curve = curve_of(self._records)
        state, why = state_and_why(run)  # of a process that was killed no file changes
        steps = about.steps if state == FINISHED else planned(self._records, options) or about.steps
        about = replace(
            about,
            state=state,
            why=why,
            step=last.step if last else None,
            steps=steps,
            train_loss=_latest(one.train_loss for one in reversed(self._records)),
            val_loss=_latest(one.val_loss for one in reversed(self._records)),
        )
        trains = state == RUNNING and last is not None and last.step != steps
        tokens, seconds = _pace(self._records) if trains else (None, None)
        left = None if seconds is None or steps is None or last is None else seconds * max(steps - last.step, 0)
        return Picture(about, curve, last, tokens, left, _samples(run.samples), gone=not run.begun)

    def _take(self, run: RunFolder) -> None:
        """Read the new records; all of them again where the file is another one by now.

        A run that goes on from a checkpoint, or begins anew, writes it from its beginning.
        """
        if self._read and _bytes_before(run.metrics, self._read) != self._before:
            self._records, self._read = [], 0
        new, self._read = new_records(run.metrics, self._read)
        self._records += new
        self._before = _bytes_before(run.metrics, self._read)

    def _about(self, run: RunFolder) -> tuple[RunSummary, Mapping[str, Any]]:
        """What is not of its steps; found anew where its files have changed."""
        stamps = tuple(_stamp(self.path / name) for name in ("", RUN_FILE, "scores"))  # a folder's: of its entries
        if self._known is None or self._known[0] != stamps:
            try:
                options = run.read_settings()["settings"].get("train", {})
            except DataError:
                options = {}
            self._known = stamps, summary_of(self.name, self.path), options
        return self._known[1], self._known[2]


def _bytes_before(file: Path, end: int) -> bytes:
    """The last bytes of a file before that one."""
    if own_file(file) is None:
        return b""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, end - COMPARED))
            return opened.read(min(end, COMPARED))
    except OSError:
        return b""


def _stamp(file: Path) -> tuple[int, int]:
    try:
        about = file.stat()
    except OSError:
        return 0, 0
    return about.st_mtime_ns, about.st_size


def _latest(losses: Iterable[float | None]) -> float | None:
    """The first that is a finite number."""
    return next((loss for loss in losses if loss is not None and math.isfinite(loss)), None)


def _pace(records: list[StepRecord]) -> tuple[float | None, float | None]:
    """Tokens a second and seconds a step, by the last steps."""
    recent = records[-RECENT - 1 :]
    steps, seconds = recent[-1].step - recent[0].step, recent[-1].seconds - recent[0].seconds
    if steps <= 0 or seconds <= 0:
        return None, None
    return (recent[-1].tokens_seen - recent[0].tokens_seen) / seconds, seconds / steps


def _samples(file: Path) -> tuple[Sample, ...]:
    """The answers of the last time that some were made; a damaged line is passed over."""
    if own_file(file) is None:
        return ()
    try:
        with file.open("rb") as lines:
            lines.seek(max(0, lines.seek(0, os.SEEK_END) - LAST_BYTES))
            parts = lines.read().split(b"\n")
    except OSError:
        return ()
    found: list[Sample] = []
    for line in parts:
        try:
            one = json.loads(line)
            asked = " ".join(str(one[key]) for key in ("instruction", "input") if one.get(key))
            found.append(Sample(int(one["step"]), asked, str(one["model_response"]), str(one.get("output", ""))))
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
            continue
    return tuple([one for one in found if one.step == found[-1].step][:SHOWN])
