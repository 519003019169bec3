"""The observer that has a training written down elsewhere, too, by whom ``log.to`` names."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from instil.errors import DataError, counted
from instil.machine import leave_behind
from instil.model.decoder import Decoder
from instil.runs.folder import RunFolder
from instil.runs.loggers.libraries import LOGGERS
from instil.runs.loggers.logger import About, Aside, Logger
from instil.screen import Screen
from instil.settings.log import LogOptions
from instil.train.metrics import StepRecord
from instil.train.observer import Observer, TrainResult
from instil.train.state import TrainState

WAIT = 10.0  # seconds for which all loggers together are waited for after training
BROKEN_OFF = 2.0  # the same where training was broken off


class Logs(Observer):
    """Tells loggers of a training, each on a thread of its own. Use it in a ``with`` block around the training.

    One that fails is named once and switched off, and the training goes on. What is printed meanwhile goes to stderr,
    since libraries greet people and stdout is for results.

    Args:
        options: whom, and how.
        folder: the run's.
        screen: where a failure is shown.
        loggers: those that there are, by name.
    """

    def __init__(
        self,
        options: LogOptions,
        folder: RunFolder,
        screen: Screen,
        loggers: Mapping[str, Callable[[], Logger]] = LOGGERS,
    ) -> None:
        self._screen = screen
        self._about = about_of(options, folder) if options.to else None
        self._asides = [Aside(name, loggers[name]()) for name in options.to]
        self._stdout = ExitStack()
        self._after: int | None = None
        self._begun = self._ended = False

    def __enter__(self) -> Self:
        if self._asides:
            self._stdout.enter_context(redirect_stdout(sys.stderr))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stdout:
            self._end(finished=False)

    def on_resume(self, state: TrainState) -> None:
        self._after = state.progress.done

    def on_step(self, record: StepRecord) -> None:
        if self._about is None:
            return
        if not self._begun:
            self._begun = True
            about = replace(self._about, after=self._after)
            for aside in self._asides:
                aside.ask(lambda logger: logger.begin(about))
        values = dict(values_of(record))
        for aside in self._asides:
            aside.ask(lambda logger: logger.log(record.step, values))
        self._switch_off()

    def on_train_end(self, decoder: Decoder, result: TrainResult) -> None:
        self._end(finished=True)

    def _end(self, *, finished: bool) -> None:
        if self._ended:
            return
        self._ended = True
        for aside in self._asides:
            aside.close(lambda logger: logger.end(finished=finished) if self._begun else None)
        until = time.monotonic() + (WAIT if finished else BROKEN_OFF)
        for aside in self._asides:
            if not aside.ended(until):
                leave_behind(aside.name)
                self._say(f"{aside.name} has not ended and is left behind; what it has of this run may not be whole")
            elif aside.left_out:
                self._say(f"{aside.name} was too slow: {counted(aside.left_out, 'step')} left out")
        self._switch_off()

    def _switch_off(self) -> None:
        for aside in [aside for aside in self._asides if aside.problem]:
            self._asides.remove(aside)
            self._say(f"{aside.name} is switched off for this run: {aside.problem}")

    def _say(self, text: str) -> None:
        self._screen.warn(f"  log.to: {text}")


def about_of(options: LogOptions, folder: RunFolder) -> About:
    """What loggers are told of a run, by its ``run.toml``."""
    try:
        said = folder.read_settings()
    except DataError:
        said = {}
    facts: dict[str, Any] = {key: said[key] for key in ("model", "data", "instil") if key in said}
    facts |= {
        f"{section}.{key}": value if isinstance(value, str | int | float | bool) else str(value)
        for section, values in said.get("settings", {}).items()
        if section != "log"
        for key, value in values.items()
    }
    path = folder.path.resolve()
    key = hashlib.sha256(f"{said.get('created', '')} {path}".encode()).hexdigest()[:16]
    return About(path.name or "run", key, path / "logs", options.project, options.online, facts)


def values_of(record: StepRecord) -> Iterator[tuple[str, float]]:
    """What is known of a step by the names that loggers have for it; only finite numbers."""
    known: dict[str, Any] = {
        "train/loss": record.train_loss,
        "train/loss_evaluated": record.eval_train_loss,
        "validation/loss": record.val_loss,
    }
    if record.step:
        known |= {
            "train/learning_rate": record.learning_rate,
            "train/tokens_per_second": record.tokens_per_second,
        }
    known |= {"train/epoch": record.epoch, "train/tokens_seen": record.tokens_seen}
    known |= {f"train/{name}": value for name, value in (record.metrics or {}).items()}
    known |= {f"validation/{name}": value for name, value in (record.val_metrics or {}).items()}
    for name, value in known.items():
        if value is not None and math.isfinite(value):
            yield name, float(value)
