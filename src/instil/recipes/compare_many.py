"""Which of several runs are better than which: every pair on the rows that all of them answered, with Holm's p-values.

Comparing many runs two by two finds differences that are none, the more the more pairs there are; so p-values are
adjusted for their number (Holm 1979), and runs that cannot be told from one another share a letter, as in a compact
letter display (Piepho 2004, "An Algorithm for a Letter-Based Representation of All-Pairwise Comparisons").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from instil.errors import UserError, counted, listed_names
from instil.evaluate.comparison import Comparison, compare_verdicts
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.statistics import Interval, holm, interval
from instil.recipes.common_rows import answers_at, common, leaks_of, names_of, scores_of
from instil.recipes.compare import METRICS
from instil.recipes.score import Scored
from instil.records import Verdict
from instil.screen import Screen
from instil.settings.asking import ScoreOptions


@dataclass(frozen=True, slots=True)
class Standing:
    """One of several: its mean score over the rows that all have, 0 to 100, and what else was measured.

    Those that share one of the ``letters`` are not distinguishable.
    """

    name: str
    mean: Interval | None
    metrics: dict[str, Interval | None]
    letters: str
    left_out: int


@dataclass(frozen=True, slots=True)
class ComparedMany:
    """Several runs or files, the best first; ``pairs`` are B against A, which has the lower mean, with p-values that
    are adjusted for their number.

    ``rows`` are those that all of them have; ``leaks`` counts those that are nearly training rows of one of them, and
    ``changed`` names the pairs whose outcome is another without these.
    """

    judge: str
    standings: tuple[Standing, ...]
    pairs: dict[tuple[str, str], Comparison]
    rows: int
    leaks: int | None
    changed: tuple[tuple[str, str], ...]
    scored: tuple[Scored, ...] = ()

    @property
    def groups(self) -> list[list[str]]:
        """Those that cannot be told from one another, as names; one may be in several."""
        letters = sorted({letter for one in self.standings for letter in one.letters})
        found = [[one.name for one in self.standings if letter in one.letters] for letter in letters]
        return [group for group in found if len(group) > 1]

    def sentence(self) -> str:
        """What is to be known first."""
        best, *rest = self.standings
        beaten = [one.name for one in rest if self.pairs[one.name, best.name].outcome == "better"]
        alike = [one.name for one in rest if one.name not in beaten]
        if not beaten:
            smallest = [pair.smallest for pair in self.pairs.values() if pair.smallest is not None]
            could = f"; {counted(self.rows, 'row')} could show a difference of {max(smallest):.1f}" if smallest else ""
            alone = "No two of them are distinguishable"
            if any(one.outcome != "not distinguishable" for one in self.pairs.values()):
                alone = f"{best.name} is not distinguishable from any other"
            return f"{alone}{could}."
        said = f"{best.name} is better than {listed_names(beaten)}"
        return f"{said}, and not distinguishable from {listed_names(alike)}." if alike else f"{said}."

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "judge": self.judge,
            "verdict": self.sentence(),
            "rows": self.rows,
            "near_duplicates": self.leaks,
            "standings": [
                {
                    "name": one.name,
                    "mean": one.mean.as_json() if one.mean else None,
                    "metrics": {name: found.as_json() if found else None for name, found in one.metrics.items()},
                    "letters": one.letters,
                    "left_out": one.left_out,
                }
                for one in self.standings
            ],
            "pairs": [
                {
                    "a": a,
                    "b": b,
                    **{k: v for k, v in pair.as_json().items() if k not in ("a", "b", "gained", "lost", "no_room")},
                    "otherwise_without_near_duplicates": (a, b) in self.changed,
                }
                for (a, b), pair in self.pairs.items()
            ],
            "indistinguishable": self.groups,
        }


def compare_many(
    paths: Sequence[str | Path],
    judge: str = OFFLINE,
    *,
    options: ScoreOptions | None = None,
    screen: Screen | None = None,
) -> ComparedMany:
    """Compare the answers of several runs (those of the tuned models) or files, on the rows that all of them have.

    Raises:
        UserError: one is named twice.
        DataError: there is nothing to compare, or no row is in all.
        JudgeError, StoppedEarly: see `instil.score`.
    """
    options, screen = options or ScoreOptions(), screen or Screen(quiet=True)
    places = [Path(path) for path in paths]
    if twice := [str(path) for at, path in enumerate(places) if path.resolve() in {p.resolve() for p in places[:at]}]:
        raise UserError(f"{twice[0]} is named twice; each has to be another run or file")
    answered = [answers_at(path, str(path)) for path in places]
    names = names_of(places)
    places_of = common(answered)
    scored = [scores_of(one, judge, options, screen) for one in answered]
    unordered = {
        name: [replace(one.verdicts[at], row=n) for n, at in enumerate(own)]
        for name, one, own in zip(names, scored, zip(*places_of, strict=True), strict=True)
    }
    verdicts = dict(sorted(unordered.items(), key=lambda item: _mean(item[1])))
    left_out = {name: len(one.examples) - len(places_of) for name, one in zip(names, answered, strict=True)}
    leaks, looked = leaks_of(answered, places_of)
    pairs = adjusted(verdicts)
    clean = adjusted(verdicts, {n for n in range(len(places_of)) if n not in leaks}) if leaks else pairs
    return ComparedMany(
        judge=judge,
        standings=_standings(verdicts, pairs, judge, left_out),
        pairs=pairs,
        rows=len(places_of),
        leaks=len(leaks) if looked else None,
        changed=tuple(names for names in pairs if pairs[names].outcome != clean[names].outcome),
        scored=tuple(scored),
    )


def adjusted(verdicts: dict[str, list[Verdict]], only: set[int] | None = None) -> dict[tuple[str, str], Comparison]:
    """Every pair compared, B against A, with p-values adjusted for their number."""
    found = {(a, b): compare_verdicts(verdicts[a], verdicts[b], only) for a, b in combinations(verdicts, 2)}
    ps = holm([one.p for one in found.values()])
    return {names: replace(one, p=p) for (names, one), p in zip(found.items(), ps, strict=True)}


def _mean(verdicts: Sequence[Verdict]) -> float:
    """Of the rows that have a score; below every score where none has."""
    scores = [one.score for one in verdicts if one.score is not None]
    return sum(scores) / len(scores) if scores else -1.0


def _standings(
    verdicts: dict[str, list[Verdict]],
    pairs: dict[tuple[str, str], Comparison],
    judge: str,
    left_out: dict[str, int],
) -> tuple[Standing, ...]:
    def mean(name: str, value: Callable[[Verdict], float | None]) -> Interval | None:
        return interval([found for one in verdicts[name] if (found := value(one)) is not None])

    def metric(of: str, scale: float) -> Callable[[Verdict], float | None]:
        return lambda one: None if one.score is None else one.metrics[of] * scale

    order = list(reversed(verdicts))
    letters = letters_of(order, {frozenset(two) for two, one in pairs.items() if one.outcome != "not distinguishable"})
    measured = METRICS if judge == OFFLINE else {}
    return tuple(
        Standing(
            name=name,
            mean=mean(name, lambda one: one.score),
            metrics={of: mean(name, metric(of, scale)) for of, scale in measured.items()},
            letters=letters[name],
            left_out=left_out[name],
        )
        for name in order
    )


def letters_of(names: Sequence[str], apart: set[frozenset[str]]) -> dict[str, str]:
    """A letter for every largest group none of whose members are ``apart``; names in the order of their means.

    >>> letters_of(["best", "good", "fair"], {frozenset(("best", "fair"))})
    {'best': 'a', 'good': 'ab', 'fair': 'b'}
    >>> letters_of(["best", "good"], set())
    {'best': 'a', 'good': 'a'}
    """
    groups = [set(names)]
    for pair in apart:  # a group with both is two groups; those inside another are dropped
        one, other = pair
        groups = [part for group in groups for part in ([group - {one}, group - {other}] if pair <= group else [group])]
        groups = [
            g for at, g in enumerate(groups) if not any(g < h or (g == h and at > n) for n, h in enumerate(groups))
        ]
    place = {name: at for at, name in enumerate(names)}
    ordered = sorted(groups, key=lambda group: sorted(place[name] for name in group))
    return {name: "".join(letter(at) for at, group in enumerate(ordered) if name in group) for name in names}


def letter(at: int) -> str:
    """a to z, then A to Z, then numbers in brackets.

    >>> letter(0), letter(26), letter(52)
    ('a', 'A', '(53)')
    """
    letters = ascii_lowercase + ascii_lowercase.upper()
    return letters[at] if at < len(letters) else f"({at + 1})"
