"""A run in a process of its own, which ends with the one that started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from instil.errors import InstilError, StoppedEarly
from instil.machine import is_out_of_memory, settle
from instil.recipes.run.run import run
from instil.runs.proof import NotTheSame
from instil.screen import Screen
from instil.stopping import Stopped


def run_apart(data: str, model: str, out: Path, *, quiet: bool, **options: Any) -> None:
    """`run` in a new process; waits for it.

    Raises:
        StoppedEarly: it was stopped, and can go on; the message is its own.
        InstilError: it failed; likewise.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, data, model, out, quiet, options))
    process.start()
    theirs.close()
    try:
        try:
            failed, early = ours.recv()
        except EOFError:
            failed, early = "", False
        process.join()
    finally:
        if process.is_alive():  # this process was told to stop
            process.terminate()
            process.join()
        ours.close()
    if failed:
        raise (StoppedEarly if early else InstilError)(failed)
    if process.exitcode:
        killed = process.exitcode == -signal.SIGKILL
        why = "killed, perhaps for want of memory" if killed else f"exit code {process.exitcode}"
        raise InstilError(f"the process of the run ended early ({why})")


def _work(tell: Connection, data: str, model: str, out: Path, quiet: bool, options: dict[str, Any]) -> None:
    """What the new process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells both; the other one ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    settle()
    message, early = "", False
    try:
        run(data, model, out, screen=Screen(quiet=quiet), **options)
    except Stopped as stopped:
        os._exit(128 + stopped.number)  # the other process says what there is to say
    except Exception as error:
        message, early = reason_of(error, out if options.get("resume") else None), isinstance(error, StoppedEarly)
    tell.send((message, early))
    tell.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)  # at once: what lies on disk is an unfinished run


def reason_of(error: BaseException, going_on: Path | None = None) -> str:
    """Why a run failed, in one line.

    Args:
        error: what ended it.
        going_on: the folder of one that was to go on from where it was; where that cannot be, it is said how it is
            made anew (a sweep has no --force).
    """
    anew = f"; remove {going_on} to have it made anew" if going_on is not None else ""
    if is_out_of_memory(error):
        return "out of memory; lower train.micro_batch or generate.batch_size"
    if isinstance(error, NotTheSame):
        return f"{error.said}{anew}"
    if isinstance(error, InstilError):
        return str(error)
    return f"{type(error).__name__}: {error}{anew}"
