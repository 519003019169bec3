"""Whether this machine computes with this model what is promised of all: a table of checks."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from instil.errors import InstilError
from instil.machine import peak_memory_gb
from instil.model.fast.gemm import backend
from instil.recipes.selftest.bench import Bench
from instil.recipes.selftest.checks import CHECKS, Check, Measured
from instil.screen import Screen

COUNTED = ("numbers", "rows")  # units of which there are whole ones only


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of a check; ``measured`` is None where it could not be made, and ``problem`` says why."""

    check: Check
    measured: Measured | None
    seconds: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether both ways came to the same. What is not a number is not."""
        one = self.measured
        return one is not None and one.difference <= one.allowed and not self.problem

    @property
    def difference(self) -> str:
        """In words, as `allowed`."""
        return "-" if self.measured is None else _said(self.measured.difference, self.measured.unit)

    @property
    def allowed(self) -> str:
        """How far both ways may be apart."""
        return "-" if self.measured is None else _said(self.measured.allowed, self.measured.unit)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; a difference that is no number that JSON has stands as text."""
        one = self.measured
        finite = one is not None and one.difference == one.difference and abs(one.difference) != float("inf")
        return {
            "what": self.check.what,
            "how": self.check.how,
            "difference": one.difference if one and finite else self.difference,
            "allowed": one.allowed if one else None,
            "unit": (one.unit or "relative") if one else None,
            "passed": self.passed,
            "problem": self.problem,
            "seconds": round(self.seconds, 2),
        }


def _said(value: float, unit: str) -> str:
    """A number with its unit: counts as they are, others in short.

    >>> _said(2.1e-07, ""), _said(0, "numbers"), _said(1200.0, "rows"), _said(0.001, "nats")
    ('2.1e-07', '0 numbers', '1,200 rows', '1.0e-03 nats')
    """
    number = f"{value:,.0f}" if unit in COUNTED else f"{value:.1e}"
    return f"{number} {unit}" if unit else number


@dataclass(frozen=True, slots=True)
class SelfTest:
    """All checks of a model, and on what they were made."""

    model: str
    device: str
    threads: int
    products: str
    checked: tuple[Checked, ...]
    seconds: float
    peak_memory_gb: float

    @property
    def failed(self) -> list[str]:
        """The names of those that did not pass."""
        return [one.check.what for one in self.checked if not one.passed]

    def on(self) -> str:
        """Where it was computed."""
        return (
            f"{self.model} on {self.device} ({platform.machine()}, {self.threads} threads, products by "
            f"{self.products}, torch {torch.__version__}), {self.seconds:.0f} s, {self.peak_memory_gb:.1f} GB at most"
        )

    def check(self) -> None:
        """Whether all passed.

        Raises:
            InstilError: one did not.
        """
        if self.failed:
            raise InstilError(f"{len(self.failed)} of {len(self.checked)} checks failed: {', '.join(self.failed)}")

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "model": self.model,
            "device": self.device,
            "threads": self.threads,
            "products": self.products,
            "torch": torch.__version__,
            "checks": [one.as_json() for one in self.checked],
            "failed": self.failed,
            "seconds": round(self.seconds, 2),
            "peak_memory_gb": round(self.peak_memory_gb, 3),
        }


def selftest(model: str | Path, screen: Screen | None = None) -> SelfTest:
    """Check a model on this machine; its files are only read.

    Args:
        model: a name, a folder or a file.
        screen: where progress is shown; stderr by default.

    Raises:
        UserError: the model cannot be used.
    """
    screen = screen or Screen()
    started = time.perf_counter()
    screen.head(f"Checking {model}")
    bench = Bench(model)
    screen.say(f"  loaded in {time.perf_counter() - started:.1f} s")
    found = []
    with screen.bar("checking", len(CHECKS)) as advance:
        for check in CHECKS:
            advance(check.what, 0)
            one = _made(check, bench)
            found.append(one)
            word = "equal" if one.passed else "NOT EQUAL"
            screen.say(
                f"  {one.check.what:24} {word}: {one.difference} apart, {one.allowed} allowed, {one.seconds:.1f} s",
                "" if one.passed else "red",
            )
            advance()
    device = str(bench.decoder.device)
    return SelfTest(
        model=str(model),
        device=device,
        threads=torch.get_num_threads(),
        products=backend() if device == "cpu" else device,
        checked=tuple(found),
        seconds=time.perf_counter() - started,
        peak_memory_gb=peak_memory_gb(),
    )


def _made(check: Check, bench: Bench) -> Checked:
    """Make a check; one that cannot be made has failed, and the others are made all the same."""
    started = time.perf_counter()
    measured, problem = None, ""
    try:
        measured = check.measure(bench)
        problem = measured.problem
    except Exception as error:  # what is broken here is what is looked for
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return Checked(check, measured, time.perf_counter() - started, problem)
