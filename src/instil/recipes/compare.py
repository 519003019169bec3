"""Whether B is better than A: two runs, or two files of answers, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instil.ask.client import Client
from instil.ask.journal import Journal
from instil.ask.named import opened
from instil.data.near_duplicates import Near
from instil.data.words import same
from instil.errors import UserError
from instil.evaluate.comparison import Comparison, compare_verdicts
from instil.evaluate.likelihood import JUDGE as LIKELIHOOD
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.pairwise import PairwiseVerdicts, judge_pairwise
from instil.recipes.common_rows import answers_at, common, leaks_of, names_of, scores_of
from instil.recipes.score import Scored
from instil.records import Example, Verdict
from instil.runs.answers import AnsweredRows
from instil.screen import Screen
from instil.settings.asking import ScoreOptions

METRICS = {"exact_match": 100.0, "chrf": 1.0}  # shown beside the score, on a scale of 0 to 100


@dataclass(frozen=True, slots=True)
class Compared:
    """The paired verdict on B against A.

    ``clean`` is the same without the rows in ``leaks`` (None where no row leaked); ``looked`` says whether any run
    knew its training rows; ``only_a`` and ``only_b`` count rows that the other does not have; ``metrics`` compares
    exact match and chrF where the judge is offline.
    """

    a: str
    b: str
    judge: str
    comparison: Comparison
    clean: Comparison | None
    leaks: tuple[Near, ...]
    looked: bool
    only_a: int
    only_b: int
    metrics: dict[str, Comparison]
    scored: tuple[Scored, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "a": self.a,
            "b": self.b,
            "judge": self.judge,
            "verdict": self.comparison.sentence(self.a, self.b),
            **{key: value for key, value in self.comparison.as_json().items() if key not in ("a", "b")},
            "mean_a": self.comparison.a.as_json() if self.comparison.a else None,
            "mean_b": self.comparison.b.as_json() if self.comparison.b else None,
            "near_duplicates": [near.row for near in self.leaks] if self.looked else None,
            "without_near_duplicates": self.clean.as_json() if self.clean else None,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "metrics": {name: found.as_json() for name, found in self.metrics.items()},
        }


def compare(
    a: str | Path,
    b: str | Path,
    judge: str = OFFLINE,
    *,
    options: ScoreOptions | None = None,
    screen: Screen | None = None,
    **settings: Any,
) -> Compared:
    """Compare the answers of two runs (those of the tuned model) or of two files, on the rows that both have.

    Args:
        a: a run folder, one of its ``responses/*.json``, or a file with ``model_response``.
        b: the same.
        judge: whose scores; what has been judged before is not asked for again.
        options: how to ask.
        screen: where progress is shown; nowhere by default.
        **settings: single options of judging, such as ``repeats=3``.

    Raises:
        DataError: there is nothing to compare, or no row is in both.
        JudgeError, StoppedEarly: see `instil.score`.
    """
    options = (options or ScoreOptions()).changed(**settings)
    first, second = answers_at(Path(a), "a"), answers_at(Path(b), "b")
    names = _names(a, b)
    common([first, second])  # nothing is asked where no row is in both
    screen = screen or Screen(quiet=True)
    both = scores_of(first, judge, options, screen), scores_of(second, judge, options, screen)
    return compare_scored((first, second), both, names, judge)


def compare_scored(
    answered: tuple[AnsweredRows, AnsweredRows], both: tuple[Scored, Scored], names: tuple[str, str], judge: str
) -> Compared:
    """Compare two sets of answers that have been scored.

    Raises:
        DataError: no row is in both.
    """
    first, second = answered
    pairs = common([first, second])
    one = [_numbered(both[0].verdicts[i], n) for n, (i, _) in enumerate(pairs)]
    other = [_numbered(both[1].verdicts[j], n) for n, (_, j) in enumerate(pairs)]
    rows = [second.examples[j].row for _, j in pairs]
    leaks, looked = leaks_of([first, second], pairs)
    clean = {n for n in range(len(pairs)) if n not in leaks}
    comparison = _with_rows(compare_verdicts(one, other), rows)
    return Compared(
        a=names[0],
        b=names[1],
        judge=judge,
        comparison=comparison,
        clean=_with_rows(compare_verdicts(one, other, clean), rows) if leaks else None,
        leaks=tuple(leaks.values()),
        looked=looked,
        only_a=len(first.examples) - len(pairs),
        only_b=len(second.examples) - len(pairs),
        metrics=_metrics(one, other, rows) if judge == OFFLINE else {},
        scored=both,
    )


@dataclass(frozen=True, slots=True)
class ComparedPairwise:
    """Two sets of answers set against one another by a judge, row by row; ``no_room`` rows had no room for one."""

    a: str
    b: str
    judge: str
    verdicts: PairwiseVerdicts
    no_room: int = 0

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        verdict = self.verdicts.sentence(self.a, self.b)
        return {
            "a": self.a,
            "b": self.b,
            "judge": self.judge,
            "verdict": verdict,
            **self.verdicts.as_json(),
            "no_room": self.no_room,
        }


@dataclass(frozen=True, slots=True)
class CommonRows:
    """Two answers to each row that both sides have; ``names`` tell the sides apart.

    ``no_room`` counts rows that are left out, since one of the two had no room for an answer.
    """

    names: tuple[str, str]
    examples: tuple[Example, ...]
    a: tuple[str, ...]
    b: tuple[str, ...]
    journal: Path
    only_a: int
    only_b: int
    no_room: int = 0

    def judge(self, judge: Client, options: ScoreOptions, journal: Journal, screen: Screen) -> PairwiseVerdicts:
        """Ask an opened judge about every row whose answers differ, in both orders."""
        total = 2 * sum(not same(one, other) for one, other in zip(self.a, self.b, strict=True))
        with screen.bar(f"{judge.name} chooses", total) as advance:
            return judge_pairwise(judge, self.examples, self.a, self.b, options, journal, advance)


def common_rows(a: str | Path, b: str | Path, judge: str) -> CommonRows:
    """The rows of two runs or files that a judge is to choose between; ``journal`` is B's.

    Raises:
        UserError: the judge cannot choose (offline).
        DataError: there is nothing to compare, or no row is in both.
    """
    if judge in (OFFLINE, LIKELIHOOD):
        raise UserError(f"{judge} gives scores and does not choose, which needs a model: --judge ollama:llama3")
    first, second = answers_at(Path(a), "a"), answers_at(Path(b), "b")
    shared = common([first, second])
    pairs = [
        (i, j)
        for i, j in shared
        if first.examples[i].row not in first.no_room and second.examples[j].row not in second.no_room
    ]
    return CommonRows(
        names=_names(a, b),
        examples=tuple(second.examples[j] for _, j in pairs),
        a=tuple(first.answers[i] for i, _ in pairs),
        b=tuple(second.answers[j] for _, j in pairs),
        journal=second.journal,
        only_a=len(first.examples) - len(shared),
        only_b=len(second.examples) - len(shared),
        no_room=len(shared) - len(pairs),
    )


def compare_pairwise(
    a: str | Path, b: str | Path, judge: str, options: ScoreOptions | None = None, screen: Screen | None = None
) -> ComparedPairwise:
    """Let a judge choose between the two answers to each row, in both orders; kept in B's journal.

    Raises:
        UserError: the judge cannot choose (offline).
        DataError, JudgeError, StoppedEarly: see `compare`.
    """
    options, screen = options or ScoreOptions(), screen or Screen(quiet=True)
    rows = common_rows(a, b, judge)
    with opened(judge, options, screen.warn) as asked, Journal(rows.journal) as journal:
        verdicts = rows.judge(asked, options, journal, screen)
    return ComparedPairwise(*rows.names, judge, verdicts, rows.no_room)


def _names(a: str | Path, b: str | Path) -> tuple[str, str]:
    one, other = names_of([Path(a), Path(b)])
    return one, other


def _metrics(one: Sequence[Verdict], other: Sequence[Verdict], rows: Sequence[int]) -> dict[str, Comparison]:
    def of(verdicts: Sequence[Verdict], name: str, scale: float) -> list[Verdict]:
        return [
            replace(verdict, score=None if verdict.score is None else verdict.metrics[name] * scale)
            for verdict in verdicts
        ]

    return {
        name: _with_rows(compare_verdicts(of(one, name, scale), of(other, name, scale)), rows)
        for name, scale in METRICS.items()
    }


def _numbered(verdict: Verdict, row: int) -> Verdict:
    return replace(verdict, row=row)


def _with_rows(comparison: Comparison, rows: Sequence[int]) -> Comparison:
    """With the rows' own numbers instead of their places among the pairs."""
    found = (comparison.gained, comparison.lost, comparison.no_room)
    gained, lost, no_room = (tuple(rows[n] for n in each) for each in found)
    return replace(comparison, gained=gained, lost=lost, no_room=no_room)
