"""What judges said of the answers, ready to be shown: sentences, bars, and scores by row and by group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from instil.data.templates.find import OWN
from instil.errors import without_numbers
from instil.evaluate.comparison import PASS, TIE, Comparison, compare_verdicts
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.offline import of_other_scripts
from instil.evaluate.statistics import Interval, interval
from instil.records import Verdict
from instil.runs.report.charts import (
    Bar,
    GroupScore,
    Histogram,
    bar,
    group_scores,
    histogram,
    kind_groups,
    length_groups,
)
from instil.runs.report.made_of import ReportData

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
NAMES = {"echo": "repeating the input", "other": "before, in its other form", "base": "before", "tuned": "after"}
REASONS_SHOWN = 3


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


def judges_of(data: ReportData) -> list[JudgeScores]:
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


def verdict_of(data: ReportData, judges: Sequence[JudgeScores]) -> list[tuple[str, str]]:
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
    lines.extend(_forms(data))
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


def _forms(data: ReportData) -> list[tuple[str, str]]:
    """Which of two forms counts as before."""
    verdicts = data.verdicts.get(OFFLINE, {})
    values = [_metric(verdicts.get(which, ()), "") for which in ("base", "other")]
    if data.before is None or values[0] is None or values[1] is None:
        return []
    names = [form_named(name) for name in (data.before.form, data.before.other)]
    return [
        (
            "asked in two forms",
            f"Before training the model was asked in {names[0]} ({values[0].mean:.1f} points of agreement) and in "
            f"{names[1]} ({values[1].mean:.1f}); the better counts as before.",
        )
    ]


def form_named(name: str) -> str:
    """What a prompt form is called in a sentence.

    >>> form_named("model"), form_named("alpaca")
    ('its own chat template', 'the form alpaca')
    """
    return "its own chat template" if name == OWN else f"the form {name}"


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


def charts_of(data: ReportData) -> list[tuple[str, list[Bar]]]:
    """Mean scores of each judge, the offline judge's other figures before its own."""
    wanted: list[tuple[str, str, str]] = []
    for name in sorted(data.verdicts, key=lambda name: name != OFFLINE):
        if name == OFFLINE:
            wanted.extend((name, metric, label) for metric, (label, _) in METRICS.items())
        wanted.append((name, "", LABELS.get(name, name)))
    charts = []
    for name, metric, label in wanted:
        values = {which: _metric(data.verdicts[name].get(which, ()), metric) for which in NAMES}
        named = NAMES | ({"other": f"before, in {form_named(data.before.other)}"} if data.before else {})
        bars = [bar(which, named[which], value) for which, value in values.items() if value is not None]
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


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
