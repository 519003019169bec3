"""The report of a run: one HTML file that needs nothing beside it and nothing from the network."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

from instil.data.preflight import Preflight
from instil.evaluate.offline import means
from instil.records import Completion, Example, Verdict
from instil.train.loop import TrainResult

TIE = 1.0  # points of chrF within which two answers count as equally close to the reference
LABELS = {"exact_match": "exact match", "chrf": "chrF", "rouge_l": "ROUGE-L"}
NAMES = {"echo": "repeating the input", "base": "before", "tuned": "after"}


@dataclass(frozen=True, slots=True)
class ReportData:
    """What the report is made of."""

    facts: dict[str, Any]
    preflight: Preflight
    part: str
    examples: Sequence[Example]
    answers: dict[str, list[Completion]]
    verdicts: dict[str, list[Verdict]]
    result: TrainResult
    seconds: dict[str, float]
    peak_memory_gb: float
    samples: Path
    loss_picture: Path
    unended: dict[str, list[str]]
    outlook: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of the score chart; ``share`` is 0 to 100."""

    who: str
    text: str
    share: float


@dataclass(frozen=True, slots=True)
class Row:
    """One held-out row, before and after."""

    example: Example
    base: Completion
    tuned: Completion
    base_chrf: float
    tuned_chrf: float
    exact: bool

    @property
    def outcome(self) -> str:
        """Whether the tuned answer is closer to the reference."""
        if abs(self.tuned_chrf - self.base_chrf) <= TIE:
            return "same"
        return "better" if self.tuned_chrf > self.base_chrf else "worse"


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Mean chrF of one kind of task."""

    task: str
    rows: int
    base: float
    tuned: float
    exact: float


@dataclass(frozen=True, slots=True)
class Watched:
    """One prompt, answered as training went on."""

    asked: str
    wanted: str
    said: list[tuple[int, str]] = field(default_factory=list)


def write_report(data: ReportData, path: Path) -> None:
    """Write the report."""
    from jinja2 import Environment, StrictUndefined

    template = (resources.files("instil.evaluate") / "report.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows = _rows(data)
    html = page.from_string(template).render(
        title=f"{data.facts['model']} on {Path(data.facts['data']).name}",
        verdict=_verdict(data, rows),
        charts=_charts(data),
        rows=rows,
        counts={name: sum(row.outcome == name for row in rows) for name in ("better", "same", "worse")},
        tasks=_tasks(rows),
        watched=_watched(data.samples),
        picture=base64.b64encode(data.loss_picture.read_bytes()).decode("ascii"),
        preflight=data.preflight.lines(),
        settings=_flat(data.facts),
        seconds=data.seconds,
        total_seconds=sum(data.seconds.values()),
        part=data.part,
        result=data.result,
        peak=data.peak_memory_gb,
        speed=data.result.tokens_seen / data.result.seconds if data.result.seconds else 0.0,
        unended=data.unended,
        outlook=data.outlook,
    )
    path.write_text(html, encoding="utf-8")


def _verdict(data: ReportData, rows: Sequence[Row]) -> str:
    if not rows:
        return "No rows were held out, so nothing was answered or scored."
    base, tuned = means(data.verdicts["base"]), means(data.verdicts["tuned"])
    better, worse = (sum(row.outcome == name for row in rows) for name in ("better", "worse"))
    return (
        f"On {len(rows)} {data.part} rows that it was not trained on, the model agrees with the reference "
        f"answer to the letter in {tuned['exact_match']:.1%} of them (before: {base['exact_match']:.1%}), and its "
        f"mean chrF is {tuned['chrf']:.1f} (before: {base['chrf']:.1f}). {better} answers came closer to the "
        f"reference, {worse} moved away."
    )


def _charts(data: ReportData) -> list[tuple[str, list[Bar]]]:
    if not data.verdicts:
        return []
    scores = {which: means(data.verdicts[which]) for which in NAMES}
    charts = []
    for metric, label in LABELS.items():
        scale = 1.0 if metric == "chrf" else 100.0
        bars = []
        for which, who in NAMES.items():
            value = scores[which][metric] * scale
            bars.append(Bar(who, f"{value:.1f}", value))
        charts.append((label, bars))
    return charts


def _rows(data: ReportData) -> list[Row]:
    if not data.verdicts:
        return []
    return [
        Row(
            example=example,
            base=base,
            tuned=tuned,
            base_chrf=before.score or 0.0,
            tuned_chrf=after.score or 0.0,
            exact=bool(after.metrics.get("exact_match")),
        )
        for example, base, tuned, before, after in zip(
            data.examples,
            data.answers["base"],
            data.answers["tuned"],
            data.verdicts["base"],
            data.verdicts["tuned"],
            strict=True,
        )
    ]


def _tasks(rows: Sequence[Row]) -> list[TaskScore]:
    def kind(row: Row) -> str:
        return row.example.task

    scores = []
    for task, members in groupby(sorted((row for row in rows if kind(row)), key=kind), key=kind):
        group = list(members)
        count = len(group)
        scores.append(
            TaskScore(
                task,
                count,
                sum(row.base_chrf for row in group) / count,
                sum(row.tuned_chrf for row in group) / count,
                sum(row.exact for row in group) / count,
            )
        )
    return sorted(scores, key=lambda score: score.base - score.tuned)


def _watched(samples: Path) -> list[Watched]:
    watched: dict[int, Watched] = {}
    for line in filter(None, samples.read_text(encoding="utf-8").split("\n")):
        sample = json.loads(line)
        asked = "\n".join(text for text in (sample["instruction"], sample["input"]) if text)
        one = watched.setdefault(sample["row"], Watched(asked, sample["output"]))
        one.said.append((sample["step"], sample["model_response"]))
    return list(watched.values())


def _flat(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines.extend(_flat(value, f"{prefix}{key}."))
        else:
            lines.append((f"{prefix}{key}".removeprefix("settings."), str(value)))
    return lines
