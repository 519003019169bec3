"""Preference pairs from answers that somebody has judged: two models' answers, or several samples of one.

Nothing is paired by a hair's breadth: ties, choices that went with the order, answers too near in score, equal and
unended ones are left out, counted under their reason and named by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from instil.data.shapes.texts import text_problem
from instil.evaluate.pairwise import PairwiseVerdicts
from instil.records import Example, Pair


@dataclass(frozen=True, slots=True)
class MadePair:
    """A pair and where it comes from; ``example.row`` is the row's number in the data it was made of."""

    pair: Pair
    provenance: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The chapter's form, with one more key; its ``from`` holds the row's number, as in all rows that are made."""
        return {**self.pair.as_json(), "provenance": {**self.provenance, "from": [self.pair.row]}}


@dataclass(slots=True)
class PairingResult:
    """Pairs in the order of the rows, and the rows that gave none, by reason."""

    made: list[MadePair] = field(default_factory=list)
    left_out: dict[str, list[int]] = field(default_factory=dict)

    def leave(self, row: int, reason: str) -> None:
        """Write down that a row gives no pair."""
        self.left_out.setdefault(reason, []).append(row)

    @property
    def rows(self) -> int:
        """Rows looked at."""
        return len(self.made) + sum(map(len, self.left_out.values()))


def pairs_from_choices(
    examples: Sequence[Example], a: Sequence[str], b: Sequence[str], verdicts: PairwiseVerdicts, names: tuple[str, str]
) -> PairingResult:
    """The winner's answer before the loser's, of every row that a judge decided alike in both orders."""
    pairing = PairingResult()
    by_row = {verdict.row: verdict for verdict in verdicts.rows}
    for example, answer_a, answer_b in zip(examples, a, b, strict=True):
        verdict = by_row.get(example.row)
        if verdict is None:
            pairing.leave(example.row, "both answers are equal")
        elif verdict.outcome is None:
            pairing.leave(example.row, f"no choice: {verdict.reason}")
        elif not verdict.consistent:
            pairing.leave(example.row, "the choice went with the order of the answers")
        elif verdict.outcome == "tie":
            pairing.leave(example.row, "a tie")
        elif not (answer_a.strip() if verdict.outcome == "a" else answer_b.strip()):
            pairing.leave(example.row, "the preferred answer is empty")
        elif not (answer_a.strip() and answer_b.strip()):
            pairing.leave(example.row, "the other answer is empty")
        elif problem := text_problem(answer_a) or text_problem(answer_b):
            pairing.leave(example.row, f"an answer {problem}")
        else:
            sides = [(answer_a, names[0]), (answer_b, names[1])]
            (chosen, winner), (rejected, loser) = sides if verdict.outcome == "a" else reversed(sides)
            provenance = {"chosen_from": winner, "rejected_from": loser}
            pairing.made.append(MadePair(Pair(example, chosen.strip(), rejected.strip()), provenance))
    return pairing


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sampled answer; ``ended`` is whether the model ended it; ``score`` is 0 to 100, None with the reason."""

    text: str
    sample: int
    ended: bool = True
    score: float | None = None
    reason: str = ""

    @property
    def whole(self) -> bool:
        """Whether it can stand in a pair."""
        return self.ended and text_problem(self.text) is None


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Whole answers, each text once (white space around aside), in the order of sampling."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        if candidate.whole:
            first.setdefault(candidate.text.strip(), candidate)
    return list(first.values())


def pairs_from_scores(
    examples: Sequence[Example], candidates: Sequence[Sequence[Candidate]], gap: float
) -> PairingResult:
    """The best against the worst of each row's answers, where ``gap`` points at least lie between them.

    Of equal scores the answer sampled first is taken.

    Args:
        examples: the rows.
        candidates: all samples of each row; `distinct` ones are judged.
        gap: points between chosen and rejected, at least.
    """
    pairing = PairingResult()
    for example, samples in zip(examples, candidates, strict=True):
        different = distinct(samples)
        scored = [(one.score, one) for one in different if one.score is not None]
        if len(different) < 2:
            pairing.leave(example.row, _too_few(samples))
            continue
        if len(scored) < 2:
            reason = next(one.reason for one in different if one.score is None)
            pairing.leave(example.row, f"fewer than two answers have a score: {reason}")
            continue
        high, best = max(scored, key=lambda item: item[0])
        low, worst = min(scored, key=lambda item: item[0])
        if high - low < gap or high == low:
            pairing.leave(example.row, f"best and worst are less than {gap:g} points apart")
            continue
        provenance = {"scores": [high, low], "samples": [best.sample, worst.sample]}
        pairing.made.append(MadePair(Pair(example, best.text.strip(), worst.text.strip()), provenance))
    return pairing


def _too_few(samples: Sequence[Candidate]) -> str:
    if all(one.whole for one in samples):
        return "all samples are equal"
    if sum(one.ended for one in samples) < 2:
        return "fewer than two samples came to an end; raise generate.max_new_tokens"
    return "fewer than two different samples that ended, are not empty and can be written down"
