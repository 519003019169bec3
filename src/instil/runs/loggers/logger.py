"""What a logger is asked, and a thread that asks it: so training never waits for one, and never ends by one."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Call = Callable[["Logger"], None]
ROOM = 10_000  # calls that wait for a logger; what comes while so many do is left out


@dataclass(frozen=True, slots=True)
class About:
    """A run as loggers are told of it.

    Attributes:
        name: what people call it.
        key: the same for a run that goes on, and for no other.
        folder: where a logger may put its files.
        project: what the run is filed under.
        online: whether the network may be used.
        facts: settings and what else shaped the run, by dotted names.
        after: the step that training goes on after; None where it begins.
    """

    name: str
    key: str
    folder: Path
    project: str
    online: bool
    facts: Mapping[str, str | int | float | bool]
    after: int | None = None


class Logger(Protocol):
    """Where a run is written down. All calls of one come from one thread; each may take long, or raise anything."""

    def begin(self, about: About) -> None:
        """A run begins or goes on."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """What is known after a step, by names such as ``train/loss``."""

    def end(self, *, finished: bool) -> None:
        """The run has finished, or was broken off."""


class Aside:
    """A logger on a thread of its own.

    What it raises switches it off and stands in ``problem``. Nobody waits for it, but for `close`, and that not longer
    than it is told to; a thread that is still busy then does not keep the process.
    """

    def __init__(self, name: str, logger: Logger, room: int = ROOM) -> None:
        self.name, self.problem, self.left_out = name, "", 0
        self._logger, self._room = logger, room
        self._calls: deque[Call] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"log to {name}", daemon=True)
        self._thread.start()

    def ask(self, call: Call) -> None:
        """Let the logger do this when it comes to it; left out where too much waits for it already."""
        with self._changed:
            if self.problem or self._closed:
                return
            if len(self._calls) >= self._room:
                self.left_out += 1
                return
            self._calls.append(call)
            self._changed.notify()

    def close(self, call: Call) -> None:
        """Let the logger do this last; it does not wait."""
        with self._changed:
            if not self._closed:
                self._closed = True
                self._calls.append(call)
                self._changed.notify()

    def ended(self, until: float) -> bool:
        """Wait for the end until then (`time.monotonic`); whether it has come."""
        self._thread.join(max(0.0, until - time.monotonic()))
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._calls:
                    if self._closed:
                        return
                    self._changed.wait()
                call = self._calls.popleft()
            try:
                call(self._logger)
            except BaseException as error:  # whatever it is, it is the logger's
                with self._changed:
                    self.problem = _in_a_line(error)
                    self._calls.clear()
                return


def _in_a_line(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:200]}" if said else type(error).__name__
