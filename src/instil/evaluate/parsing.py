"""What a judge wrote, read as a score or refused with a reason: never clamped, never dropped, never zero by accident.

The ladder, from the surest form to the least sure; the first rung that finds something decides:

1. JSON with a ``score``, alone, fenced or inside prose;
2. the whole reply is one number (``85``, ``85.``, ``85/100``, ``8 out of 10``, ``**85**``, ``85%``);
3. the number that the words name as the score: the final or overall one before one with a label (``Score: 85``),
   that before one in passing (``I'd rate it 85 out of 100``);
4. one fraction with its denominator written (``85/100``, ``8 out of 10``) and no other number;
5. exactly one number in the whole reply.

Digits are ASCII digits. Two different numbers, a range, a number outside the scale are refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

NOTHING = ""  # the reason of a reading that succeeded


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

_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060\u00ad"))
_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_END_OF_THOUGHT = re.compile(r"\A.*</(think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```[A-Za-z]*|~~~[A-Za-z]*")
_MARKUP = re.compile(r"[*`]{1,3}|(?<![^\W_])_{1,3}|_{1,3}(?![^\W_])")
_DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2212"

_NUMBER = r"(?<![\w.,/])[-\u2212+]?[0-9]+(?:\.[0-9]+)?(?![\w]|[.,][0-9])"
_OUT_OF = r"\s*(?:/|\bout\s+of\b)\s*"
_DENOMINATOR = r"(?P<whole>[0-9]+(?:\.[0-9]+)?)(?![\w]|[.,][0-9])"
_SCORE = rf"(?P<value>{_NUMBER})(?:{_OUT_OF}{_DENOMINATOR}|\s*(?P<percent>%|percent\b))?"
_FILLER = (
    r"(?:[\s:=\"'|>(\[]|->|\b(?:is|was|of|as|at|be|to|with|for|would|a|an|the|it|this|that|my|your|overall|final|total"
    r"|model|model's|assistant's|response|answer|score|rating|grade|around|about|approximately)\b){0,40}"
)
_NAMED = re.compile(
    rf"(?P<final>\b(?:final|overall|total)\s+)?"
    rf"\b(?:score|scores|scored|rating|rate|rated|grade|graded|give|gave|assign|assigned|deserves?|gets?|earns?)\b"
    rf"(?P<between>{_FILLER}){_SCORE}(?!\s*[:=])",
    re.IGNORECASE,
)
_MINUS = re.compile(r"[:=]\s*[-\u2212]\s+[0-9]")
_WHOLE = re.compile(rf"\s*{_SCORE}\s*(?:points?)?\s*[.!]?\s*", re.IGNORECASE)
_FRACTION = re.compile(rf"(?P<value>{_NUMBER}){_OUT_OF}{_DENOMINATOR}", re.IGNORECASE)
_TO = rf"\s*%?\s*(?:[{_DASHES}\u2026~]|\.\.\.?|\bto\b|\band\b|\bor\b|\u00b1|\+/-)\s*[0-9]"
_RANGE = re.compile(rf"[0-9]{_TO}", re.IGNORECASE)
_GOES_ON = re.compile(_TO.replace(r"\band\b|", ""), re.IGNORECASE)
_ANY_NUMBER = re.compile(_NUMBER)
_DIGITS = re.compile(r"\d")


def read_score(reply: str, scale: Scale = HUNDRED) -> Reading:
    """The score in a judge's reply.

    >>> read_score("I'd rate 85 out of 100."), read_score('```json\\n{"score": 85}\\n```').value
    (Reading(value=85.0, reason=''), 85.0)
    >>> read_score("80-90").reason
    'a range, not a number'
    >>> read_score("150").reason
    '150 is not within 0 to 100'
    """
    text = _END_OF_THOUGHT.sub("", reply.translate(_INVISIBLE))
    text, thoughts = _THOUGHT.subn("", text)
    text = _FENCE.sub(" ", text).strip()
    if not text:
        return Reading(None, "the reply holds a thought and no answer" if thoughts else "the reply is empty")
    if any(not digit.isascii() for digit in _DIGITS.findall(text)):
        return Reading(None, "digits other than 0 to 9")
    if (found := _from_json(text, scale)) is not None:
        return found
    text = _MARKUP.sub("", _without_scale(text, scale))
    if match := _WHOLE.fullmatch(text):
        return _within(match, scale)
    if (named := _named(text, scale)) is not None:
        return named
    return _alone(text, scale)


def _from_json(text: str, scale: Scale) -> Reading | None:
    """Rung 1: every object with a score must say the same; None where there is no such object."""
    found: list[object] = []

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        found.extend(value for key, value in items if key.strip().lower() == "score")
        return dict(items)

    decoder = json.JSONDecoder(object_pairs_hook=pairs)
    at = text.find("{")
    while at >= 0:
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        at = text.find("{", end)
    if not found:
        return None
    values = {str(value).strip() if isinstance(value, str) else json.dumps(value) for value in found}
    if len(values) > 1:
        return Reading(None, f"two scores in one reply: {', '.join(sorted(values)[:5])}")
    (value,) = found[:1]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return Reading(None, f"the score is {json.dumps(value)[:40]}, not a number")
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value)
        return _within(match, scale) if match else Reading(None, f"the score is {value[:40]!r}, not a number")
    return _in_scale(str(value), scale)


def _named(text: str, scale: Scale) -> Reading | None:
    """Rung 3; where the surest kind of name stands at two different numbers, neither is believed."""
    matches = list(_NAMED.finditer(text))
    final = [match for match in matches if match["final"]]
    labelled = [match for match in matches if ":" in match["between"] or "=" in match["between"]]
    for kind in (final, labelled, matches):
        if kind:
            if any(_GOES_ON.match(text, match.end()) for match in kind):
                return Reading(None, "a range, not a number")
            readings = [_within(match, scale) for match in kind]
            if len({reading.value for reading in readings}) > 1:
                return Reading(None, f"two scores in one reply: {', '.join(match['value'] for match in kind[:5])}")
            return readings[-1]
    return None


def _alone(text: str, scale: Scale) -> Reading:
    """Rungs 4 and 5: the one number there is."""
    if _RANGE.search(text):
        return Reading(None, "a range, not a number")
    if _MINUS.search(text):
        return Reading(None, "a minus sign before the number")
    fractions = list(_FRACTION.finditer(text))
    same = len({(match["value"], match["whole"]) for match in fractions}) == 1
    if same and not _ANY_NUMBER.search(_FRACTION.sub(" ", text)):
        return _within(fractions[0], scale)
    numbers = [match.group() for match in _ANY_NUMBER.finditer(text)]
    if not numbers:
        return Reading(None, "no number that stands alone" if _DIGITS.search(text) else "no number in the reply")
    if len({float(number.replace("\u2212", "-")) for number in numbers}) == 1 and not fractions:
        return _in_scale(numbers[0], scale)
    return Reading(None, f"several numbers and none is named the score: {', '.join(numbers[:5])}")


def _without_scale(text: str, scale: Scale) -> str:
    """Without a mention of the scale itself: "from 0 to 100", "a 1-5 scale"."""
    low, high = f"{scale.low:g}", f"{scale.high:g}"
    ends = rf"\b{low}\s*(?:[{_DASHES}]|to|and)\s*{high}\b"
    mention = rf"(?:scale|range)\s*(?:of|from|between|is|:)?\s*\(?{ends}\)?|\(?{ends}\)?\s*(?:point\s+)?(?:scale|range)"
    return re.sub(rf"(?:{mention}|\bfrom\s+{ends}|\bbetween\s+{ends})", " ", text, flags=re.IGNORECASE)


def _within(match: re.Match[str], scale: Scale) -> Reading:
    """A matched number, brought from the denominator that is written to the scale."""
    named = match.groupdict()
    whole = "100" if named.get("percent") else named.get("whole")
    if whole is None or float(whole) == scale.high:
        return _in_scale(match["value"], scale)
    if scale.low != 0 or float(whole) not in (5.0, 10.0, 20.0, 100.0):
        return Reading(None, f"{match.group().strip()[:40]!r} is not on a scale of {scale.low:g} to {scale.high:g}")
    value = float(match["value"].replace("\u2212", "-")) / float(whole) * scale.high
    return _in_scale(f"{value:g}", scale)


def _in_scale(number: str, scale: Scale) -> Reading:
    try:
        value = float(number.replace("\u2212", "-"))
    except ValueError:
        return Reading(None, f"{number[:40]!r} is not a number")
    if scale.low <= value <= scale.high:
        return Reading(value + 0.0)  # no negative zero
    return Reading(None, f"{number[:40]} is not within {scale.low:g} to {scale.high:g}")
