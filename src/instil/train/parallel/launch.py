"""Several processes of one command on this machine, as torchrun starts them, with the exit code of the first."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from instil.errors import RankLost
from instil.stopping import SIGNALS, held_back

GRACE = 5.0  # seconds that a process has to end after it was asked to
SAVING = 300.0  # and the first, which may have to save
LOOK = 0.1  # seconds between two looks at the processes
PR_SET_PDEATHSIG = 1
NUMBER = "INSTIL_PROCESSES"  # how many there are, for who says how to go on
LAUNCHED = "INSTIL_LAUNCHED"  # in the environment of a process that is to end with the one that started it


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run ``instil ARGUMENTS`` in so many processes that find one another; returns the exit code of the first.

    A signal is passed on to all of them. Where one dies, the others end: the first saves what it can.

    Raises:
        RankLost: the first died, or did not end, so that nobody else says anything.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // processes) if hasattr(os, "sched_getaffinity") else 1
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
    usual = {"OMP_NUM_THREADS": str(threads), LAUNCHED: str(os.getpid()), NUMBER: str(processes)}
    started: list[subprocess.Popen[bytes]] = []
    passed: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        passed.append(number)
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    before: dict[signal.Signals, object] = {}
    try:
        with held_back():  # each has a signal that comes now when it can do something about it
            before = {one: signal.signal(one, pass_on) for one in SIGNALS if signal.getsignal(one) != signal.SIG_IGN}
            for rank in range(processes):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "instil", *arguments],
                        env={**usual, **os.environ, **where, **own},
                        start_new_session=True,  # a terminal's Ctrl-C reaches each once: through `pass_on`
                    )
                )
        return _watch(started, passed)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)  # type: ignore[arg-type]
        for process in started:
            process.kill()
            process.wait()


def end_with_launcher() -> None:
    """Be asked to stop when the process that launched this one is gone, however it ended (on Linux)."""
    parent = os.environ.pop(LAUNCHED, "")
    if not parent or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # gone before it could be said
        os.kill(os.getpid(), signal.SIGTERM)


def _watch(started: Sequence[subprocess.Popen[bytes]], passed: Sequence[int]) -> int:
    """Wait for their end; ``passed`` are the signals that they were sent.

    Raises:
        RankLost: the first died of something else, or did not end.
    """
    first = started[0]
    while all(process.poll() in (None, 0) for process in started):
        if all(process.poll() is not None for process in started):
            return 0
        time.sleep(LOOK)
    lost = first.poll() is None and not passed
    if passed:
        _ends(first, SAVING)
    if lost:  # it may be far from where it would notice
        _ends(first, GRACE)
        first.terminate()
        _ends(first, SAVING)
    until = time.monotonic() + GRACE
    for process in started[1:]:
        _ends(process, max(0.0, until - time.monotonic()))
        process.terminate()
    code = first.poll()
    kept = "what was saved is kept, and --resume goes on"
    if code is None:
        raise RankLost(f"the first process of this run did not end by itself; {kept}")
    if code < 0 and -code not in passed:
        raise RankLost(f"the first process of this run is gone ({_name(-code)}); {kept}")
    if lost and code in (0, 128 + signal.SIGTERM):
        return RankLost.exit_code
    return 128 - code if code < 0 else code


def _name(number: int) -> str:
    """A signal's, with its most frequent reason."""
    name = signal.Signals(number).name
    return f"{name}, as of a system without memory" if number == signal.SIGKILL else name


def _ends(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for its end, but no longer."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
