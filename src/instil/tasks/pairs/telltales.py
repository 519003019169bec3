"""How well trivial marks tell the chosen answer of a pair from the rejected one.

A naive Bayes over marks that an answer has or has not (Bernoulli; smoothed by a half), trained on four fifths of the
pairs and asked about the rest: which of the two answers is the chosen one? Pairs of one prompt are never on both
sides, so what is learnt is style that goes from prompt to prompt, and not an answer by heart. A mark of both answers
says nothing.

Everything is counted once over all pairs; a part is left out by taking its counts away. The same pairs give the same
figures, in whatever order they stand.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from instil.records import Pair
from instil.tasks.pairs.prefaces import preface_of

FOLDS = 5
CERTAIN = 2.0  # standard errors that a share must be away from chance
SMALLEST_GAP = 0.1  # between the shares of a mark that is worth naming
NAMED = 5

Marks = Callable[[str], frozenset[str]]

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_MARKDOWN = re.compile(r"\*\*|^\s*(?:[-*\u2022]|\d+[.)])\s|^#+ |```|`[^`]+`", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark, and in which share of the chosen and of the rejected answers it is."""

    name: str
    chosen: float
    rejected: float

    def sentence(self) -> str:
        """In plain words."""
        return f"{self.name} is in {self.chosen:.0%} of the chosen and {self.rejected:.0%} of the rejected answers"


@dataclass(frozen=True, slots=True)
class Told:
    """``share`` of the pairs whose chosen answer the marks find, half of those they say nothing of included."""

    share: float
    pairs: int
    marks: tuple[Mark, ...]

    @property
    def beyond_chance(self) -> bool:
        """Whether so large a share would not come about by guessing."""
        return beyond_chance(self.share, self.pairs)


def beyond_chance(share: float, pairs: int) -> bool:
    """Whether a share is too far from one half to be a guess.

    >>> beyond_chance(0.8, 10), beyond_chance(0.8, 100)
    (False, True)
    """
    return pairs > 0 and abs(share - 0.5) > max(CERTAIN * math.sqrt(0.25 / pairs), 2 / pairs)


def form_marks(text: str) -> frozenset[str]:
    """Marks of form: the first word, marks of punctuation, markdown, a preface."""
    marks = {f'"{sign}"' for sign in "!?:;()" if sign in text}
    words = _WORD.findall(text[:200])
    if words:
        marks.add(f'the first word "{words[0].lower()}"')
    if preface_of(text):
        marks.add('a preface ("Here is ...:")')
    if _MARKDOWN.search(text):
        marks.add("a list or other markdown")
    if "\n" in text.strip():
        marks.add("a second line")
    if text.strip()[-1:].isalnum():
        marks.add("an end without punctuation")
    return frozenset(marks)


def word_marks(text: str) -> frozenset[str]:
    """Marks of wording: each word, in lower case."""
    return frozenset(f'the word "{word.lower()}"' for word in _WORD.findall(text))


def told_by(pairs: Sequence[Pair], marks: Marks) -> Told:
    """How well marks tell the chosen answers, each pair judged by what was learnt from other prompts."""
    rows: list[tuple[int, frozenset[str], frozenset[str]]] = []
    whole = (Counter[str](), Counter[str]())
    parts = [(Counter[str](), Counter[str]()) for _ in range(FOLDS)]
    sizes = [0] * FOLDS
    shares = (Counter[str](), Counter[str]())
    for pair in pairs:
        fold = _fold(pair)
        good, bad = marks(pair.chosen), marks(pair.rejected)
        shares[0].update(good)
        shares[1].update(bad)
        rows.append((fold, good - bad, bad - good))
        sizes[fold] += 1
        for side, own in enumerate(rows[-1][1:]):
            whole[side].update(own)
            parts[fold][side].update(own)
    points = 0.0
    for fold, good, bad in rows:
        known = len(rows) - sizes[fold]
        score = sum(_weight(whole, parts[fold], mark, known) for mark in sorted(good))
        score -= sum(_weight(whole, parts[fold], mark, known) for mark in sorted(bad))
        points += 0.5 if abs(score) < 1e-9 else float(score > 0)
    total = len(rows)
    gaps = sorted(
        (-abs(shares[0][mark] - shares[1][mark]), mark)
        for mark in shares[0].keys() | shares[1].keys()
        if abs(shares[0][mark] - shares[1][mark]) >= SMALLEST_GAP * total
    )
    named = tuple(Mark(mark, shares[0][mark] / total, shares[1][mark] / total) for _, mark in gaps[:NAMED])
    return Told(points / total if total else 0.5, total, named)


def _fold(pair: Pair) -> int:
    return zlib.crc32(f"{pair.example.instruction}\0{pair.example.input}".encode("utf-8", "replace")) % FOLDS


def _weight(
    whole: tuple[Counter[str], Counter[str]], part: tuple[Counter[str], Counter[str]], mark: str, known: int
) -> float:
    """The logarithm of how much more often a mark sets the chosen answers of the other parts apart."""
    if known == 0:
        return 0.0
    for_chosen, for_rejected = (whole[side][mark] - part[side][mark] for side in (0, 1))
    return math.log((for_chosen + 0.5) / (for_rejected + 0.5))
