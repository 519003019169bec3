"""The report of a run: one HTML file that needs nothing beside it and nothing from the network.

All judges' figures are in the page; which of them is shown is one attribute, so that the page reads without
JavaScript too. The script is allowed by its hash, and nothing else that a row's text might bring is run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instil.data.differences import Piece, marked
from instil.data.near_duplicates import Near
from instil.files import records_in
from instil.records import Completion, Example, blank
from instil.runs.report.charts import kind_groups, length_groups, words
from instil.runs.report.made_of import ReportData
from instil.runs.report.scores import JudgeScores, Score, charts_of, judges_of, verdict_of
from instil.screen import visible

if TYPE_CHECKING:
    from jinja2 import Environment

REJECTED_SHOWN = 200  # rows left out or cut


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of ``samples.jsonl``: what the model answered to a row after so many steps."""

    step: int
    row: int
    instruction: str
    input: str
    output: str
    model_response: str


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One held-out row, before and after; the words in which wanted and after differ are marked."""

    example: Example
    base: Completion
    tuned: Completion
    wanted: list[Piece]
    said: list[Piece]
    scores: list[Score]
    leak: Near | None


@dataclass(frozen=True, slots=True)
class AnswerLength:
    """Mean words of reference and answers over a group of rows."""

    name: str
    rows: int
    wanted: float
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class SampledPrompt:
    """One prompt, answered as training went on."""

    asked: str
    wanted: str
    said: list[tuple[int, str]] = field(default_factory=list)


def write_report(data: ReportData, path: Path) -> None:
    """Write the report."""
    page = environment()
    page.filters["sha256"] = script_hash
    judges = judges_of(data)
    html = page.get_template("report.html.j2").render(
        title=data.title,
        verdict=verdict_of(data, judges),
        charts=charts_of(data),
        judges=judges,
        rows=_rows(data, judges),
        kinds_named=kind_groups(data.examples)[1],
        answer_lengths=_answer_lengths(data),
        watched=_watched(data.samples),
        picture=_picture(data.loss_picture),
        preflight=data.preflight,
        beside=data.beside,
        general=data.general,
        blend=data.blend,
        blend_picture=_picture(data.blend_picture),
        settings=_flat(data.facts),
        seconds=data.seconds,
        total_seconds=sum(data.seconds.values()),
        steps=data.steps,
        tokens_seen=data.tokens_seen,
        peak=data.peak_memory_gb,
        peak_gpu=data.peak_gpu_memory_gb,
        speed=data.tokens_seen / data.train_seconds if data.train_seconds else 0.0,
        unended=data.unended,
        outlook=data.outlook,
        diverged=data.diverged,
        card=data.card,
        rejected=data.rejected[:REJECTED_SHOWN],
        more_rejected=max(0, len(data.rejected) - REJECTED_SHOWN),
    )
    path.write_text(clean(html), encoding="utf-8", errors="replace")  # half a surrogate pair has no UTF-8


def _picture(file: Path | None) -> str:
    """A picture as a page holds it; nothing where there is none."""
    return base64.b64encode(file.read_bytes()).decode("ascii") if file is not None and file.exists() else ""


@cache  # a run writes its page several times, and reading the templates takes longer than filling them
def environment(package: str = "instil.runs.report") -> Environment:
    """What pages are made with: the templates of a package, and what they share, which lies beside this file."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader(each, ".") for each in dict.fromkeys([package, "instil.runs.report"])]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def clean(html: str) -> str:
    """With signs for control characters: a browser drops some in silence, and others steer a terminal that shows it."""
    return visible(html)


def _rows(data: ReportData, judges: Sequence[JudgeScores]) -> list[ReportRow]:
    if not data.examples or not {"base", "tuned"} <= data.answers.keys():
        return []
    leaks = {leak.row: leak for leak in data.leaks}
    rows = []
    for at, (example, base, tuned) in enumerate(
        zip(data.examples, data.answers["base"], data.answers["tuned"], strict=True)
    ):
        wanted, said = marked(example.output, tuned.text)
        scores = [judge.scores[at] for judge in judges]
        rows.append(ReportRow(example, base, tuned, wanted, said, scores, leaks.get(example.row)))
    return rows


def _answer_lengths(data: ReportData) -> list[AnswerLength]:
    """How long the answers are beside the references, for rows of each length and for all."""
    if not data.examples or not {"base", "tuned"} <= data.answers.keys():
        return []
    texts = [[example.output for example in data.examples]]
    texts += [[completion.text for completion in data.answers[which]] for which in ("base", "tuned")]
    groups = [(group.name, group.members) for group in length_groups(data.examples)]
    if len(groups) != 1:
        groups.append(("all", tuple(range(len(data.examples)))))
    lengths = []
    for name, members in groups:
        wanted, before, after = (sum(words(text[at]) for at in members) / len(members) for text in texts)
        lengths.append(AnswerLength(name, len(members), wanted, before, after))
    return lengths


def _watched(samples: Path) -> list[SampledPrompt]:
    if not samples.exists():
        return []
    watched: dict[int, SampledPrompt] = {}
    for sample in records_in(samples, Sample):
        asked = "\n".join(text for text in (sample.instruction, sample.input) if not blank(text))
        one = watched.setdefault(sample.row, SampledPrompt(asked, sample.output))
        one.said.append((sample.step, sample.model_response))
    return list(watched.values())


def _flat(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines.extend(_flat(value, f"{prefix}{key}."))
        else:
            lines.append((f"{prefix}{key}".removeprefix("settings."), str(value)))
    return lines


def script_hash(script: str) -> str:
    """The hash by which a content security policy knows a script."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
