"""Runs as they change: what a list of runs says anew, and what their training has written since."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instil.runs.folder import FACTS, RUN_FILE, RunFolder
from instil.runs.listing import Curve, RunSummary, curve_of, new_records, state_of, summary_of
from instil.runs.status import State

LOOK_AGAIN = 5.0  # seconds after which new folders are looked for

Stamp = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a run: ``summary`` if it is told anew (None: it is gone), or ``curve``, its new points."""

    name: str
    summary: RunSummary | None = None
    curve: Curve | None = None
    step: int | None = None

    def as_json(self) -> dict[str, Any]:
        """For pages."""
        if self.curve is not None:
            return {"kind": "metrics", "name": self.name, "step": self.step, **self.curve.as_json()}
        if self.summary is None:
            return {"kind": "gone", "name": self.name}
        return {"kind": "run", "run": self.summary.as_json()}


@dataclass(slots=True)
class _Seen:
    state: State
    stamp: Stamp
    read: int  # bytes of its metrics


def _stamp(path: Path) -> Stamp:
    """What tells that the files which a summary is made of have changed; those of metrics grow all the time."""
    found = []
    for name in (RUN_FILE, FACTS, "report.html", "scores"):
        try:
            about = (path / name).stat()
            found.append((about.st_mtime_ns, about.st_size))
        except OSError:
            found.append((0, 0))
    return tuple(found)


@dataclass(slots=True)
class Summaries:
    """Summaries of runs, each made once for what its files are."""

    known: dict[Path, tuple[tuple[State, Stamp, int], RunSummary]] = field(default_factory=dict)

    def of(self, name: str, path: Path) -> RunSummary:
        """The summary of a run."""
        try:
            size = RunFolder(path).metrics.stat().st_size
        except OSError:
            size = 0
        key = (state_of(RunFolder(path)), _stamp(path), size)
        found = self.known.get(path)
        if found is None or found[0] != key or found[1].name != name:
            found = self.known[path] = (key, summary_of(name, path))
        return found[1]


@dataclass(slots=True)
class RunWatch:
    """Tells of changes since it was last asked; at first of none.

    Args:
        find: the runs, by name.
        summaries: what makes their summaries.
    """

    find: Callable[[], Mapping[str, Path]]
    summaries: Summaries = field(default_factory=Summaries)
    _runs: dict[str, Path] = field(default_factory=dict)
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _looked: float = float("-inf")

    def __post_init__(self) -> None:
        self._look()
        for name, path in self._runs.items():
            self._seen[name] = _Seen(state_of(RunFolder(path)), _stamp(path), _whole(path))

    def changes(self) -> list[Change]:
        """What is new: runs that came, went or changed, and the points of losses that were written."""
        found: list[Change] = []
        if time.monotonic() - self._looked >= LOOK_AGAIN:
            self._look()
            for name in [name for name in self._seen if name not in self._runs]:
                del self._seen[name]
                found.append(Change(name))
        for name, path in self._runs.items():
            seen, state, stamp = self._seen.get(name), state_of(RunFolder(path)), _stamp(path)
            size = _size(path)
            if seen is None or (seen.state, seen.stamp) != (state, stamp) or size < seen.read:
                read = seen.read if seen and size >= seen.read else 0  # a shorter file is another run's
                self._seen[name] = seen = _Seen(state, stamp, read)
                found.append(Change(name, self.summaries.of(name, path)))
            if size > seen.read:
                records, seen.read = new_records(RunFolder(path).metrics, seen.read)
                if records:
                    found.append(Change(name, curve=curve_of(records), step=records[-1].step))
        return found

    def _look(self) -> None:
        self._runs = dict(self.find())
        self._looked = time.monotonic()


def _size(path: Path) -> int:
    try:
        return RunFolder(path).metrics.stat().st_size
    except OSError:
        return 0


def _whole(path: Path) -> int:
    """Where the last whole line of a run's metrics ends."""
    return new_records(RunFolder(path).metrics, max(0, _size(path) - 4096))[1]
