"""What a run is doing and by which process, in one small file that is its lock as well: ``status.json``.

A folder belongs to the process that its status names, as long as that is at work and alive. On one machine the system
says whether it is (a lock on the folder that it holds, and its number with the time at which it began); of a process
that cannot be seen from here, on another machine or in another container, the file tells it, which is written anew
every few seconds. It is always written whole.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

from instil.errors import InstilError, RunFolderTaken, StoppedEarly
from instil.files import FULL, PROBE, json_text, make_folder, read_json, record_of, write_json
from instil.model.decoder import Decoder
from instil.runs.processes import Process
from instil.screen import Screen, clock
from instil.stopping import Stopped
from instil.train.metrics import StepRecord
from instil.train.observer import Observer, TrainResult
from instil.train.state import TrainState

STATUS = "status.json"
BEAT = 20.0  # seconds between two signs of life
SILENT = 300.0  # seconds without one after which a process that cannot be seen counts as gone
PATIENCE, AGAIN = 2.0, 0.05  # seconds for which a folder is waited for that somebody only looks at, and between tries
LONGEST = 500  # characters of a reason
LARGEST = 1 << 16  # bytes of the file

State = Literal["running", "stopped", "finished", "failed"]


@dataclass(frozen=True, slots=True)
class Status:
    """What a run is doing: ``done`` of ``planned`` steps (None: not known yet), since ``started``, by which process.

    ``why`` says why it was stopped or failed, or why it is finished after fewer steps than planned.
    """

    state: State
    why: str
    pid: int
    host: str
    started: str
    done: int
    planned: int | None
    began: str = ""
    system: str = ""

    @property
    def process(self) -> Process:
        """Who wrote it."""
        return Process(self.pid, self.began, self.host, self.system)

    def as_seen(self, silent: float) -> Status:
        """The same, where nobody wrote down how it ended.

        Args:
            silent: seconds since the last sign of life.
        """
        if self.state == "running" and not self._works(silent):
            return replace(self, state="stopped", why=f"{self.process} is gone and had not ended it")
        if self.state == "finished" and self.done != self.planned and not self.why:
            return replace(self, state="stopped", why=f"{self.done} of {self.planned} steps are done")
        return self

    def _works(self, silent: float) -> bool:
        alive = self.process.is_alive()
        return silent < SILENT if alive is None else alive


def read_status(folder: Path) -> Status | None:
    """What a run's status says, whoever looks: one whose process is gone is stopped. None where there is none."""
    status, silent = _read(folder / STATUS, time.time())
    return status and status.as_seen(silent)


def _read(file: Path, now: float) -> tuple[Status | None, float]:
    """What was written there, if it can be read, and how many seconds ago."""
    try:
        if not file.is_file() or file.stat().st_size > LARGEST:  # a pipe would be waited for
            return None, 0.0
        return record_of(Status, read_json(file), strict=False), now - file.stat().st_mtime
    except (InstilError, ValueError, OSError):
        return None, 0.0


def check_idle(folder: Path) -> None:
    """Make sure that nobody is at work in a folder.

    Raises:
        RunFolderTaken: somebody is.
    """
    with suppress(OSError):  # what else is wrong with it is told by who makes it
        os.close(_lock(folder))


@contextmanager
def idle(folder: Path) -> Iterator[None]:
    """Hold a folder in which nobody is at work, so that nobody comes to be at work there meanwhile.

    Raises:
        RunFolderTaken: somebody is.
        OSError: there is no such folder, or it cannot be read.
    """
    handle = _lock(folder)
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Work that writes there, and is stopped where it finds no room.

    Raises:
        StoppedEarly: so it was.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = error.filename or folder  # a write says none
        raise StoppedEarly(f"{where}: {error.strerror}; make room there, and --resume goes on") from error


@contextmanager
def at_work(folder: Path, screen: Screen) -> Iterator[Work]:
    """Be the one that works in a run's folder, which is made if it is not there; write down how that ends.

    What ends it by an error is stopped (a signal, or work that is kept) or has failed. A disk without room stops it:
    what the run has made lies there, and is gone on with.

    Raises:
        StoppedEarly: there is no room for what it writes.
        RunFolderTaken: another process is at work there.
        UserError: the folder cannot be made.
    """
    make_folder(folder)
    handle = _lock(folder)
    try:
        before, _ = _read(folder / STATUS, time.time())
        if before is not None and before.state == "running":
            screen.say(f"  {before.process} was at work in {folder} and is gone; taken over", "yellow")
        work = Work(folder)
        try:
            with room(folder):
                yield work
        except BaseException as error:
            if isinstance(error, Stopped):
                error.folder = folder
            kept = isinstance(error, Stopped | KeyboardInterrupt | StoppedEarly | GeneratorExit)
            if work.status.state == "running":  # what comes after its end does not undo it
                with suppress(OSError):  # then it says for ever that a process is at work which is gone
                    work.end("stopped" if kept else "failed", _why(error))
            raise
        if work.status.state == "running":
            work.end("stopped", "it was left before it was finished")
    finally:
        os.close(handle)  # and with it the lock


def _why(error: BaseException) -> str:
    if isinstance(error, Stopped):
        return f"{error.name}{f'; {error.kept}' if error.kept else ''}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror or error}"[:LONGEST]
    said = str(error) if isinstance(error, InstilError) else f"{type(error).__name__}: {error}".removesuffix(": ")
    return said[:LONGEST]


def _lock(folder: Path) -> int:
    """Hold a folder, until what is returned is closed.

    Raises:
        RunFolderTaken: another process works there.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        held, until = _flock(handle), time.monotonic() + PATIENCE
        status, silent = _read(folder / STATUS, _now(folder))
        while held is False:
            works = status is not None and status.as_seen(silent).state == "running"
            if works or time.monotonic() >= until:
                who = status.process if status is not None and works else "another process"
                raise RunFolderTaken(f"{folder}: {who} is at work there; wait for it, stop it, or choose another --out")
            time.sleep(AGAIN)  # one that looks, begins or ends has it for a moment
            held = _flock(handle)
            status, silent = _read(folder / STATUS, _now(folder))
        if status is None or status.state != "running" or status.process == Process.own():
            return handle
        if held and status.process.shares_kernel():  # alive, it would hold the lock
            return handle
        alive = status.process.is_alive()
        if alive:
            raise RunFolderTaken(
                f"{folder}: {status.process} is at work there; wait for it, stop it, or choose another --out"
            )
        if alive is None and silent < SILENT:
            raise RunFolderTaken(
                f"{folder}: {status.process} is at work there, and last gave a sign of life {clock(max(silent, 0))} "
                f"ago; wait for it, stop it there, or choose another --out. If it is gone, the folder is free in "
                f"{clock(SILENT - max(silent, 0))}, or as soon as you remove {folder / STATUS}"
            )
    except BaseException:
        os.close(handle)
        raise
    return handle


def _flock(handle: int) -> bool | None:
    """Whether the lock on a folder is ours; None where its file system has none (some network drives)."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _now(folder: Path) -> float:
    """The time by the clock that dates files there: another machine's, on a network drive."""
    try:
        with TemporaryFile(dir=folder, prefix=PROBE) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


class Work(Observer):
    """A run under way in a folder that is held; watches its training, and gives signs of life from a thread."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / STATUS
        own, started = Process.own(), datetime.now(UTC).isoformat(timespec="seconds")
        self.status = Status("running", "", own.pid, own.host, started, 0, None, own.began, own.system)
        self._writing, self._ended = threading.Lock(), threading.Event()
        self._taken_by: Process | None = None
        self._write()
        self._beats = threading.Thread(target=self._beat, name="instil-status", daemon=True)
        self._beats.start()

    def on_train_begin(self, decoder: Decoder, steps: int) -> None:
        with suppress(OSError):  # it is written again with the next sign of life
            self._now(planned=steps)

    def on_resume(self, state: TrainState) -> None:
        with suppress(OSError):
            self._now(done=state.progress.done)

    def on_step(self, record: StepRecord) -> None:
        self.status = replace(self.status, done=record.step)  # written with the next sign of life
        self._check_ours()

    def on_train_end(self, decoder: Decoder, result: TrainResult) -> None:
        """Training is done, and a run of which this says so is: where fewer steps were taken, something says why.

        Raises:
            InstilError: nothing does.
        """
        why = result.diverged or result.ended
        if result.steps != result.planned and not why:
            raise InstilError(f"training ended after {result.steps:,} of {result.planned:,} steps; the run is not done")
        self.status = replace(self.status, done=result.steps, planned=result.planned, why=why)

    def finish(self) -> None:
        """All of the run is done.

        Raises:
            RunFolderTaken: the folder belongs to another process by now.
            OSError: it cannot be written down.
        """
        self._check_ours()
        self.end("finished", self.status.why)

    def end(self, state: State, why: str) -> None:
        """The last that is written."""
        self._ended.set()
        self._beats.join(timeout=BEAT)
        if self._taken_by is None:
            self._now(state=state, why=why)

    def _check_ours(self) -> None:
        if self._taken_by is not None:
            raise RunFolderTaken(
                f"{self._file.parent}: {self._taken_by} has taken the folder over, since this one had given no sign of "
                "life; this one ends here"
            )

    def _now(self, **changed: object) -> None:
        self.status = replace(self.status, **changed)  # type: ignore[arg-type]
        with self._writing:
            self._write()

    def _write(self) -> None:
        """Write it whole; on a disk that is full in its own place, where there is room for so few bytes.

        Else a run that ended for want of room would not say so, and one that goes on would give no sign of life.

        Raises:
            OSError: it cannot be written.
        """
        try:
            write_json(self._file, asdict(self.status))
        except OSError as error:
            if error.errno not in FULL or not self._file.is_file():
                raise
            text = json_text(asdict(self.status)).encode()
            with self._file.open("r+b", buffering=0) as file:
                file.write(text)
                file.truncate()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            found, _ = _read(self._file, 0.0)
            if found is not None and found.process != self.status.process:
                self._taken_by = found.process
                return
            with suppress(OSError), self._writing:  # next time
                self._write()
