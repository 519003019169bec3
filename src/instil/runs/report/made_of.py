"""What the report of a run is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instil.data.near_duplicates import Near
from instil.records import Completion, Example, Verdict
from instil.runs.facts import Before
from instil.runs.report.general import GeneralShown
from instil.runs.report.leaks import LeakBeside
from instil.tasks.rejected import RejectedRow


@dataclass(frozen=True, slots=True)
class ReportData:
    """What the report is made of.

    ``answers`` holds ``base`` and ``tuned``, or nothing; ``verdicts`` holds for each judge the same two (for the
    offline judge ``echo`` as well, and ``other`` where the model was asked in two forms before, which ``before`` is
    about). All are in the order of ``examples``, the held-out rows of ``part``. ``card`` is
    the data card, and ``rejected`` the rows left out or cut; earlier versions wrote neither. ``beside`` holds
    held-out rows that are nearly training rows, and ``general`` what was lost outside of the rows,
    ``blend`` what mixtures with the base give back of it.
    """

    title: str
    facts: dict[str, Any]
    preflight: Sequence[str]
    part: str
    examples: Sequence[Example]
    answers: dict[str, Sequence[Completion]]
    verdicts: dict[str, dict[str, Sequence[Verdict]]]
    leaks: Sequence[Near]
    steps: int
    tokens_seen: int
    train_seconds: float
    seconds: dict[str, float]
    peak_memory_gb: float
    samples: Path
    loss_picture: Path
    unended: dict[str, Sequence[str]]
    outlook: str = ""
    diverged: str = ""
    card: Mapping[str, Any] | None = None
    rejected: Sequence[RejectedRow] = ()
    beside: Sequence[LeakBeside] = ()
    before: Before | None = None
    general: GeneralShown | None = None
    blend: str = ""
    blend_picture: Path | None = None
    peak_gpu_memory_gb: float | None = None
