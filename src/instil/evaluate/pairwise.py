"""Which of two answers is better, asked in both orders: a judge that follows the order has said nothing.

Sources: position bias and the swap, MT-Bench (arXiv 2306.05685) and arXiv 2406.07791; length bias, AlpacaEval 2
(arXiv 2404.04475).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from instil.ask.attention import doubtful_last
from instil.ask.client import Client, ModelRequest
from instil.ask.http import Refused
from instil.ask.journal import Journal, key_of
from instil.ask.loose_json import NotJson, whole_json
from instil.ask.patience import Breaker, ask_all
from instil.ask.thoughts import spoken
from instil.data.words import same as equal
from instil.errors import counted
from instil.evaluate.comparison import COVERED, SIGNIFICANT, shown_p
from instil.evaluate.judging import context_for, refusal, unread
from instil.evaluate.prompts import PAIRWISE_SCHEMA, pairwise_text
from instil.evaluate.statistics import Interval, interval, permutation_p
from instil.records import Example
from instil.settings.asking import ScoreOptions

CHOICES = ("first", "second", "tie")
_CHOICE = re.compile(r"\W*(?:the )?(first|second|tie)(?: answer)?(?: is better)?\W*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PairwiseVerdict:
    """One row: what the judge chose with A shown first, and with B shown first; None where it was not to be read."""

    row: int
    a_first: str | None
    b_first: str | None
    reason: str = ""

    @property
    def outcome(self) -> str | None:
        """``b``, ``a`` or ``tie``; a choice that goes with the order is a tie; None without both replies."""
        if self.a_first is None or self.b_first is None:
            return None
        if (self.a_first, self.b_first) == ("second", "first"):
            return "b"
        return "a" if (self.a_first, self.b_first) == ("first", "second") else "tie"

    @property
    def consistent(self) -> bool:
        """Whether the order made no difference."""
        return (self.a_first, self.b_first) in (("first", "second"), ("second", "first"), ("tie", "tie"))


@dataclass(frozen=True, slots=True)
class PairwiseVerdicts:
    """All rows. ``same`` are those with equal answers, which nobody was asked about: ties."""

    rows: tuple[PairwiseVerdict, ...]
    same: tuple[int, ...]
    lengths: dict[int, int] = field(default_factory=dict)  # characters by which B's answer is longer
    asked: int = 0
    failed: dict[int, str] = field(default_factory=dict)

    def count(self, outcome: str) -> int:
        """Rows with that outcome; equal answers are ties."""
        return sum(verdict.outcome == outcome for verdict in self.rows) + (len(self.same) if outcome == "tie" else 0)

    @property
    def undecided(self) -> int:
        """Rows without a choice in both orders."""
        return sum(verdict.outcome is None for verdict in self.rows)

    @property
    def coverage(self) -> float:
        """Share of the rows asked about that have an outcome; equal answers say nothing of the judge."""
        return 1 - self.undecided / len(self.rows) if self.rows else 1.0

    @property
    def rate(self) -> Interval | None:
        """Share of the rows that B wins, a tie counting half, in percent."""
        points = {"b": 100.0, "a": 0.0, "tie": 50.0}
        return interval([points[verdict.outcome] for verdict in self.rows if verdict.outcome] + [50.0] * len(self.same))

    @property
    def p(self) -> float:
        """How often so clear a result comes about by chance."""
        return permutation_p(
            [1.0 if verdict.outcome == "b" else -1.0 for verdict in self.rows if verdict.outcome in ("a", "b")]
        )

    @property
    def consistency(self) -> float | None:
        """Share of the rows asked about whose outcome does not depend on the order."""
        known = [verdict for verdict in self.rows if verdict.outcome]
        return sum(verdict.consistent for verdict in known) / len(known) if known else None

    @property
    def longer(self) -> float | None:
        """Share of the decided rows of unequal length in which the longer answer won."""
        decided = [
            (verdict.outcome, self.lengths[verdict.row]) for verdict in self.rows if verdict.outcome in ("a", "b")
        ]
        unequal = [(outcome == "b") == (gap > 0) for outcome, gap in decided if gap]
        return sum(unequal) / len(unequal) if unequal else None

    def sentence(self, a: str = "A", b: str = "B") -> str:
        """The verdict in one sentence."""
        rate = self.rate
        if rate is None:
            return f"{b} and {a} cannot be compared: the judge decided no row."
        counts = f"{self.count('b')} won, {self.count('tie')} tied, {self.count('a')} lost"
        figures = f"{counts}; {rate.text(0)} % of the rows, a tie counting half; p {shown_p(self.p)}"
        if self.coverage < COVERED:
            decided, rows = len(self.rows) + len(self.same) - self.undecided, len(self.rows) + len(self.same)
            few = f"only {decided} of {counted(rows, 'row')}"
            return f"{b} is not distinguishable from {a}: the judge chose in {few} ({figures})."
        if self.p >= SIGNIFICANT:
            return f"{b} is not distinguishable from {a} ({figures})."
        return f"{b} is {'better' if self.count('b') > self.count('a') else 'worse'} than {a} ({figures})."

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "wins": self.count("b"),
            "ties": self.count("tie"),
            "losses": self.count("a"),
            "same": len(self.same),
            "unscored": {str(verdict.row): verdict.reason for verdict in self.rows if verdict.outcome is None},
            "coverage": self.coverage,
            "rate": self.rate.as_json() if self.rate else None,
            "p": self.p,
            "position_consistency": self.consistency,
            "longer_won": self.longer,
        }


def judge_pairwise(
    judge: Client,
    examples: Sequence[Example],
    a: Sequence[str],
    b: Sequence[str],
    options: ScoreOptions,
    journal: Journal,
    on_done: Callable[[], None] = lambda: None,
) -> PairwiseVerdicts:
    """Ask an opened judge about every row whose two answers differ, in both orders.

    Raises:
        JudgeError, StoppedEarly: see `instil.evaluate.judging.judge_answers`.
    """
    # Which texts are asked about; each pair in both orders.
    rows = list(zip(examples, a, b, strict=True))
    same = tuple(example.row for example, answer_a, answer_b in rows if equal(answer_a, answer_b))
    texts = {
        (example.row, order): pairwise_text(
            example, *((answer_a, answer_b) if order == "a_first" else (answer_b, answer_a))
        )
        for example, answer_a, answer_b in rows
        if not equal(answer_a, answer_b)
        for order in ("a_first", "b_first")
    }
    num_ctx = options.num_ctx or context_for(texts.values(), options.max_tokens)
    requests = {place: ModelRequest(text, PAIRWISE_SCHEMA, options.seed, num_ctx) for place, text in texts.items()}
    settings = [options.temperature, options.max_tokens, options.seed, num_ctx]
    keys = {
        place: key_of("pairwise", judge.identity, place[0], request.text, settings)
        for place, request in requests.items()
    }
    # What the journal holds, and what it lacks.
    chosen: dict[tuple[int, str], str] = {}
    for place, key in keys.items():
        entry = journal.find(key)
        if entry is not None and entry.get("chosen") in CHOICES:
            chosen[place] = entry["chosen"]
            on_done()
    missing = [place for place in requests if place not in chosen]
    # Ask for the rest; every choice is written down as it comes.
    breaker = Breaker(judge.name, len(requests), len(chosen))
    reasons: dict[int, str] = {}
    failed: dict[int, str] = {}
    workers = options.concurrency or judge.workers
    outcomes = ask_all(missing, lambda place: judge.chat(requests[place]), workers, options.tries)
    for outcome in doubtful_last(outcomes, judge.attention, lambda place: requests[place]):
        row, order = outcome.task
        if isinstance(outcome.error, Refused):
            reasons[row] = refusal(outcome.error)
        elif outcome.result is None:
            assert outcome.error is not None
            failed[row] = reasons[row] = str(outcome.error)
            breaker.failed(outcome.error)
        else:
            breaker.succeeded()
            why = unread(outcome.result, requests[outcome.task], attention=judge.attention)
            choice = None if why else read_choice(outcome.result.text)
            entry = {"row": row, "judge": judge.name, "prompt": "pairwise", "order": order, "chosen": choice}
            journal.add(keys[outcome.task], {**entry, "said": outcome.result.text[:2000]}, counts=choice is not None)
            if choice is None:
                reasons[row] = why or f"no choice in the reply: {outcome.result.text[:60]!r}"
            else:
                chosen[outcome.task] = choice
        on_done()
    verdicts = tuple(
        PairwiseVerdict(row, chosen.get((row, "a_first")), chosen.get((row, "b_first")), reasons.get(row, ""))
        for row in dict.fromkeys(row for row, _ in texts)
    )
    lengths = {example.row: len(answer_b.strip()) - len(answer_a.strip()) for example, answer_a, answer_b in rows}
    return PairwiseVerdicts(verdicts, same, lengths, len(missing), failed)


def read_choice(reply: str) -> str | None:
    """Which answer a reply names, in JSON or as its only word; prose may speak of an answer for another reason.

    >>> read_choice('{"better": "second"}'), read_choice("Second."), read_choice("The first is wrong.")
    ('second', 'second', None)
    """
    text = spoken(reply).text
    chosen: list[Any] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        chosen.extend(value for key, value in items if key == "better")
        return dict(items)

    try:
        found = whole_json(text, pairs)
    except NotJson:
        match = _CHOICE.fullmatch(re.sub(r"```[A-Za-z]*|~~~", "", text).strip())
        return match[1].lower() if match else None
    choice = found.get("better") if isinstance(found, dict) and len(chosen) == 1 else None
    return choice if choice in CHOICES else None
