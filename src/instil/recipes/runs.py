"""The runs below a folder: how far each is, what came of it, what it takes; and giving space back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from instil.errors import InstilError, RunFolderTaken, UserError, counted
from instil.runs.folder import RUN_FILE, RunFolder
from instil.runs.following import FINISHED, RUNNING
from instil.runs.listing import RunSummary, find_runs, state_of, summary_of
from instil.runs.space import bytes_in, checkpoint_bytes, remove_checkpoints
from instil.runs.status import idle


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A run in the list: what is known of it, its seconds since it began, and its bytes on disk."""

    path: Path
    about: RunSummary
    age: float
    bytes: int
    checkpoints: int

    @property
    def state(self) -> str:
        """``running``, ``stopped``, ``finished`` or ``failed``."""
        return self.about.state

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        more = {"age_seconds": round(self.age), "bytes": self.bytes, "checkpoint_bytes": self.checkpoints}
        return {**self.about.as_json(), "state": self.state, "path": str(self.path), **more}


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed: bytes by the name of the run, and the reason where something could not be."""

    freed: dict[str, int] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """All of them."""
        return sum(self.freed.values())

    def check(self) -> None:
        """Whether all of it could be removed.

        Raises:
            InstilError: something could not.
        """
        if self.problems:
            raise InstilError(f"the checkpoints of {counted(len(self.problems), 'run')} were not removed")


@dataclass(frozen=True, slots=True)
class RunList:
    """The runs below a folder, the last begun first."""

    root: Path
    runs: tuple[ListedRun, ...]

    def line(self) -> str:
        """What is said in place of an empty list; nothing where there are runs."""
        if self.runs:
            return ""
        return f"{self.root}: no runs; instil run DATA --out {self.root / 'NAME'} makes one"

    def with_checkpoints(self, *, finished: bool) -> list[ListedRun]:
        """The runs whose checkpoints can be removed: the finished ones, or those that did not end and do not run."""
        idle = [one for one in self.runs if one.checkpoints and one.state != RUNNING]
        return [one for one in idle if (one.state == FINISHED) == finished]

    def as_json(self, pruned: Pruned | None = None) -> dict[str, Any]:
        """For ``--json``."""
        more: dict[str, Any] = {}
        if pruned is not None:
            more = {"freed_bytes": pruned.bytes, "freed": pruned.freed, "problems": pruned.problems}
        return {"root": str(self.root), "runs": [one.as_json() for one in self.runs], **more}


def list_runs(root: Path) -> RunList:
    """The runs at or below a folder; one that is not there has none.

    Raises:
        UserError: it is a file.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; wanted a folder of runs")
    now = time.time()
    found = [_listed(name, path, now) for name, path in find_runs(root).items()]
    return RunList(root, tuple(sorted(found, key=lambda one: one.age)))


def _listed(name: str, path: Path, now: float) -> ListedRun:
    about, run = summary_of(name, path), RunFolder(path)
    return ListedRun(path, about, max(0.0, now - _begun(about, path)), bytes_in(path), checkpoint_bytes(run))


def _begun(about: RunSummary, path: Path) -> float:
    """When a run began, in seconds of the clock: as it says itself, else when its first file was written."""
    try:
        return datetime.fromisoformat(about.created).timestamp()
    except ValueError:
        pass
    try:
        return (path / RUN_FILE).stat().st_mtime
    except OSError:
        return time.time()


def prune(runs: Sequence[ListedRun]) -> Pruned:
    """Remove the checkpoints of these runs; a run that has come to train since it was listed is left alone."""
    freed: dict[str, int] = {}
    problems: dict[str, str] = {}
    for one in runs:
        run = RunFolder(one.path)
        try:
            with idle(run.path):  # so that no run goes on from a checkpoint that is being removed
                if (state := state_of(run)) == one.state:
                    freed[one.about.name] = remove_checkpoints(run)
                else:
                    problems[one.about.name] = f"it was {one.state} and is {state} now, so it is left alone"
        except RunFolderTaken:
            problems[one.about.name] = f"it was {one.state}, and a process is at work there now, so it is left alone"
        except OSError as error:
            problems[one.about.name] = f"its checkpoints cannot be removed: {error.strerror or error}"
    return Pruned(freed, problems)


def question(runs: Sequence[ListedRun], *, finished: bool) -> str:
    """What is asked before the checkpoints of these runs are removed."""
    space = size_text(sum(one.checkpoints for one in runs))
    if finished:
        return f"Remove what checkpoints are left of {counted(len(runs), 'finished run')} ({space})?"
    return (
        f"Remove the checkpoints of {counted(len(runs), 'run')} that did not finish ({space})? "
        "Their training could then only begin anew."
    )


def size_text(count: int) -> str:
    """Bytes for people.

    >>> size_text(999), size_text(1_234_567), size_text(2_500_000_000)
    ('999 B', '1.2 MB', '2.5 GB')
    """
    size, units = float(count), ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if size < 999.5 or unit == units[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"


def age_text(seconds: float) -> str:
    """How long ago, in one unit.

    >>> age_text(20), age_text(3 * 3600), age_text(9 * 86_400)
    ('20 s', '3 h', '9 d')
    """
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
