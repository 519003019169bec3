"""14: a process that dies at any of its calls to the system that change a disk; who comes after finds what it needs.

Real processes (forks of this one), really killed, before each opening, writing, half-writing, syncing, renaming and
removing in turn. What a power cut loses besides is looked at in `tests/runs/test_checkpoints.py`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from instil.recipes.run.run import run
from instil.runs.checkpoints import Checkpoints, Disk
from instil.runs.status import read_status
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.train.state import TrainState
from tests.conftest import rows
from tests.recipes.test_resume import USUAL, left_by
from tests.runs.test_checkpoints import States, assert_is
from tests.train.test_state import CASES, assert_same, ended, scramble, whole

NAME = "patience"
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Dies:
    """Kills its process before the ``at``-th call, from 1, that changes something in a folder; 0 only counts."""

    def __init__(self, folder: Path, at: int) -> None:
        self.folder, self.at, self.done = str(folder), at, 0

    def count(self) -> None:
        self.done += 1
        if self.done == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = given
            if not (set(mode or "") & set("wax+") or flags & WRITING):
                return
        elif event in CHANGES:
            path = given[0]
        else:
            return
        if isinstance(path, str | Path) and str(path).startswith(self.folder):
            self.count()


def dying(folder: Path, at: int) -> Dies:
    """Let this process be one that dies; for ever, so it has to be one of its own."""
    dies, write, sync, sync_folder = Dies(folder, at), Disk.write, Disk.sync, Disk.sync_folder
    sys.addaudithook(dies.hook)

    def writes(self: Disk, file: FileIO, piece: bytes | memoryview) -> None:  # Python has no hook for these
        half = len(piece) // 2
        for part in (memoryview(piece)[:half], memoryview(piece)[half:]):
            dies.count()
            write(self, file, part)

    def syncs(self: Disk, file: FileIO) -> None:
        dies.count()
        sync(self, file)

    def syncs_folder(self: Disk, folder: Path) -> None:
        dies.count()
        sync_folder(self, folder)

    for name, does in (("write", writes), ("sync", syncs), ("sync_folder", syncs_folder)):
        setattr(Disk, name, does)
    return dies


def forked(work: Callable[[], object]) -> int:
    """How a process ended that did this: 0, 1 for an error, -9 if it was killed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def states() -> list[TrainState]:
    watching = States()
    CASES[NAME].run([watching])
    return watching.found


@pytest.mark.slow  # some of it is in tests/runs/test_checkpoints.py, at once
def test_a_save_that_dies_at_any_call_leaves_a_state_that_leads_to_the_same_end(
    tmp_path: Path, states: list[TrainState]
) -> None:
    wanted, _ = whole(NAME)
    earlier, at, led = tmp_path / "earlier", 0, set[int]()
    for state in states[2:4]:
        Checkpoints(earlier).save(state)

    def save(folder: Path, at: int) -> None:
        dying(folder, at)
        Checkpoints(folder).save(states[4])

    while True:
        at += 1
        folder = Path(shutil.copytree(earlier, tmp_path / str(at)))
        code = forked(lambda folder=folder, at=at: save(folder, at))  # type: ignore[misc]
        assert code in (0, -9), at
        found = Checkpoints(folder).newest()
        assert found.damaged == (), at
        assert found.state is not None, at
        done = found.state.progress.done
        assert done in (3, 4), at
        assert_is(found.state, states[done])
        if done not in led:
            led.add(done)
            scramble()
            again = ended(CASES[NAME], found.state)
            again["samples"] = wanted["samples"]
            assert_same(again, wanted)
        Checkpoints(folder).save(states[5])
        assert len(list(folder.iterdir())) == 2, at
        shutil.rmtree(folder)
        if code == 0:
            break
    assert led == {3, 4}
    assert at > 100  # so many calls there are


@pytest.mark.parametrize("share", [0.9, *(pytest.param(n / 29, marks=pytest.mark.slow) for n in range(29))])
def test_a_run_that_dies_at_any_call_goes_on_to_the_same_end(share: float, tiny_folder: Path, tmp_path: Path) -> None:
    """The whole of it: its folder made, its checkpoints, its model, its report."""
    share = min(0.999, share + random.Random(share).random() / 29)
    settings = resolve(values=USUAL | {"max_steps": 4, "save_every": "2", "patience": 3, "eval_every": 2})

    def tuned(out: Path, *, resume: bool = False) -> None:
        run(rows(30), tiny_folder, out, settings, answers=False, resume=resume, screen=Screen(quiet=True))

    def counted(out: Path, at: int) -> None:
        dies = dying(out, at)
        tuned(out)
        if not at:
            (out.parent / "calls").write_text(str(dies.done))

    assert forked(lambda: counted(tmp_path / "whole", 0)) == 0
    calls = int((tmp_path / "calls").read_text())
    out = tmp_path / "run"
    assert forked(lambda: counted(out, 1 + int(share * calls))) == -9
    status = read_status(out)
    assert status is None or status.state == "stopped"
    if (out / "report.html").exists() and status is not None and status.state == "finished":
        return
    assert forked(lambda: tuned(out, resume=True)) == 0
    assert left_by(out) == left_by(tmp_path / "whole")
    status = read_status(out)
    assert status is not None
    assert (status.state, status.done) == ("finished", 4)
