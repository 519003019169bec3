"""Observers that write checkpoints as training goes on, every so many steps or minutes, and stop it by a signal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from instil.model.decoder import Decoder
from instil.runs.checkpoints import CheckpointError, Checkpoints
from instil.screen import Screen
from instil.settings.options import steps_and_seconds
from instil.stopping import Stop
from instil.train.metrics import StepRecord
from instil.train.observer import Observer, Pause, TrainResult
from instil.train.state import TrainState

SHARE = 0.02  # of the time of training that saving by the clock may take


class SavesCheckpoints(Observer):
    """Saves a training every so often; a save that fails is told of, and training goes on.

    By the clock it waits longer where saves take long, so that they stay below a fiftieth of the time. After the last
    step it is saved in any case: what comes after training may take long, and nothing is to be trained twice. A
    training that stops before its end is saved there, whatever ``every`` says.

    Args:
        checkpoints: where to.
        every: as `train.save_every` has it.
        screen: where a failure is shown.
        now: seconds of a clock that is never put back.
        first: called before each save: what else must not be lost once there is a checkpoint.
        at_the_end: save after the last step even if ``every`` is never.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        every: str,
        screen: Screen,
        now: Callable[[], float] = time.monotonic,
        *,
        first: Sequence[Callable[[], None]] = (),
        at_the_end: bool = False,
    ) -> None:
        self._checkpoints, self._screen, self._now, self._first = checkpoints, screen, now, first
        self._steps, self._seconds = steps_and_seconds(every)
        self._at_the_end = at_the_end or bool(self._steps or self._seconds)
        self._wait, self._since = float(self._seconds), now()
        self.saved: int | None = None  # the last step that is on disk
        self._asked = self._since

    def on_train_begin(self, decoder: Decoder, steps: int) -> None:
        self._since = self._now()

    def on_resume(self, state: TrainState) -> None:
        self.saved = state.progress.done

    def wants_state(self, pause: Pause) -> bool:
        if not pause.steps:
            return False
        self._asked = self._now()  # making the state is a part of what a save takes
        if pause.stops:
            return self.saved != pause.steps
        if pause.ends:
            return self._at_the_end
        if self._steps:
            return pause.steps % self._steps == 0
        return bool(self._seconds) and self._asked - self._since >= self._wait

    def on_state(self, state: TrainState) -> None:
        try:
            self._checkpoints.save(state, self._first)
            self.saved = state.progress.done
        except CheckpointError as error:
            self._screen.say(f"  {error}", "yellow")
        self._since = self._now()
        self._wait = max(self._seconds, (self._since - self._asked) / SHARE)


class StopsBySignal(Observer):
    """Stops a training after the step in which a signal came; before the first step and after the last, at once."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def on_resume(self, state: TrainState) -> None:
        self._stop.patient = True

    def on_step(self, record: StepRecord) -> None:
        self._stop.patient = True  # what was evaluated before the first step is lost by nobody

    def wants_stop(self) -> bool:
        return self._stop.number is not None

    def on_train_end(self, decoder: Decoder, result: TrainResult) -> None:
        self._stop.patient = False
