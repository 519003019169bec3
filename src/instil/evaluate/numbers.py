"""Numbers in texts: sign, grouping and decimal mark as they are written in one place or another.

"1.500" is a thousand and a half here and one and a half there, and "1 500" may be one number or two. So every number
is read in all usual ways, and two are equal where one reading makes them equal:

================  ====================================================================================
digits            of every script; ``1e3``, ``10^3``
sign              hyphen, minus, en dash, also before a currency; none in "2-5", and after "2 " perhaps
decimal mark      point, comma, middle dot, Arabic ones; ".5" is a half
grouping          by threes, as in India (10,00,000), by fours (1,0000): comma, point, blanks, apostrophe
per cent          "50%" is 50, "50 percent" and 0.5; it is not "0.5%"; per mille
magnitude         "1.5 million" is 1,500,000, and 1.5 where the other text has no magnitude; 5k, 1.5万, 2×10³
in brackets       "($5)", "(1,500)", "(5%)" may be less than nothing
other numerals    `instil.evaluate.numerals`
================  ====================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from itertools import accumulate, pairwise

from instil.data.words import MINUS, normal, plain_digits
from instil.evaluate.numerals import UNITS, Numeral, numerals

_SPACES = " \u00a0\u2007\u2008\u2009\u202f"
_COMMAS = ",\uff0c\u060c"
_POINTS = ".\uff0e"
_GROUPING = _SPACES + _COMMAS + _POINTS + "'\u2019_\u066c"
_DECIMAL = _COMMAS + _POINTS + "\u066b\u00b7"
_APART = _SPACES + _COMMAS + "\u00b7"  # what may also stand between two numbers
_LONGEST = 12  # groups of one number
_DASHES = MINUS + "\u2013"
_CLOSING = ")]}%\u00b0_"
_CURRENCIES = "$\u00a2\u00a3\u00a4\u00a5\u20a0-\u20cf"
_SEPARATORS = re.escape("".join(sorted({*_GROUPING, *_DECIMAL})))
_NAMED = {  # magnitudes with a space before them or none
    r"thousand|tausend|\u0442\u044b\u0441\.?": 3, r"lakhs?": 5,
    r"millions?|million(?:en|es)|mill[o\u00f3]n|mio\.?|mln\.?|\u043c\u043b\u043d": 6, r"crores?": 7,
    r"billions?|milliards?|milliarden?|mrd\.?|bn|\u043c\u043b\u0440\u0434": 9, r"trillions?": 12,
}  # fmt: skip
_LETTERS = {"k": 3, "K": 3, "M": 6, "B": 9}  # without a space
_MARKED = {
    "\u767e": 2,
    "\u5343": 3,
    "\u4e07": 4,
    "\u842c": 4,
    "\ub9cc": 4,
    "\u5104": 8,
    "\u4ebf": 8,
    "\uc5b5": 8,
    "\u5146": 12,
}
_TIMES = r" ?[x\u00d7*\u00b7\u22c5] ?"
_EXPONENT = r"\{?[+\-\u2212]?[0-9]{1,3}\}?"
_RAISED = "[\u207b\u207a]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]{1,3}"
_RUN = re.compile(
    rf"(?P<lead>(?<![0-9{re.escape(_DECIMAL)}])[{re.escape(_DECIMAL)}])?(?P<run>[0-9]+"
    rf"(?:[{_SEPARATORS}](?!10(?:\^|\*\*|{_RAISED}))[0-9]+)*)"
    rf"(?:[eE](?P<power>[+{_DASHES[0]}\u2212]?[0-9]{{1,3}})(?!\w)|{_TIMES}10(?:(?:\^|\*\*)(?P<exponent>{_EXPONENT})|(?P<raised>{_RAISED})))?"
    rf"(?P<magnitude> ?(?:{'|'.join(_NAMED)})(?![^\W\d_])|(?:{'|'.join(_LETTERS)})(?!\w)|[{''.join(_MARKED)}])?"
    r"(?P<percent>\s?(?:[%\u066a\ufe6a\uff05]|per ?cent\b|pct\b))?(?P<permille>\s?(?:\u2030|per mille?\b))?"
)
_RAISED_DIGITS = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207a", "0123456789-+"
)
_IN_BRACKETS = re.compile(  # as books of accounts have it: money, shares, and numbers with their groups
    rf".*\([{_CURRENCIES}]?\0"
    rf"(?:(?<=[{_CURRENCIES}]\0)[0-9.,' ]+|[0-9]{{1,3}}(?:[,.'\u2019 ][0-9]{{3}})+(?:[.,][0-9]+)?|[0-9.,]+ ?%)"
    rf" ?\0[{_CURRENCIES}]?\).*",
    re.DOTALL,
)
_OF_A_UNIT = re.compile(r"[^\W\d_]\^\{?\Z")  # "cm^3" has no 3, nor has "cm\u00b3"
_CURRENCY = re.compile(rf"[{_CURRENCIES}]\Z")
_IN_WORDS = re.compile(r"(?:\A|\W)(?P<word>minus|negative)\s+\Z", re.IGNORECASE)
_SPELLED = {name: Decimal(n) for n, name in enumerate(UNITS)}
_SPELLED_WORD = re.compile(rf"\b(?:{'|'.join(_SPELLED)})\b", re.IGNORECASE)
_OPERAND = re.compile(rf"(?:[0-9)\]]|\b\w|\b(?:{'|'.join(_SPELLED)}))\s*\Z", re.IGNORECASE)  # "7 minus 5" has no sign
_LIST_MARKER = re.compile(r"(?m)^\s*[0-9]+[.)]\s")

Reading = tuple[Decimal, int]  # the value as written, and the power of ten that it is multiplied by: -2 for per cent


@dataclass(frozen=True)
class Run:
    """Digits with single marks between them: one number, or several one after the other."""

    starts: tuple[int, ...]  # of the first group, or the mark before it, and of every mark between groups
    end: int
    lead: str
    groups: tuple[str, ...]
    marks: tuple[str, ...]
    signs: tuple[int, ...]
    power: int
    scale: int

    def span(self, first: int, end: int) -> tuple[int, int]:
        """Where these groups stand in the text, with the decimal mark before the first."""
        return self.starts[first] + bool(first), (self.starts[end] if end < len(self.groups) else self.end)

    @cached_property
    def readings(self) -> frozenset[Reading]:
        """All numbers that may be read in it."""
        return frozenset(reading for first, end in self.pieces for reading in self.piece(first, end))

    def within(self, known: Known) -> bool:
        """Whether it can be read so that all numbers in it are among these."""
        reached = {0}
        for first, end in self.pieces:
            if first in reached and any(_is_among(reading, known) for reading in self.piece(first, end)):
                reached.add(end)
        return len(self.groups) in reached

    @cached_property
    def pieces(self) -> list[tuple[int, int]]:
        """The first group and the one after the last of all that may be a number in it."""
        count, apart = len(self.groups), self._apart()
        return [
            (first, end)
            for first in range(count)
            if apart[first]
            for end in range(first + 1, min(count, first + _LONGEST) + 1)
            if apart[end]
        ]

    def ends_of(self, first: int) -> list[int]:
        """Where a number that begins with this group may end, the longest first."""
        return self._ends.get(first, [])

    @cached_property
    def _ends(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for first, end in reversed(self.pieces):
            found.setdefault(first, []).append(end)
        return found

    def _apart(self) -> list[bool]:
        """Before which groups a number may end: not within what is one number by its points."""
        ends = [0, *(at + 1 for at, mark in enumerate(self.marks) if mark in _APART), len(self.groups)]
        found = [True] * (len(self.groups) + 1)
        for first, end in pairwise(ends):
            if _numerals(self.groups[first:end], self.marks[first : end - 1]):
                found[first + 1 : end] = [False] * (end - first - 1)
        return found

    def piece(self, first: int, end: int) -> frozenset[Reading]:
        """What these groups are if they are one number; empty if they cannot be."""
        groups, marks = self.groups[first:end], self.marks[first : end - 1]
        numerals = set(_numerals(groups, marks))
        if self.lead and first == 0:
            numerals = _with_lead(self.lead, groups, numerals)
        signs = self.signs if first == 0 else (1,)
        last = end == len(self.groups)
        power, scale = (self.power, self.scale) if last else (0, 0)
        return frozenset(
            (Decimal(f"{'-' if sign < 0 else ''}{integer}.{fraction or '0'}E{power}"), scale)
            for integer, fraction in numerals
            for sign in signs
        )


def _with_lead(lead: str, groups: Sequence[str], numerals: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """A number that begins with its decimal mark; a comma may also be one of the sentence."""
    half = {("0", groups[0])} if len(groups) == 1 else set()
    return half | numerals if lead in _COMMAS else half or numerals


def _numerals(groups: Sequence[str], marks: Sequence[str]) -> list[tuple[str, str]]:
    """All that groups of digits may be as one number: the digits before the decimal mark, and those after it."""
    if not marks:
        return [(groups[0], "")]
    found = []
    if _grouped(groups, marks):
        found.append(("".join(groups), ""))
    at = next((at for at, mark in enumerate(marks) if mark in _DECIMAL and mark != marks[0]), None)
    places = {len(marks) - 1} if at is None else {at, len(marks) - 1}
    if marks[0] in _DECIMAL:
        places.add(0)
    for place in places:
        head, tail = groups[: place + 1], groups[place + 1 :]
        before, after = marks[:place], marks[place + 1 :]
        if marks[place] not in _DECIMAL or marks[place] in before or (before and not _grouped(head, before)):
            continue
        if not after or (len({*after}) == 1 and after[0] in _SPACES and _in_threes(tail)):
            found.append(("".join(head), "".join(tail)))
    return found


def _in_threes(groups: Sequence[str]) -> bool:
    return all(len(group) == 3 for group in groups[:-1]) and len(groups[-1]) <= 3


def _grouped(groups: Sequence[str], marks: Sequence[str]) -> bool:
    """Whether these are the groups of one whole number."""
    if len({*marks}) != 1 or marks[0] not in _GROUPING or groups[0].startswith("0"):
        return False
    first, *rest = map(len, groups)
    if marks[0] == "_":
        return True
    by_threes = first <= 3 and all(size == 3 for size in rest)
    as_in_india = first <= 2 and rest[-1] == 3 and all(size == 2 for size in rest[:-1])
    by_fours = marks[0] in _COMMAS and first <= 4 and all(size == 4 for size in rest)
    return by_threes or as_in_india or by_fours


def runs(text: str) -> list[Run]:
    """The numbers of a text, in their order."""
    text = plain_digits(normal(text))
    found = []
    for match in _RUN.finditer(text):
        if _OF_A_UNIT.search(text, max(0, match.start() - 3), match.start()):
            continue
        parts = re.split(f"([{_SEPARATORS}])", match["run"])
        groups, marks = tuple(parts[::2]), tuple(parts[1::2])
        lead = match["lead"] or ""
        if lead and match.start() and (text[match.start() - 1].isalnum() or text[match.start() - 1] in _CLOSING):
            lead = ""  # the end of what stands before, as in "(a).5"
        start = match.start() if lead else match.start("run")
        written = match["power"] or match["exponent"] or match["raised"]
        power = int(written.translate(_RAISED_DIGITS).strip("{}").replace("\u2212", "-")) if written else 0
        lengths = accumulate((len(group) + 1 for group in groups[:-1]), initial=match.start("run"))
        starts = (start, *(at - 1 for at in list(lengths)[1:]))
        scale = _scale_of(match)
        after = next((match.start(name) for name in ("percent", "permille") if match[name]), match.end())
        signs = _signs(text, start, match.end())
        found.append(Run(starts, after, lead, groups, marks, signs, power, scale))
    return found


def _scale_of(match: re.Match[str]) -> int:
    """The power of ten in what stands after a number."""
    scale = -2 * bool(match["percent"]) - 3 * bool(match["permille"])
    if name := (match["magnitude"] or "").strip():
        scale += (_LETTERS | _MARKED).get(name) or next(
            power for form, power in _NAMED.items() if re.fullmatch(form, name, re.IGNORECASE)
        )
    return scale


def _signs(text: str, start: int, end: int) -> tuple[int, ...]:
    """The signs that a number which stands there may have: 1, -1, or both."""
    before = text[max(0, start - 24) : start]
    if _IN_BRACKETS.fullmatch(f"{before[-3:]}\0{text[start:end]}\0{text[end : end + 2]}"):
        return (1, -1)
    if in_words := _IN_WORDS.search(before):
        return (1,) if _OPERAND.search(before[: in_words.start("word")]) else (-1,)
    before = _CURRENCY.sub("", before)
    last = before[-1:]
    if last == "\u00b1":
        return (1, -1)
    if not last.strip():
        before = before.rstrip(_SPACES)  # a true minus may stand apart from its number, where nothing is before it
        rest = before[:-1].rstrip()
        apart = before.endswith("\u2212") and not (rest[-1:].isalnum() or rest[-1:] in tuple(_CLOSING + _DASHES))
        return (-1,) if apart else (1,)
    if last not in _DASHES:
        return (1,)
    rest = before[:-1]
    if rest[-1:] in tuple(_DASHES) and (rest[-2:-1].isdigit() or rest[-2:-1] in tuple(_CLOSING)):
        return (-1,)  # the second of two dashes, as in "-5--1"
    if rest and (rest[-1].isalnum() or rest[-1] in _CLOSING + _DASHES + "\u2014"):
        return (1,)
    return (1, -1) if rest.rstrip()[-1:].isdigit() else (-1,)


def _is_among(reading: Reading, known: Known) -> bool:
    value, scale = reading
    bare = (value, 0) in known.readings if scale else value in known.written
    return bare or reading in known.readings or scaled(value, scale) in known.values


def scaled(value: Decimal, power: int) -> Decimal:
    """A number times a power of ten, digit by digit."""
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int), "no digits make an infinite number"
    return Decimal((sign, digits, exponent + power))


class Known:
    """All numbers that may be read in some texts; where one has no magnitude or "per cent", the other may."""

    def __init__(self, *texts: str) -> None:
        found: set[Reading] = set()
        for text in texts:
            found |= _spelled(text)
            found |= {reading for one in numerals(text) for reading in _signed(one, text)}
            for run in runs(text):
                found |= run.readings
        self.readings = frozenset(found)
        self.written = frozenset(value for value, _ in found)
        self.values = frozenset(scaled(*reading) for reading in found)


def _signed(one: Numeral, text: str) -> set[Reading]:
    return {(sign * one.value, 0) for sign in _signs(text, one.start, one.end)}


def _spelled(text: str) -> set[Reading]:
    return {
        (sign * _SPELLED[match.group().lower()], 0)
        for match in _SPELLED_WORD.finditer(text)
        for sign in _signs(text, *match.span())
    }


def wrong_number(answer: str, reference: str, prompt: str) -> bool:
    """Whether a number of the reference is missing from the answer, or the answer has one from nowhere.

    Numbers of the prompt may be left out or repeated, and so may the markers of a numbered list; one that is
    spelled out (zero to twelve) is the number.

    >>> wrong_number("It is 12 cm long.", "It is 10 cm long.", "How long is it?")
    True
    >>> wrong_number("298.15 K", "25 degrees Celsius is 298.150 K.", "Convert 25 degrees Celsius.")
    False
    >>> wrong_number("A spider has eight legs.", "A spider has 8 legs.", "How many legs has a spider?")
    False
    >>> wrong_number("-5", "5", ""), wrong_number("1 500,0", "1,500", "")
    (True, False)
    """
    texts = [plain_digits(normal(text)) for text in (answer, reference)]

    def lacks(one: str, other: str) -> bool:
        return not _all_in(_LIST_MARKER.sub(" ", one), Known(prompt_text, other))

    prompt_text = plain_digits(normal(prompt))
    return lacks(*reversed(texts)) or lacks(*texts)


def _all_in(text: str, known: Known) -> bool:
    """Whether a text can be read so that all its numbers are known."""
    found = runs(text)
    others = numerals(text)
    named = [one for one in others if any(_is_among(reading, known) for reading in _signed(one, text))]
    if any(one.needed and one not in named for one in others):
        return False
    ends: dict[int, list[int]] = {}
    for one in named:
        covered = [at for at, run in enumerate(found) if one.start <= run.span(0, 1)[0] and run.end <= one.end]
        if covered:
            ends.setdefault(covered[0], []).append(covered[-1] + 1)
    reached = {0}
    for at, run in enumerate(found):
        if at in reached:
            reached.update(ends.get(at, ()))
            if run.within(known):
                reached.add(at + 1)
    return len(found) in reached
