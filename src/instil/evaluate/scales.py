"""The scale a judge was asked to keep to, and a number that it wrote brought onto it: never clamped."""

from __future__ import annotations

import re
from dataclasses import dataclass

NOTHING = ""  # the reason of a reading that succeeded
DASHES = "\\-\u2010\u2011\u2012\u2013\u2014\u2212"  # within a set of a regular expression
NUMBER = rf"(?<![\w.,/{DASHES}])[{DASHES}+]?[0-9]+(?:\.[0-9]+)?(?![\w]|[.,][0-9])"
WORD = r"(?:score|rating|grade|mark)"


@dataclass(frozen=True, slots=True)
class Scale:
    """The numbers a judge was asked to choose from, ends included."""

    low: float
    high: float

    def points(self, value: float) -> float:
        """A number of this scale as 0 to 100.

        >>> Scale(1, 5).points(4), Scale(0, 100).points(85)
        (75.0, 85.0)
        """
        return 100.0 * (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Reading:
    """A number on the judge's own scale, or None with the reason."""

    value: float | None
    reason: str = NOTHING


HUNDRED = Scale(0, 100)


def within(match: re.Match[str], scale: Scale) -> Reading:
    """A matched number, brought from the denominator that is written to the scale."""
    named = match.groupdict()
    whole = "100" if named.get("percent") else named.get("whole")
    if whole is None or float(whole) == scale.high:
        return in_scale(match["value"], scale)
    if scale.low != 0 or float(whole) not in (5.0, 10.0, 20.0, 100.0):
        return Reading(None, f"{match.group().strip()[-40:]!r} is not on a scale of {scale.low:g} to {scale.high:g}")
    value = number_of(match["value"]) / float(whole) * scale.high
    return in_scale(f"{value:g}", scale)


def in_scale(number: str, scale: Scale) -> Reading:
    try:
        value = number_of(number)
    except ValueError:
        return Reading(None, f"{number[:40]!r} is not a number")
    if not scale.low <= value <= scale.high:
        return Reading(None, f"{number[:40]} is not within {scale.low:g} to {scale.high:g}")
    if 0 < value < 1 and scale.high == HUNDRED.high:
        return Reading(None, f"{number[:40]} may be a share or a score")
    return Reading(value + 0.0)  # no negative zero


def number_of(text: str) -> float:
    """A number whose sign may be any dash.

    >>> number_of("\u22125"), number_of("85.5")
    (-5.0, 85.5)
    """
    return float(f"-{text[1:]}" if text[0] in DASHES else text)
