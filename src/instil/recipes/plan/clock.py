"""Seconds of each stage of a run, and how long it was said to take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from instil.screen import clock


@dataclass
class Stopwatch:
    """Seconds of each stage, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 2)


@dataclass
class Outlook:
    """How long a run was said to take, early on, and how long it took; seconds from its start to its last answer."""

    started: float = field(default_factory=time.perf_counter)
    estimated: float = 0.0
    took: float = 0.0

    def foresee(self, left: float) -> None:
        """So much is left from now on."""
        self.estimated = time.perf_counter() - self.started + left

    def end(self) -> None:
        """It is done."""
        self.took = time.perf_counter() - self.started

    def line(self) -> str:
        """Both, side by side; nothing where the run was too short for an estimate."""
        if not self.estimated:
            return ""
        share = self.estimated / self.took
        return f"estimated {clock(self.estimated)} after the first steps, took {clock(self.took)} ({share:.0%})"

    def as_json(self) -> dict[str, float] | None:
        """For ``--json``."""
        if not self.estimated:
            return None
        return {"estimated_seconds": round(self.estimated, 2), "took_seconds": round(self.took, 2)}
