"""The one clock of a run: the seconds of each stage, how long it was said to take, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from instil.screen import Screen, clock


@dataclass
class RunClock:
    """Seconds of each stage, in order; and of the run up to its last answer, as foreseen and as it was."""

    screen: Screen
    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    estimated: float = 0.0
    took: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 2)

    def foresee(self, left: float) -> None:
        """So much of training and answers is left from now on; say how long that makes the run."""
        left += self.seconds["load model"]  # what is saved is about what was loaded
        left += self.seconds.get("likelihood before", 0.0) + self.seconds.get("measure before", 0.0)
        self.estimated = time.perf_counter() - self.started + left
        self.screen.say(f"  about {clock(left)} to go until the last answer, {clock(self.estimated)} in all")

    def end(self) -> None:
        """The last answer is there."""
        self.took = time.perf_counter() - self.started

    def line(self) -> str:
        """What was said and what it took, side by side; nothing where the run was too short for an estimate."""
        if not self.estimated:
            return ""
        share = self.estimated / self.took
        return f"estimated {clock(self.estimated)} after the first steps, took {clock(self.took)} ({share:.0%})"

    def as_json(self) -> dict[str, float] | None:
        """For ``--json``."""
        if not self.estimated:
            return None
        return {"estimated_seconds": round(self.estimated, 2), "took_seconds": round(self.took, 2)}
