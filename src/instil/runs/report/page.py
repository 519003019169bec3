"""The report of a run: one HTML file that needs nothing beside it and nothing from the network.

All judges' figures are in the page; which of them is shown is one attribute, so that the page reads without
JavaScript too. The script is allowed by its hash, and nothing else that a row's text might bring is run.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instil.data.differences import Piece, marked
from instil.data.near_duplicates import Near
from instil.errors import without_numbers
from instil.evaluate.comparison import PASS, TIE, Comparison, compare_verdicts
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.offline import of_other_scripts
from instil.evaluate.statistics import Interval, interval
from instil.files import records_in
from instil.records import Completion, Example, Verdict, blank
from instil.runs.report.charts import (
    Bar,
    GroupScore,
    Histogram,
    bar,
    group_scores,
    histogram,
    kind_groups,
    length_groups,
    words,
)
from instil.runs.report.leaks import LeakBeside

if TYPE_CHECKING:
    from jinja2 import Environment


LIKELIHOOD = "likelihood"
LABELS = {OFFLINE: "agreement with the reference", LIKELIHOOD: "likelihood of the reference"}
METRICS = {  # label, and what makes it 0 to 100
    "exact_match": ("exact match", 100.0),
    "chrf": ("chrF", 1.0),
    "rouge_l": ("ROUGE-L", 100.0),
    "token_f1": ("token F1", 100.0),
    "novel_f1": ("novel-token F1", 100.0),
    "embedding": ("embedding similarity", 100.0),
}
NAMES = {"echo": "repeating the input", "base": "before", "tuned": "after"}
REASONS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ReportData:
    """What the report is made of.

    ``answers`` holds ``base`` and ``tuned``, or nothing; ``verdicts`` holds for each judge the same two (for the
    offline judge ``echo`` as well). All are in the order of ``examples``, the held-out rows of ``part``.
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
    beside: Sequence[LeakBeside] = ()


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
class Score:
    """What one judge said of one row; a score that is missing has a reason."""

    before: float | None
    after: float | None
    exact: bool
    reason: str

    @property
    def outcome(self) -> str:
        """Whether the tuned answer is closer to the reference."""
        if self.before is None or self.after is None:
            return "unscored"
        if abs(self.after - self.before) <= TIE:
            return "same"
        return "better" if self.after > self.before else "worse"


@dataclass(frozen=True, slots=True)
class JudgeScores:
    """All that one judge said, ready to be shown."""

    label: str
    comparison: Comparison
    coverage: str
    scores: list[Score]
    counts: dict[str, int]
    histogram: Histogram
    lengths: list[GroupScore]
    kinds: list[GroupScore]


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
    page.filters["sha256"] = _sha256
    judges = _judges(data)
    html = page.get_template("report.html.j2").render(
        title=data.title,
        verdict=_verdict(data, judges),
        charts=_charts(data),
        judges=judges,
        rows=_rows(data, judges),
        kinds_named=kind_groups(data.examples)[1],
        answer_lengths=_answer_lengths(data),
        watched=_watched(data.samples),
        picture=base64.b64encode(data.loss_picture.read_bytes()).decode("ascii") if data.loss_picture.exists() else "",
        preflight=data.preflight,
        beside=data.beside,
        settings=_flat(data.facts),
        seconds=data.seconds,
        total_seconds=sum(data.seconds.values()),
        steps=data.steps,
        tokens_seen=data.tokens_seen,
        peak=data.peak_memory_gb,
        speed=data.tokens_seen / data.train_seconds if data.train_seconds else 0.0,
        unended=data.unended,
        outlook=data.outlook,
        diverged=data.diverged,
    )
    path.write_text(clean(html), encoding="utf-8", errors="replace")  # half a surrogate pair has no UTF-8


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
    """Without what a browser would drop in silence."""
    return html.replace("\0", "\ufffd")


def _judges(data: ReportData) -> list[JudgeScores]:
    """The judges that scored both sides, the offline one first."""
    kinds, lengths = kind_groups(data.examples)[0], length_groups(data.examples)
    judges = []
    for name in sorted(data.verdicts, key=lambda name: name != OFFLINE):
        found = data.verdicts[name]
        if not data.examples or not {"base", "tuned"} <= found.keys():
            continue
        pairs = list(zip(found["base"], found["tuned"], strict=True))
        scores = [
            Score(a.score, b.score, bool(b.metrics.get("exact_match")), b.reason or a.reason or "not scored")
            for a, b in pairs
        ]
        before, after = [score.before for score in scores], [score.after for score in scores]
        outcomes = Counter(score.outcome for score in scores)
        judges.append(
            JudgeScores(
                label=LABELS.get(name, name),
                comparison=compare_verdicts(found["base"], found["tuned"]),
                coverage=_coverage(scores),
                scores=scores,
                counts={outcome: outcomes[outcome] for outcome in ("better", "same", "worse", "unscored")},
                histogram=histogram(before, after),
                lengths=group_scores(lengths, before, after),
                kinds=group_scores(kinds, before, after) if len(kinds) > 1 else [],
            )
        )
    return judges


def _coverage(scores: Sequence[Score]) -> str:
    """How many rows are scored under both, and why the others are not."""
    why = [score.reason for score in scores if score.outcome == "unscored"]
    alike = {without_numbers(reason): reason for reason in reversed(why)}
    missing = Counter(alike[without_numbers(reason)] for reason in why)
    said = f"{len(scores) - missing.total()} of {len(scores)} rows scored"
    if not missing:
        return said
    reasons = [f"{reason} ({count})" for reason, count in missing.most_common(REASONS_SHOWN)]
    if rest := missing.total() - sum(count for _, count in missing.most_common(REASONS_SHOWN)):
        reasons.append(f"other reasons ({rest})")
    return f"{said}; not scored: {', '.join(reasons)}"


def _verdict(data: ReportData, judges: Sequence[JudgeScores]) -> list[tuple[str, str]]:
    """Sentences, each with the name of what it is about; the first is what the page says in large letters."""
    if not data.examples or not data.answers:
        return [("", "No rows were held out, so nothing was answered or scored.")]
    if not judges:
        return [("", f"{_count(len(data.examples), f'{data.part} row')} answered, and not scored.")]
    first, *others = judges
    told = first.comparison
    rows = _count(len(data.examples), f"{data.part} row")
    lines = [("", f"On {rows} that the model was not trained on, {told.sentence('before', 'after')}")]
    if note := of_other_scripts(data.examples):
        lines += [("script", f"{_capital(note)}."), *_plain_figures(data)]
    if told.scored:
        lines.append(
            (
                "rows",
                f"{_count(told.wins, 'answer')} came closer to the reference, {told.ties} stayed as close, "
                f"{told.losses} moved away; {len(told.gained)} rose to {PASS:.0f} points or more, "
                f"{len(told.lost)} fell below.",
            )
        )
    if not note:
        lines.extend(_plain_figures(data))
    if told.coverage < 1 or told.no_room:
        lines.append(("coverage", f"{first.coverage}."))
    if told.scored:
        lines.extend(_without_leaks(data))
    lines.extend(
        (other.label, f"{_capital(other.comparison.sentence('before', 'after'))} {_capital(other.coverage)}.")
        for other in others
    )
    return lines


def _plain_figures(data: ReportData) -> list[tuple[str, str]]:
    lines = []
    for metric, unit, of in (("exact_match", " %", " of the rows"), ("chrf", "", "")):
        label, _ = METRICS[metric]
        values = {which: _metric(data.verdicts.get(OFFLINE, {}).get(which, ()), metric) for which in NAMES}
        shown = {which: f"{value.mean:.1f}{unit}" for which, value in values.items() if value is not None}
        if not {"base", "tuned"} <= shown.keys():
            continue
        echo = f"; repeating the input gets {shown['echo']}" if "echo" in shown else ""
        lines.append((label, f"{shown['tuned']}{of} after, {shown['base']} before{echo}."))
    return lines


def _without_leaks(data: ReportData) -> list[tuple[str, str]]:
    """The verdict once more without the rows that were as good as seen in training."""
    held_out = {example.row for example in data.examples}
    near = held_out & {leak.row for leak in data.leaks}
    verdicts = data.verdicts.get(OFFLINE, {})
    if not near or not {"base", "tuned"} <= verdicts.keys():
        return []
    label = "without near duplicates"
    if near == held_out:
        return [(label, "all of these rows are nearly the same as training rows.")]
    rows = "1 row that is nearly the same as a training row"
    if len(near) > 1:
        rows = f"{len(near)} rows that are nearly the same as training rows"
    told = compare_verdicts(verdicts["base"], verdicts["tuned"], held_out - near)
    return [(label, f"Apart from {rows}, {told.sentence('before', 'after')}")]


def _charts(data: ReportData) -> list[tuple[str, list[Bar]]]:
    """Mean scores of each judge, the offline judge's other figures before its own."""
    wanted: list[tuple[str, str, str]] = []
    for name in sorted(data.verdicts, key=lambda name: name != OFFLINE):
        if name == OFFLINE:
            wanted.extend((name, metric, label) for metric, (label, _) in METRICS.items())
        wanted.append((name, "", LABELS.get(name, name)))
    charts = []
    for name, metric, label in wanted:
        values = {which: _metric(data.verdicts[name].get(which, ()), metric) for which in NAMES}
        bars = [bar(which, NAMES[which], value) for which, value in values.items() if value is not None]
        if bars:
            charts.append((label, bars))
    return charts


def _metric(verdicts: Sequence[Verdict], metric: str) -> Interval | None:
    """Mean of a metric (the score if it has no name) over the scored rows that have it, 0 to 100."""
    scored = [verdict for verdict in verdicts if verdict.score is not None]
    if not metric:
        return interval([verdict.score for verdict in scored if verdict.score is not None])
    scale = METRICS[metric][1]
    return interval([verdict.metrics[metric] * scale for verdict in scored if metric in verdict.metrics])


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


def _sha256(script: str) -> str:
    """The hash by which a content security policy knows a script."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
