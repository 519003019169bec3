"""Whether B is better than A: two runs, or two files of answers, row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instil.ask.client import Client
from instil.ask.journal import Journal
from instil.ask.named import opened
from instil.data.near_duplicates import Near
from instil.data.words import normal, same
from instil.errors import DataError, UserError
from instil.evaluate.comparison import Comparison, compare_verdicts
from instil.evaluate.likelihood import JUDGE as LIKELIHOOD
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.pairwise import PairwiseVerdicts, judge_pairwise
from instil.recipes.score import Scored, score_answers
from instil.records import Example, Verdict
from instil.runs.answers import AnsweredRows, find_answers, no_answers_after
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
    first, second = _answers_at(Path(a), "a"), _answers_at(Path(b), "b")
    names = _names(Path(a), Path(b))
    _pairs(first, second)  # nothing is asked where no row is in both
    both = _both(first, second, judge, options, screen or Screen(quiet=True))
    return compare_scored((first, second), both, names, judge)


def compare_scored(
    answered: tuple[AnsweredRows, AnsweredRows], both: tuple[Scored, Scored], names: tuple[str, str], judge: str
) -> Compared:
    """Compare two sets of answers that have been scored.

    Raises:
        DataError: no row is in both.
    """
    first, second = answered
    pairs = _pairs(first, second)
    one = [_numbered(both[0].verdicts[i], n) for n, (i, _) in enumerate(pairs)]
    other = [_numbered(both[1].verdicts[j], n) for n, (_, j) in enumerate(pairs)]
    rows = [second.examples[j].row for _, j in pairs]
    leaks, looked = _leaks(first, second, pairs)
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
    first, second = _answers_at(Path(a), "a"), _answers_at(Path(b), "b")
    common = _pairs(first, second)
    pairs = [
        (i, j)
        for i, j in common
        if first.examples[i].row not in first.no_room and second.examples[j].row not in second.no_room
    ]
    return CommonRows(
        names=_names(Path(a), Path(b)),
        examples=tuple(second.examples[j] for _, j in pairs),
        a=tuple(first.answers[i] for i, _ in pairs),
        b=tuple(second.answers[j] for _, j in pairs),
        journal=second.journal,
        only_a=len(first.examples) - len(common),
        only_b=len(second.examples) - len(common),
        no_room=len(common) - len(pairs),
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


def _answers_at(path: Path, side: str) -> AnsweredRows:
    """The answers meant by a path: of a run the tuned model's, and no others unless their file is named."""
    found = find_answers(path, only=("tuned",))
    if not path.is_dir():
        return found[0]
    tuned = next((one for one in found if one.which == "tuned"), None)
    if tuned is None:
        raise DataError(f"{side}: {no_answers_after(path, found)}")
    return tuned


def _names(a: Path, b: Path) -> tuple[str, str]:
    """Names by which people tell the two apart: the last parts of their paths, as many as it takes."""
    first, second = a.absolute().parts, b.absolute().parts
    for count in range(1, max(len(first), len(second)) + 1):
        names = "/".join(first[-count:]), "/".join(second[-count:])
        if names[0] != names[1]:
            return names
    return "A", "B"


def _asked(row: Example) -> tuple[str, ...]:
    """By what rows are told to be the same: their whole conversation, in one normal form; a blank input is none."""
    said = (
        text for turn in row.turns for text in (turn.role, turn.content, turn.about, turn.reasoning, turn.tool_calls)
    )
    return tuple(map(normal, (*said, row.tools)))


def _pairs(first: AnsweredRows, second: AnsweredRows) -> list[tuple[int, int]]:
    """Indexes of the rows that both have, in B's order; equal rows are taken one after the other."""
    places: dict[tuple[tuple[str, ...], int], int] = {}
    seen: Counter[tuple[str, ...]] = Counter()
    for index, row in enumerate(first.examples):
        asked = _asked(row)
        places[asked, seen[asked]] = index
        seen[asked] += 1
    seen.clear()
    pairs = []
    for index, row in enumerate(second.examples):
        asked = _asked(row)
        if (at := places.get((asked, seen[asked]))) is not None:
            pairs.append((at, index))
        seen[asked] += 1
    if not pairs:
        raise DataError(
            f"{first.file} and {second.file} have no row in common (instruction, input and output must be equal); "
            "answer the same rows with both: instil respond RUN --data ROWS.json --out FILE.json"
        )
    return pairs


def _both(
    first: AnsweredRows, second: AnsweredRows, judge: str, options: ScoreOptions, screen: Screen
) -> tuple[Scored, Scored]:
    """Verdicts on both; a run's own and another's may bear the same name."""
    one = score_answers([first], judge, options, screen, keep=False)
    other = score_answers([second], judge, options, screen, keep=False)
    return next(iter(one.values())), next(iter(other.values()))


def _leaks(first: AnsweredRows, second: AnsweredRows, pairs: Sequence[tuple[int, int]]) -> tuple[dict[int, Near], bool]:
    """Pairs that are nearly the same as a row that either model was trained on, and whether anybody looked."""
    found: dict[int, Near] = {}
    looked = False
    for side, answered in enumerate((first, second)):
        leaks = answered.run.read_leaks() if answered.run else None
        if leaks is None:
            continue
        looked = True
        by_row = {near.row: near for near in leaks}
        for n, pair in enumerate(pairs):
            near = by_row.get(answered.examples[pair[side]].row)
            if near is not None:
                found.setdefault(n, near)
    return found, looked


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
