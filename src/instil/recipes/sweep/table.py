"""The table of a sweep: what each run cost and came to, and whether it differs from the first."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from instil.errors import counted, listed_names
from instil.evaluate.comparison import SIGNIFICANT, Comparison, shown_p
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.statistics import Interval, holm

Status = Literal["done", "kept", "failed", "waiting"]
SCORES = ("before", "after", "exact_match")
NONE = "-"


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One run. ``kept`` is done, but by an earlier call; a figure that is not known is None.

    ``train_seconds`` are those of the steps alone, ``seconds`` those of the whole run. ``before``, ``after`` and
    ``exact_match`` are means over the held-out rows, 0 to 100; ``against`` compares with the first run on the rows that
    both answered, ``clean`` without those that are nearly training rows; ``p`` is adjusted for the number of
    comparisons. ``loss_of`` says what the validation loss is a loss of.
    """

    name: str
    folder: str
    status: Status = "waiting"
    reason: str = ""
    model: str = ""
    data: str = ""
    steps: int | None = None
    trained: int | None = None
    train_seconds: float | None = None
    seconds: float | None = None
    peak_memory_gb: float | None = None
    own_peak: bool = True
    train_loss: float | None = None
    validation_loss: float | None = None
    before: Interval | None = None
    after: Interval | None = None
    exact_match: Interval | None = None
    before_from: str = ""
    against: Comparison | None = None
    clean: Comparison | None = None
    p: float | None = None
    loss_of: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether there are figures."""
        return self.status in ("done", "kept")

    @property
    def verdict(self) -> str:
        """Better or worse than the first only where that holds among all the comparisons made."""
        if self.against is None or self.against.difference is None:
            return ""
        sure = self.p is not None and self.p < SIGNIFICANT
        return self.against.outcome if sure else "not distinguishable"


@dataclass(frozen=True, slots=True)
class SweepTable:
    """All runs in their order; the first is what the others are compared with."""

    title: str
    judge: str
    rows: tuple[SweepRow, ...]

    @staticmethod
    def of(title: str, judge: str, rows: Sequence[SweepRow]) -> SweepTable:
        """The table, with the p-values of its comparisons adjusted for their number."""
        compared = [row for row in rows if row.against is not None]
        adjusted = dict(zip([row.name for row in compared], holm([_p(row) for row in compared]), strict=True))
        return SweepTable(title, judge, tuple(replace(row, p=adjusted.get(row.name)) for row in rows))

    @property
    def failed(self) -> list[SweepRow]:
        """Runs that did not come to their end."""
        return [row for row in self.rows if row.status == "failed"]

    def columns(self) -> list[str]:
        """Heads of the table for people."""
        first = self.rows[0].name
        score = "agreement" if self.judge == OFFLINE else "score"
        return [
            "run", "training, min", "whole, min", "memory, GB", "trained", "train loss", "validation loss",
            f"{score} before", f"{score} after", "exact match, %", f"against {first}", "p",
        ]  # fmt: skip

    def cells(self, row: SweepRow) -> list[str]:
        """A row for people."""
        if not row.finished:
            why = row.status if row.status == "waiting" else f"failed: {' '.join(row.reason.split())}"
            return [row.name, *[NONE] * 9, why, NONE]
        against = NONE if row is self.rows[0] else "not compared"
        if row.against is not None and row.against.difference is not None:
            gap = row.against.difference
            ends = "" if gap.low is None or gap.high is None else f" [{gap.low:+.1f}, {gap.high:+.1f}]"
            against = f"{row.verdict} {gap.mean:+.1f}{ends}"
        return [
            row.name,
            _minutes(row.train_seconds),
            _minutes(row.seconds),
            _number(row.peak_memory_gb, 2),
            f"{row.trained:,}" if row.trained else NONE,
            _number(row.train_loss, 3),
            _number(row.validation_loss, 3),
            *(value.text() if value else NONE for value in (row.before, row.after, row.exact_match)),
            against,
            shown_p(row.p).removeprefix("= ") if row.p is not None else NONE,
        ]

    def notes(self) -> list[str]:
        """What must be known to read the table."""
        done = [row for row in self.rows if row.finished]
        lines = []
        if any(row.after for row in done):
            by = "agreement with the reference, which compares words, not meaning" if self.judge == OFFLINE else ""
            lines.append(f"Scores are 0 to 100: {by or f'those of {self.judge}'}. Brackets are 95 % intervals.")
        lines += [*_about_losses(done), *self._about_verdicts()]
        borrowed = [row.name for row in done if row.before_from]
        if borrowed:
            lines.append(
                f"{listed_names(borrowed)} took over the answers before training from a run that was asked the same; "
                "their whole time leaves that out."
            )
        if not all(row.own_peak for row in done):
            lines.append(
                "This system tells the peak of memory of the whole process only; --processes tells each run's."
            )
        return lines

    def _about_verdicts(self) -> list[str]:
        first, lines = self.rows[0], []
        compared = [row for row in self.rows if row.against is not None]
        if not first.finished and len(self.rows) > 1:
            lines.append(f"{first.name} is not finished, so nothing could be compared with it.")
        if len(compared) > 1:
            alone = [row.name for row in compared if row.against and row.against.outcome != row.verdict]
            would = f" Alone, {listed_names(alone)} would be told apart from {first.name}." if alone else ""
            lines.append(
                f"{len(compared)} runs are compared with {first.name}: p is adjusted for that (Holm), and a run is "
                f"called better or worse only where it holds.{would}"
            )
            lines.append(
                "The best of several looks better than it is on the rows it was chosen by: choose by the validation "
                "loss, or measure the chosen one on other rows."
            )
        strangers = [row.name for row in self.rows[1:] if first.after and row.after and row.against is None]
        if strangers:
            lines.append(
                f"{listed_names(strangers)} answered no row that {first.name} answered (instruction, input and wanted "
                "answer alike), so they cannot be compared."
            )
        for row in compared:
            if row.against and first.after and row.against.rows < first.after.count:
                lines.append(
                    f"{row.name} is compared with {first.name} on the {counted(row.against.rows, 'row')} that both "
                    "answered."
                )
            if row.against and row.clean and row.clean.outcome != row.against.outcome:
                told = row.clean.sentence(first.name, row.name)
                lines.append(f"Without rows that are nearly the same as training rows, {told}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """For ``--json`` and ``sweep.json``."""
        return {
            "sweep": self.title,
            "judge": self.judge,
            "runs": [_row_json(row) for row in self.rows],
            "notes": self.notes(),
        }

    def as_csv(self) -> str:
        """One line a run, numbers as they are."""
        flat = [_flat(_row_json(row)) for row in self.rows]
        heads = list(dict.fromkeys(key for row in flat for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, heads, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        return text.getvalue()

    def as_markdown(self) -> str:
        """The table and its notes, to be put into a document."""
        lines = [self.columns(), ["---", *["---:"] * 9, "---", "---:"], *(self.cells(row) for row in self.rows)]
        table = "".join("| " + " | ".join(_escaped(cell) for cell in line) + " |\n" for line in lines)
        return table + "".join(f"\n{_escaped(note)}\n" for note in self.notes())


def _p(row: SweepRow) -> float:
    return row.against.p if row.against is not None else 1.0


def _row_json(row: SweepRow) -> dict[str, Any]:
    gap = row.against.difference if row.against else None
    return {
        "name": row.name,
        "status": row.status,
        "reason": row.reason,
        "run": row.folder,
        "model": row.model,
        "data": row.data,
        "steps": row.steps,
        "trained_parameters": row.trained,
        "train_minutes": _in_minutes(row.train_seconds),
        "total_minutes": _in_minutes(row.seconds),
        "peak_memory_gb": row.peak_memory_gb,
        "train_loss": row.train_loss,
        "validation_loss": row.validation_loss,
        **{name: _interval(getattr(row, name)) for name in SCORES},
        "difference": _interval(gap),
        "p": row.against.p if row.against else None,
        "p_adjusted": row.p,
        "verdict": row.verdict,
        "before_from": row.before_from,
    }


def _interval(value: Interval | None) -> dict[str, Any]:
    found = value or Interval(0.0, None, None, 0)
    return {"mean": value.mean if value else None, "low": found.low, "high": found.high}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Intervals as three columns: the mean, and both ends."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat.update({key: value["mean"], f"{key}_low": value["low"], f"{key}_high": value["high"]})
        else:
            flat[key] = value
    return flat


def _about_losses(done: Sequence[SweepRow]) -> list[str]:
    """Where the validation loss is one of something else than that of the first."""
    groups: dict[str, list[str]] = {}
    for row in done[1:]:
        different = [what for what, value in row.loss_of.items() if value != done[0].loss_of.get(what)]
        if different:
            groups.setdefault(listed_names(different), []).append(row.name)
    return [
        f"The validation losses of {listed_names([*names, done[0].name])} are not comparable: different {different}."
        for different, names in groups.items()
    ]


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _in_minutes(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds / 60, 4)


def _minutes(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds / 60:.2f}" if seconds < 600 else f"{seconds / 60:.1f}"


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"
