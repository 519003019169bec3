"""Signals that ask a process to stop: at once, or, while a training is under way, after the step being taken."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked the process to stop. Not an Exception, so that no library swallows it.

    Attributes:
        number: of the signal.
        kept: what there is to say of the work that it ended, as a clause; empty where that is not known.
        folder: of the run that was at work, and can be gone on with; None where nothing of one was written.
    """

    def __init__(self, number: int, kept: str = "", folder: Path | None = None) -> None:
        super().__init__(number)
        self.number, self.kept, self.folder = number, kept, folder

    @property
    def name(self) -> str:
        """The signal's, such as SIGTERM."""
        return signal.Signals(self.number).name


def stop_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """A handler: leave from wherever the process is."""
    del frame
    raise Stopped(number)


@contextmanager
def held_back() -> Iterator[None]:
    """Inside, signals wait; also for a process that is started here, until it calls `let_through`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        let_through()


def let_through() -> None:
    """Have what comes, and what has waited."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def nothing_to_lose() -> Iterator[None]:
    """Inside, a signal ends the process as the system does it, also where it waits in a library for others."""
    before: dict[signal.Signals, object] = {}
    if threading.current_thread() is threading.main_thread():
        before = {one: signal.getsignal(one) for one in SIGNALS}
    ours = {one: handler for one, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for one in ours:
        signal.signal(one, signal.SIG_DFL)
    try:
        yield
    finally:
        for one, handler in ours.items():
            signal.signal(one, handler)  # type: ignore[arg-type]


class Stop:
    """Inside its ``with`` block a signal is noted while ``patient`` is set; else, or the second time, it stops at once.

    Handlers are those of the process, so they are set from the main thread only, and those before are put back. What
    the process ignores (``nohup``) stays ignored.

    Args:
        quiet: say nothing when a signal comes.
        echo: seconds in which another one is taken for the same: a launcher passes on what a terminal has sent already.

    Attributes:
        number: of the signal that came; None as long as there was none.
        patient: whether somebody will look at ``number`` soon.
    """

    def __init__(self, *, quiet: bool = False, echo: float = 0.0) -> None:
        self.number: int | None = None
        self._echo, self._since = echo, -math.inf
        self.patient = False
        self._quiet = quiet
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):  # None: not set from Python, and could not be put back
                    self._before[number] = before
                    signal.signal(number, self._came)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]

    def _came(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is not None and now - self._since < self._echo:
            return
        if self.number is not None or not self.patient:
            raise Stopped(number)
        self.number, self._since = number, now
        if not self._quiet:
            with suppress(OSError):  # not by the screen, which may be in the middle of a line
                os.write(2, b"\nstops after this step, and saves it; once more: at once\n")
