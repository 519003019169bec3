"""Whether B is better than A: the same rows, paired, with everything that could make it untrue said beside it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from instil.errors import DataError, counted, verb
from instil.evaluate.statistics import FEWEST, Interval, differing, interval, permutation_p, smallest_visible
from instil.records import NO_ROOM, Verdict

TIE = 1.0  # points within which two scores count as equal
PASS = 80.0  # a score from which an answer counts as right
SIGNIFICANT = 0.05
COVERED = 0.98  # share of rows that must have two scores before anything is concluded

Outcome = Literal["better", "worse", "not distinguishable"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores of the same rows under A and B. Differences are B minus A, in points of 0 to 100.

    ``gained`` and ``lost`` are the rows that came to 80 points or fell below; ``bounds`` is the mean difference if
    every score that is missing went against B, and if it went for B; ``differing`` counts rows whose scores are not
    equal; ``smallest`` is the least difference that this many rows could show, None where they can show none.
    ``no_room`` are rows that neither could answer, since the prompt fills the context: they are no part of ``rows``.
    """

    rows: int
    scored: int
    a: Interval | None
    b: Interval | None
    difference: Interval | None
    p: float
    wins: int
    ties: int
    losses: int
    gained: tuple[int, ...]
    lost: tuple[int, ...]
    differing: int
    smallest: float | None
    bounds: tuple[float, float]
    no_room: tuple[int, ...] = ()

    @property
    def coverage(self) -> float:
        """Share of the rows that are scored under both."""
        return self.scored / self.rows if self.rows else 0.0

    @property
    def outcome(self) -> Outcome:
        """Better or worse only if interval and test agree and nearly all rows are scored."""
        sure = self.difference
        if sure is None or sure.low is None or sure.high is None or self.coverage < COVERED or self.p >= SIGNIFICANT:
            return "not distinguishable"
        if sure.low > 0:
            return "better"
        return "worse" if sure.high < 0 else "not distinguishable"

    def sentence(self, a: str = "A", b: str = "B") -> str:
        """The verdict in one sentence, and another where rows were left out."""
        verdict = self._sentence(a, b)
        if not self.no_room:
            return verdict
        left_out = counted(
            len(self.no_room), "row is left out, whose prompt leaves", "rows are left out, whose prompts leave"
        )
        return f"{verdict} {left_out} no room for an answer."

    def _sentence(self, a: str, b: str) -> str:
        if self.difference is None:
            return f"{b} and {a} cannot be compared: no row has a score under both."
        gap = f"{self.difference.mean:+.1f} points"
        if self.difference.low is not None:
            gap += f", 95 % interval {self.difference.low:+.1f} to {self.difference.high:+.1f}, p {shown_p(self.p)}"
        if self.outcome != "not distinguishable":
            return f"{b} is {self.outcome} than {a} ({gap}; {counted(self.scored, 'row')})."
        if self.coverage < COVERED:
            why = (
                f"only {self.scored} of {counted(self.rows, 'row')} {verb(self.scored, 'is', 'are')} scored under both"
            )
        elif self.scored == 1:
            why = "one row shows nothing"
        elif not self.differing:
            why = f"none of {self.scored} rows differs"
        elif self.smallest is None:
            few = f"only {self.differing} of {self.scored} rows {'differs' if self.differing == 1 else 'differ'},"
            few = few if self.differing < self.scored else f"{self.scored} rows are"
            why = f"{few} too few to show any difference, which takes {FEWEST} that differ"
        else:
            why = f"{self.scored} rows could show a difference of {self.smallest:.1f} or more"
        return f"{b} is not distinguishable from {a} ({gap}; {why})."

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "outcome": self.outcome,
            "rows": self.rows,
            "scored": self.scored,
            "coverage": self.coverage,
            "a": self.a.as_json() if self.a else None,
            "b": self.b.as_json() if self.b else None,
            "difference": self.difference.as_json() if self.difference else None,
            "p": self.p,
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "gained": list(self.gained),
            "lost": list(self.lost),
            "differing": self.differing,
            "smallest_visible": self.smallest,
            "bounds": list(self.bounds),
            "no_room": list(self.no_room),
        }


def compare_verdicts(a: Sequence[Verdict], b: Sequence[Verdict], only: Collection[int] | None = None) -> Comparison:
    """Compare two lists of verdicts of the same rows in the same order.

    Args:
        a: verdicts of the first.
        b: verdicts of the second.
        only: numbers of the rows to look at; all by default.

    Raises:
        DataError: they are not of the same rows.
    """
    if [verdict.row for verdict in a] != [verdict.row for verdict in b]:
        raise DataError("the two sets of verdicts are not of the same rows in the same order")
    wanted = [pair for pair in zip(a, b, strict=True) if only is None or pair[0].row in only]
    pairs = [pair for pair in wanted if not _unanswerable(*pair)]
    both = [
        (one.row, one.score, other.score) for one, other in pairs if one.score is not None and other.score is not None
    ]
    differences = [second - first for _, first, second in both]
    against = sum((o.score or 0.0) - (100.0 if v.score is None else v.score) for v, o in pairs)
    in_favour = sum((100.0 if o.score is None else o.score) - (v.score or 0.0) for v, o in pairs)
    return Comparison(
        rows=len(pairs),
        scored=len(both),
        a=interval([first for _, first, _ in both]),
        b=interval([second for _, _, second in both]),
        difference=interval(differences),
        p=permutation_p(differences),
        wins=sum(gap > TIE for gap in differences),
        ties=sum(abs(gap) <= TIE for gap in differences),
        losses=sum(gap < -TIE for gap in differences),
        gained=tuple(row for row, first, second in both if first < PASS <= second),
        lost=tuple(row for row, first, second in both if second < PASS <= first),
        differing=differing(differences),
        smallest=smallest_visible(differences),
        bounds=(against / len(pairs), in_favour / len(pairs)) if pairs else (0.0, 0.0),
        no_room=tuple(one.row for one, other in wanted if _unanswerable(one, other)),
    )


def _unanswerable(one: Verdict, other: Verdict) -> bool:
    """Whether neither had room for an answer. Where one of them had, the row lacks a score, which counts."""
    return all(verdict.score is None and verdict.reason == NO_ROOM for verdict in (one, other))


def shown_p(p: float) -> str:
    """A p-value for people.

    >>> shown_p(0.00005), shown_p(0.0312), shown_p(0.4)
    ('< 0.001', '= 0.031', '= 0.40')
    """
    if p < 0.001:
        return "< 0.001"
    return f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"
