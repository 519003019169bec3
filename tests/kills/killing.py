"""Small runs in processes of their own, which are killed with SIGKILL at moments that are drawn.

A process is forked off one that has made such a run to its end, so that everything is imported and its time is the
run's. It tells in a page of shared memory what it is about; of the run itself only its pictures are left out.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import struct
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from matplotlib.figure import Figure

from instil.errors import RunFolderTaken
from instil.recipes.plan.clock import RunClock
from instil.recipes.run.held_out import HeldOutAnswers
from instil.recipes.run.run import run
from instil.runs.checkpoints import Checkpoints
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.tasks.pairs import task as pairs_task
from tests.conftest import rows, stands_for_a_picture
from tests.general import little_material
from tests.kills.left import differences, left_by

PHASES = (
    "preparing", "answering before", "measuring", "reference", "training", "saving", "answering after",
    "scoring", "reporting",
)  # fmt: skip
STAGES = {"train": "training", "save": "saving", "answer after": "answering after"}
USUAL: dict[str, Any] = {
    "max_steps": 12, "eval_every": 4, "max_new_tokens": 4, "save_every": "2", "max_length": 128, "template": "plain",
}  # fmt: skip
PAIRS = [{**row, "chosen": row["output"], "rejected": "I do not know."} for row in rows(60)]
FINISHED = 3  # the exit code of a run that has come to its end before


@dataclass(frozen=True)
class Kind:
    """A kind of run."""

    settings: dict[str, Any] = field(default_factory=dict)
    answers: bool = False
    pairs: bool = False

    @property
    def phases(self) -> list[str]:
        """What it goes through."""
        answering = {"answering before", "answering after", "scoring", "measuring"}
        return [one for one in PHASES if (self.answers or one not in answering) and (self.pairs or one != "reference")]


KINDS = {
    "full": Kind({"micro_batch": 3}),
    "LoRA": Kind({"method": "lora", "lora": {"rank": 2}, "patience": 50}),
    "DPO": Kind({"objective": "dpo", "method": "lora", "lora": {"rank": 2}}, pairs=True),
    "run with answers": Kind({"max_steps": 6}, answers=True),
}


SEEN = "dddd"  # of each phase: when it began first and ended last, the seconds in it, and how often it was entered
SIZE = struct.calcsize(SEEN)


class Told:
    """What a process is about, and how long each phase took, in memory that two processes share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._since = time.monotonic()

    def enter(self, phase: str) -> str:
        """The process begins something; returns what it was about."""
        before, now = self.phase, time.monotonic()
        first, _, total, visits = self._seen(before)
        self._write(before, first, now, total + now - self._since, visits)
        first, last, total, visits = self._seen(phase)
        self._write(phase, first or now, last, total, visits + 1)
        self._since = now
        self._memory[0] = PHASES.index(phase)
        return before

    @property
    def phase(self) -> str:
        """What it is about."""
        return PHASES[self._memory[0]]

    def seconds(self, phase: str) -> tuple[float, float]:
        """How long it took from its first beginning to its last end, and how long it took each time, on average."""
        first, last, total, visits = self._seen(phase)
        return last - first, total / max(visits, 1)

    def forget(self) -> None:
        """Another process is to use it."""
        self._memory[:] = bytes(len(self._memory))
        self._since = time.monotonic()
        self._write(PHASES[0], self._since, self._since, 0.0, 1)

    def _seen(self, phase: str) -> tuple[float, float, float, float]:
        first, last, total, visits = struct.unpack_from(SEEN, self._memory, SIZE * (PHASES.index(phase) + 1))
        return first, last, total, visits

    def _write(self, phase: str, *seen: float) -> None:
        struct.pack_into(SEEN, self._memory, SIZE * (PHASES.index(phase) + 1), *seen)


@contextmanager
def telling(told: Told) -> Iterator[None]:
    """Within, runs of this process tell what they are about."""
    stage, end = RunClock.stage, RunClock.end

    @contextmanager
    def told_stage(self: RunClock, name: str) -> Iterator[None]:
        likely = {"likelihood": "scoring", "measure": "measuring"}.get(name.split(maxsplit=1)[0], "preparing")
        told.enter("answering before" if name.startswith("answer before") else STAGES.get(name, likely))
        with stage(self, name):
            yield

    def within(phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def inside(*given: Any, **more: Any) -> Any:
            before = told.enter(phase)
            found = call(*given, **more)
            told.enter(before)
            return found

        return inside

    def told_end(self: RunClock) -> None:
        told.enter("reporting")
        end(self)

    with (
        patch.object(RunClock, "stage", told_stage),
        patch.object(RunClock, "end", told_end),
        patch.object(Checkpoints, "save", within("saving", Checkpoints.save)),
        patch.object(HeldOutAnswers, "_score", within("scoring", HeldOutAnswers._score)),
        patch.object(pairs_task, "with_reference", within("reference", pairs_task.with_reference)),
        patch.object(Figure, "savefig", stands_for_a_picture),
        little_material(),
    ):
        yield


@dataclass
class Killer:
    """Makes runs of one kind, kills them, and compares what they leave with a run that was never killed.

    Args:
        kind: its name.
        model: a folder.
        place: where runs go.
        drawn: what draws the moments.
    """

    kind: str
    model: Path
    place: Path
    drawn: random.Random
    killed: Counter[str] = field(default_factory=Counter)  # by what the process was about
    runs: int = 0
    wrong: list[str] = field(default_factory=list)
    told: Told = field(default_factory=Told)
    usual: dict[str, tuple[float, float]] = field(default_factory=dict)
    wanted: dict[str, Any] = field(default_factory=dict)

    def go(self, kills: int, runs: int = 0) -> None:
        """So many kills in all, several a run; with ``runs`` at most so many runs more."""
        out, last = self.place / "whole", self.runs + runs if runs else float("inf")
        self.place.mkdir(parents=True, exist_ok=True)
        if not self.wanted:
            self.told.forget()
            with telling(self.told):
                tuned(self.kind, self.model, out)
            process = self._fork(self.place / "second")  # nothing is to be imported in it
            assert self._wait(process) == 0, self._said(self.place / "second")
            self.usual = {phase: self.told.seconds(phase) for phase in KINDS[self.kind].phases}
            self.wanted = left_by(out)
        while self.killed.total() < kills and self.runs < last:
            self._one(self.place / f"run-{self.runs}", min(self.drawn.randint(1, 8), kills - self.killed.total()))

    def _one(self, out: Path, kills: int) -> None:
        """One run that is killed so often, unless it ends before, and then goes on to its end."""
        while kills and self._kill(out):
            kills -= 1
        code = self._wait(self._fork(out))
        self.runs += 1
        if code not in (0, FINISHED):
            self.wrong.append(f"{out}: exit code {code}: {self._said(out)}")
            return
        if unlike := differences(left_by(out), self.wanted):
            self.wrong.append(f"{out}: not as the run that was never killed: {', '.join(unlike)}")
            return
        shutil.rmtree(out)

    def _kill(self, out: Path) -> bool:
        """Start, or go on, and kill at a moment within a phase; false where it came to its end before."""
        phase = self.drawn.choice(KINDS[self.kind].phases)
        whole, once = self.usual[phase]
        process = self._fork(out)
        for seconds in (self.drawn.random() * whole, self.drawn.random() * once):  # such as one of several saves
            while self.told.phase != phase:
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    return self._ended(out, status)
                time.sleep(0.0005)
            time.sleep(seconds)
            if self.told.phase == phase:
                break
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.WIFEXITED(status):
            return self._ended(out, status)
        self.killed[self.told.phase] += 1
        return True

    def _ended(self, out: Path, status: int) -> bool:
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, FINISHED):
            self.wrong.append(f"{out}: exit code {code}: {self._said(out)}")
        return False

    def _wait(self, process: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def _fork(self, out: Path) -> int:
        self.told.forget()
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            with telling(self.told):
                tuned(self.kind, self.model, out)
            self.told.enter("reporting")
            code = 0
        except RunFolderTaken:
            code = FINISHED
        except BaseException:
            out.with_suffix(".txt").write_text(traceback.format_exc())
        finally:
            os._exit(code)

    def _said(self, out: Path) -> str:
        file = out.with_suffix(".txt")
        return file.read_text() if file.exists() else ""


def tuned(kind: str, model: Path, out: Path) -> None:
    """A run of this kind, which goes on where it was."""
    about = KINDS[kind]
    settings = resolve(values=USUAL | about.settings)
    data = PAIRS if about.pairs else rows(60)
    run(data, model, out, settings, resume=True, answers=about.answers, screen=Screen(quiet=True))
