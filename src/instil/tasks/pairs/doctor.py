"""What is wrong with preference pairs, said before anything is trained on them.

A model tuned on pairs learns whatever tells the chosen answer from the rejected one. Where that is length, a turn of
phrase or nothing at all, it learns that. `diagnose` looks for it, names the rows, and says what to do. An *error* means
that the pairs cannot teach what they are for; a *warning* that they teach something besides, or have rows to look at; a
*note* is a fact. Length bias of judges: AlpacaEval 2 (arXiv 2404.04475).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from instil.data.findings.finding import Finding, Severity, ranked
from instil.data.words import words
from instil.errors import counted, verb
from instil.records import Pair
from instil.tasks.pairs.prefaces import preface_of, rewriting_preface
from instil.tasks.pairs.telltales import Told, beyond_chance, form_marks, told_by, word_marks

SHOWN = 10  # row numbers in a line
LEFT = 0.5  # share of the pairs that must prefer something
LENGTH = 0.65  # share of the pairs that length may decide
STYLE = 0.8  # share of the pairs that trivial marks may decide
LONG = 20  # words from which answers can be nearly equal
NEARLY = 0.95  # share of the words that such answers have in common
FEW = 20  # pairs with which nothing can be said of style
FEW_PROMPTS = 5  # the same of prompts, which are judged by what others taught
_WORD = re.compile(r"\w+")
_NOTHING = {"n/a", "na", "null", "nan", "todo", "tbd", "undefined", "error", "empty", "no answer", "<empty>"}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, the worst first, and the figures that they rest on."""

    pairs: int
    findings: tuple[Finding, ...]
    figures: dict[str, float] = field(default_factory=dict)

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    @property
    def usable(self) -> bool:
        """Whether there is no error."""
        return not self.of("error")

    def lines(self) -> list[str]:
        """For people."""
        severities: list[Severity] = ["error", "warning"]
        counts = [counted(n, one) for one in severities if (n := len(self.of(one)))]
        return [
            f"{counted(self.pairs, 'pair')}: {', '.join(counts) or 'nothing against them'}",
            *(finding.line() for finding in self.findings),
        ]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "pairs": self.pairs,
            "usable": self.usable,
            "findings": [finding.as_json() for finding in self.findings],
            "figures": {name: round(value, 4) for name, value in self.figures.items()},
        }


def diagnose(pairs: Sequence[Pair]) -> Diagnosis:
    """Look at every pair. It takes about a tenth of a second for a thousand pairs, and the same pairs give the same.

    >>> from instil.records import Example
    >>> same = Pair(Example("Say hi.", row=3), "Hi.", "Hi.")
    >>> diagnose([same]).findings[0].line()
    'error: 1 of 1 pair has equal answers and prefers nothing: row 3; leave them out, or make their answers anew'
    """
    equal = [pair for pair in pairs if pair.chosen.strip() == pair.rejected.strip()]
    told = [pair for pair in pairs if pair.chosen.strip() != pair.rejected.strip()]
    both_ways = _both_ways(told)
    findings = [
        *_equal(equal, len(pairs)),
        *_contradicting(both_ways),
        *_too_little(len(pairs), len(equal), len(both_ways)),
        *_nearly_equal(told),
        *_repeated(pairs),
        *_empty(pairs),
        *_prefaces(pairs),
        *_outputs(pairs),
    ]
    figures = _lengths(told)
    findings += _length_bias(figures, len(told))
    if len(told) >= FEW and len({_prompt(pair) for pair in told}) < FEW_PROMPTS:
        said = f"{counted(len(told), 'pair')} of so few prompts say nothing of style that goes from prompt to prompt"
        findings.append(Finding("few", "note", said))
    elif len(told) >= FEW:
        form, wording = told_by(told, form_marks), told_by(told, word_marks)
        figures |= {"told_by_form": form.share, "told_by_words": wording.share}
        findings += [*_leak("form", "first words, punctuation and markdown", form)]
        findings += [*_leak("words", "single words", wording)]
    elif told:
        findings.append(
            Finding("few", "note", f"{counted(len(told), 'pair is', 'pairs are')} too few to say anything of style")
        )
    return Diagnosis(len(pairs), tuple(ranked(findings)), figures)


def _equal(equal: Sequence[Pair], total: int) -> list[Finding]:
    rows = tuple(pair.row for pair in equal)
    severity: Severity = "error" if len(rows) == total else "warning"
    told = f"{len(rows):,} of {counted(total, 'pair')} {verb(len(rows), 'has', 'have')}"
    said = f"{told} equal answers and {verb(len(rows), 'prefers', 'prefer')} nothing: {_rows(rows)}"
    return [Finding("equal", severity, said, "leave them out, or make their answers anew", rows)] if rows else []


def _too_little(total: int, equal: int, both_ways: int) -> list[Finding]:
    """Pairs enough are there, but most say nothing."""
    left = total - equal - both_ways
    if left >= LEFT * total or equal == total:
        return []
    said = f"only {left:,} of {counted(total, 'pair')} {verb(left, 'prefers', 'prefer')} one answer to another"
    return [Finding("too_little", "error", said, "make pairs of answers that differ")]


def _both_ways(pairs: Sequence[Pair]) -> list[Pair]:
    seen = {(*_prompt(pair), pair.chosen.strip(), pair.rejected.strip()) for pair in pairs}
    return [pair for pair in pairs if (*_prompt(pair), pair.rejected.strip(), pair.chosen.strip()) in seen]


def _contradicting(both_ways: Sequence[Pair]) -> list[Finding]:
    rows = tuple(pair.row for pair in both_ways)
    said = (
        f"{counted(len(rows), 'pair contradicts', 'pairs contradict')} another one of the same prompt (A over B, and B "
        f"over A): {_rows(rows)}"
    )
    return [Finding("contradicting", "warning", said, "keep the one that is right", rows)] if rows else []


def _repeated(pairs: Sequence[Pair]) -> list[Finding]:
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for pair in pairs:
        places[(*_prompt(pair), pair.chosen.strip(), pair.rejected.strip())].append(pair.row)
    rows = tuple(sorted(row for same in places.values() for row in same[1:]))
    said = f"{counted(len(rows), 'pair stands', 'pairs stand')} there more than once: {_rows(rows)}"
    return [Finding("repeated", "warning", said, "leave the repetitions out", rows)] if rows else []


def _nearly_equal(pairs: Sequence[Pair]) -> list[Finding]:
    letters, shared = [], []
    for pair in pairs:
        one, other = (words(text) for text in (pair.chosen, pair.rejected))
        if one == other and _signs(pair.chosen) == _signs(pair.rejected):
            letters.append(pair.row)
        elif min(len(one), len(other)) >= LONG:
            common = (Counter(one) & Counter(other)).total()
            if 2 * common >= NEARLY * (len(one) + len(other)):
                shared.append(pair.row)
    found = []
    if letters:
        differ = counted(len(letters), "pair differs", "pairs differ")
        said = f"{differ} in case, punctuation or white space only: {_rows(letters)}"
        found.append(Finding("nearly_equal", "warning", said, "keep them only if that is the task", tuple(letters)))
    if shared:
        said = (
            f"{counted(len(shared), 'pair of long answers has', 'pairs of long answers have')} at least {NEARLY:.0%} "
            f"of their words in common: {_rows(shared)}"
        )
        found.append(Finding("nearly_equal_words", "note", said, "see that the rest is what matters", tuple(shared)))
    return found


def _empty(pairs: Sequence[Pair]) -> list[Finding]:
    rows = tuple(pair.row for pair in pairs if _says_nothing(pair.chosen))
    say = counted(len(rows), "chosen answer says", "chosen answers say")
    said = f"{say} nothing (no letter, digit or symbol, or a place-holder): {_rows(rows)}"
    return [Finding("empty", "warning", said, "write them, or leave these pairs out", rows)] if rows else []


def _says_nothing(text: str) -> bool:
    return not (_WORD.search(text) or _signs(text)) or text.strip().strip(".").lower() in _NOTHING


def _signs(text: str) -> list[str]:
    """What is no mere punctuation: besides letters and digits also ``<`` and ``+``, emoji, and signs of vowels."""
    return "".join(char if _counts(unicodedata.category(char)) else " " for char in text.lower()).split()


def _counts(category: str) -> bool:
    return category[0] not in "PZC" and category != "Sk"  # Sk: a back-tick, a circumflex


def _prefaces(pairs: Sequence[Pair]) -> list[Finding]:
    """Sorted by side: a preface on one side only is also what the model learns to write, or to shun."""
    rewriting = {pair.row for pair in pairs for text in (pair.chosen, pair.rejected) if rewriting_preface(text)}
    sides = [tuple(pair.row for pair in pairs if preface_of(text(pair))) for text in (_chosen, _rejected)]
    rows = tuple(sorted({*sides[0], *sides[1]}))
    if not rows:
        return []
    said = (
        f'{len(sides[0]):,} chosen and {len(sides[1]):,} rejected answers begin with a preface ("Here is ...:"), '
        f"{len(rewriting)} of which speak of a rewriting: {_rows(rows)}"
    )
    return [Finding("prefaces", "warning", said, "cut it off, or the model learns to write it", rows)]


def _outputs(pairs: Sequence[Pair]) -> list[Finding]:
    """Where the pairs come from, as far as it shows."""
    found = []
    for name, text in (("chosen", _chosen), ("rejected", _rejected)):
        rows = tuple(
            pair.row
            for pair in pairs
            if pair.example.output.strip() and text(pair).strip() == pair.example.output.strip()
        )
        if rows:
            said = f"{name} is the row's own output in {len(rows):,} of {counted(len(pairs), 'pair')}"
            found.append(Finding(f"{name}_is_output", "note", said, "", rows))
    return found


def _lengths(pairs: Sequence[Pair]) -> dict[str, float]:
    if not pairs:
        return {}
    both = [(len(pair.chosen.strip()), len(pair.rejected.strip())) for pair in pairs]
    longer, level = sum(one > other for one, other in both), sum(one == other for one, other in both)
    ratio = math.exp(sum(math.log(max(1, one) / max(1, other)) for one, other in both) / len(both))
    return {
        "chosen_longer": longer / len(both),
        "equally_long": level / len(both),
        "length_ratio": ratio,
        "told_by_length": (longer + level / 2) / len(both),
    }


def _length_bias(figures: dict[str, float], pairs: int) -> list[Finding]:
    if not figures:
        return []
    share, ratio = figures["told_by_length"], figures["length_ratio"]
    longer = f"the chosen answer is the longer one in {figures['chosen_longer']:.0%} of the pairs"
    said = f"{longer}, on average {ratio:.2f} times as long as the rejected one"
    if max(share, 1 - share) < LENGTH or not beyond_chance(share, pairs):
        return [Finding("length", "note", said)]
    which = "longer" if share > 0.5 else "shorter"
    told = f"who always takes the {which} answer is right in {max(share, 1 - share):.0%} of the pairs: {said}"
    remedy = f"the model will learn to be {which}; balance the lengths, or leave out the most uneven pairs"
    return [Finding("length", "warning", told, remedy)]


def _leak(kind: str, what: str, told: Told) -> list[Finding]:
    marks = "; ".join(mark.sentence() for mark in told.marks)
    said = f"{what} alone find the chosen answer in {told.share:.0%} of the pairs of prompts not seen before"
    if told.share < STYLE or not told.beyond_chance:
        return [Finding(f"style_{kind}", "note", said)]
    remedy = "right if this style is what is to be learnt; if not, the pairs teach it in place of what is"
    return [Finding(f"style_{kind}", "warning", f"{said} ({marks})" if marks else said, remedy)]


def _prompt(pair: Pair) -> tuple[str, str]:
    return pair.example.instruction, pair.example.about


def _chosen(pair: Pair) -> str:
    return pair.chosen


def _rejected(pair: Pair) -> str:
    return pair.rejected


def _rows(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:SHOWN]))}{more}"
