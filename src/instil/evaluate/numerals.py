"""Numbers that are not written with ten digits and a decimal mark: fractions, words, Roman and Chinese numerals.

Such a numeral is what another text may mean by its digits; where it stands, digits need not be. Only a character that
is nothing but a fraction ("\u00bd") must be there as a number in both texts: other words have other senses, too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

UNITS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_TEENS = "thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
_MONTHS = (
    "january february march april may june july august september october november december".split(),
    "jan feb mar apr may jun jul aug sep oct nov dec".split(),
)
_SMALL = {word: n for n, word in enumerate([*UNITS, *_TEENS])} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_LARGE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SINGLE = {word: Decimal(n) for n, word in enumerate(_ORDINALS, 1)} | {
    f"{word.removesuffix('y')}ieth" if word.endswith("y") else f"{word}th": Decimal(n)
    for word, n in [*zip(_TEENS, range(13, 20), strict=True), *zip(_TENS, range(20, 100, 10), strict=True)]
}
_SINGLE |= {
    "hundredth": Decimal(100),
    "half": Decimal("0.5"),
    "dozen": Decimal(12),
    "once": Decimal(1),
    "twice": Decimal(2),
}
_SINGLE |= {month: Decimal(n) for months in _MONTHS for n, month in enumerate(months, 1)}
_ANY = "|".join(sorted([*_SMALL, *_LARGE], key=len, reverse=True))
_WORDS = re.compile(
    rf"\b(?:a |an )?(?:{_ANY})(?:(?:[ -]| and )(?:{_ANY}))*(?:[ -](?:{'|'.join(_SINGLE)}))?\b", re.IGNORECASE
)
_ALONE = re.compile(rf"\b(?:{'|'.join(_SINGLE)})\b", re.IGNORECASE)
_FRACTION = re.compile(
    r"(?<![\w./,])(?:(?P<whole>[0-9]{1,9})(?: |-))?(?P<top>[0-9]{1,9}) ?[/\u2044] ?(?P<bottom>[0-9]{1,9})"
    r"(?![0-9]|[./,][0-9]|/)"
)
_VULGAR = re.compile(r"(?P<whole>(?<![0-9.,])[0-9]{1,15})?[ \u2009\u202f]?(?P<part>[\u00bc-\u00be\u2150-\u215e\u2189])")
_POWER = re.compile(
    r"(?<![\w.,^*\u00b7\u00d7\u22c5])(?<![*x\u00d7\u22c5] )(?P<base>[0-9]{1,4})"
    r"(?:(?:\^|\*\*)\{?(?P<exponent>[0-9]{1,2})\}?|(?P<raised>[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]{1,2}))"
)
_CLOCK = re.compile(r"(?<![\w:.])(?P<hour>[0-9]{1,2})(?=(?::[0-9]{2})?[ \u202f]?(?P<half>[ap])\.?m\b)", re.IGNORECASE)
_ROMAN = re.compile(r"(?<![\w.])(?=[IVXLCDM]{2})M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})(?!\w)")
_ROMAN_VALUES = dict(zip("IVXLCDM", (1, 5, 10, 50, 100, 500, 1000), strict=True))
_MYRIADS = {"\u4e07": 4, "\u842c": 4, "\ub9cc": 4, "\u4ebf": 8, "\u5104": 8, "\uc5b5": 8, "\u5146": 12, "\uc870": 12}
_HAN_DIGITS = {char: n for n, char in enumerate("\u96f6\u4e00\u4e8c\u4e09\u56db\u4e94\u516d\u4e03\u516b\u4e5d")} | {
    "\u3007": 0, "\u4e24": 2, "\u5169": 2,
}  # fmt: skip
_HAN_TENS = {"\u5341": 10, "\u767e": 100, "\u5343": 1000}
_HAN = re.compile(rf"[{''.join([*_HAN_DIGITS, *_HAN_TENS, *_MYRIADS])}]+")
_OF_MYRIADS = re.compile(rf"(?:[0-9]{{1,8}}(?:\.[0-9]{{1,8}})?[{''.join(_MYRIADS)}])+(?:[0-9]{{1,4}}(?![0-9.,]))?")


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number and where it stands; ``needed``: it is nothing else, so that a text without it lacks it."""

    start: int
    end: int
    value: Decimal
    needed: bool = False


def numerals(text: str) -> list[Numeral]:
    """All that a text may have beside its plain digits (0 to 9), in no order.

    >>> [str(one.value) for one in numerals("1 1/2, \u00bd, XIV, \u4e8c\u5341\u4e94, twenty-five, 3 pm")]
    ['1.5', '0.5', '0.5', '14', '25', '25', '15']
    """
    found = [*_fractions(text)]
    for match in _POWER.finditer(text):
        exponent = int(match["exponent"] or "".join(str(unicodedata.digit(char)) for char in match["raised"]))
        found.append(Numeral(*match.span(), Decimal(int(match["base"]) ** exponent), needed=bool(match["raised"])))
    found += [Numeral(*match.span(), Decimal(_roman(match.group()))) for match in _ROMAN.finditer(text)]
    for match in () if text.isascii() else _HAN.finditer(text):
        if (value := _han(match.group())) is not None:
            found.append(Numeral(*match.span(), Decimal(value)))
    for match in () if text.isascii() else _OF_MYRIADS.finditer(text):
        found.append(Numeral(*match.span(), _of_myriads(match.group())))
    found += () if text.isascii() else _others(text)
    for match in _WORDS.finditer(text):
        found.append(Numeral(*match.span(), _in_words(match.group())))
    found += [Numeral(*match.span(), _SINGLE[match.group().lower()]) for match in _ALONE.finditer(text)]
    for match in _CLOCK.finditer(text):
        hour = int(match["hour"])
        value = hour % 12 + 12 * (match["half"].lower() == "p")
        if value != hour <= 12:
            found.append(Numeral(*match.span("hour"), Decimal(value)))
    return found


def _fractions(text: str) -> Iterator[Numeral]:
    for match in _FRACTION.finditer(text):
        if int(match["bottom"]):
            share = Decimal(match["top"]) / Decimal(match["bottom"])
            yield Numeral(*match.span(), int(match["whole"] or 0) + share)
            if match["whole"]:
                yield Numeral(match.start("top"), match.end(), share)
    for match in () if text.isascii() else _VULGAR.finditer(text):
        part = Fraction(unicodedata.numeric(match["part"])).limit_denominator(1000)
        value = int(match["whole"] or 0) + Decimal(part.numerator) / Decimal(part.denominator)
        yield Numeral(match.start("whole") if match["whole"] else match.start("part"), match.end(), value, needed=True)


def _others(text: str) -> Iterator[Numeral]:
    """Characters that are numbers, but no decimal digits: circled ones, and those of scripts without zero."""
    for match in re.finditer(r"[^\x00-\x7f]+", text):
        run: list[tuple[int, int]] = []
        for at, char in enumerate(match.group()):
            value = float(unicodedata.numeric(char, -1.0))
            if "<super>" in unicodedata.decomposition(char):
                continue  # of a unit, mostly: "cm\u00b3" has no 3
            if unicodedata.category(char) in ("No", "Nl") and value >= 0 and value.is_integer():
                run.append((match.start() + at, int(value)))
                yield Numeral(match.start() + at, match.start() + at + 1, Decimal(int(value)))
        if len(run) > 1 and run[-1][0] - run[0][0] == len(run) - 1:
            values = [value for _, value in run]
            together = int("".join(map(str, values))) if max(values) < 10 else _added(values)
            yield Numeral(run[0][0], run[-1][0] + 1, Decimal(together))


def _added(values: list[int]) -> int:
    """Numbers one after the other: a power of ten multiplies what is before it.

    >>> _added([10, 2]), _added([2, 100, 3]), _added([10, 9, 100, 90, 5])
    (12, 203, 1995)
    """
    total = section = 0
    for value in values:
        if value >= 10000:
            total, section = total + max(section, 1) * value, 0
        elif value in (100, 1000) or (value == 10 and 0 < section < 10):
            section = (
                max(section, 1) * value if section < value else section // value * value + (section % value) * value
            )
        else:
            section += value
    return total + section


def _roman(letters: str) -> int:
    """
    >>> _roman("XIV"), _roman("MCMXC")
    (14, 1990)
    """
    values = [_ROMAN_VALUES[letter] for letter in letters]
    following = [*values[1:], 0]
    return sum(-value if value < after else value for value, after in zip(values, following, strict=True))


def _han(text: str) -> int | None:
    """
    >>> _han("\u4e00\u4e07\u4e8c\u5343")
    12000
    >>> _han("\u4e8c\u5341\u4e94"), _han("\u4e09\u767e"), _han("\u4e8c\u3007\u4e8c\u56db")
    (25, 300, 2024)
    """
    if all(char in _HAN_DIGITS for char in text):
        return int("".join(str(_HAN_DIGITS[char]) for char in text))
    total = section = digit = 0
    for char in text:
        if char in _HAN_DIGITS:
            digit = _HAN_DIGITS[char]
        elif char in _HAN_TENS:
            section, digit = section + (digit or 1) * _HAN_TENS[char], 0
        elif section or digit:
            total, section, digit = total + (section + digit) * 10 ** _MYRIADS[char], 0, 0
        else:
            return None  # "\u4e07" alone follows digits, or is a word
    return total + section + digit


def _of_myriads(text: str) -> Decimal:
    parts = re.findall(r"([0-9.]+)(\D?)", text)
    return sum((Decimal(number) * 10 ** _MYRIADS.get(mark, 0) for number, mark in parts), Decimal())


def _in_words(text: str) -> Decimal:
    """
    >>> _in_words("one hundred and five"), _in_words("two thousand twenty-four"), _in_words("twenty-first")
    (Decimal('105'), Decimal('2024'), Decimal('21'))
    """
    total = section = 0
    last = Decimal()
    for word in re.split(r"[ -]+", text.lower()):
        if word in _SMALL:
            section += _SMALL[word]
        elif word == "hundred":
            section = max(section, 1) * 100
        elif word in _LARGE:
            total, section = total + max(section, 1) * _LARGE[word], 0
        elif word in _SINGLE:
            last = _SINGLE[word]
    return total + section + last
