"""What a judge wrote, read as a score or refused with a reason: never clamped, never dropped, never zero by accident.

The ladder, from the surest form to the least sure; the first rung that finds something decides:

1. JSON with a ``score``: alone, in a fence, or at one end of the prose; loosely written, but whole;
2. the whole reply is one number (``85``, ``85.``, ``85/100``, ``8 out of 10``, ``**85**``, ``85%``);
3. a number with a label: the final or overall one (``Overall: 85/100``), else the only one (``Score: 85``);
4. a number that the judge gives in words (``I'd rate it 85 out of 100``, ``the score is 85``);
5. one fraction of the whole scale (``85/100``), or one number that stands apart at an end (``It is right. 90``).

What a model thought before it answered is no part of the reply (`instil.ask.thoughts`). Digits are ASCII digits.
Refused are two different numbers on one rung, a range, a bound (``at most 20``), a number outside the scale or of
another one, JSON that is still open or quoted, and what is said of a number in passing ("a perfect answer would score
100", "it is not 100% right"): a wrong number is worse than none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from instil.ask.loose_json import NotJson, read_json
from instil.ask.thoughts import spoken
from instil.evaluate.doubts import is_key_of_another, other_scale
from instil.evaluate.prose import ALONE, DIGITS, FENCE, FRACTION, in_prose, none_said, tidy
from instil.evaluate.scales import HUNDRED, Reading, Scale, in_scale, within

LONGEST = 20_000  # characters; a verdict is short
JSON_TRIES = 50
Found = tuple[object, list[tuple[str, object]], tuple[str, ...]]  # a score, all of its object, the keys that lead to it
SCORES = ("score", "rating", "overall_score", "final_score")  # keys of a JSON reply

_END_MARKS = re.compile(r"(?:\s*(?:<\|\w{2,20}\|>|</s>|<end_of_turn>|<eos>))+\s*\Z")
_WRAPPED = re.compile(r"\s*<(score|rating|answer|final|verdict|output|result)>([^<]*)</\1>\s*", re.IGNORECASE)
_FENCED = re.compile(r"(?:```|~~~)[A-Za-z]*\n?(.*?)(?:```|~~~)", re.DOTALL)
_WORDY = re.compile(r"\w")
_QUOTES = re.compile(  # what is said of another's words: 'The answer contains the JSON {...}'
    r"\b(?:says?|said|claims?|claimed|asks|tries|tried|contains?|includes?|attempts?|outputs?|prints?|replie[sd]"
    r"|has|had|gave|wrote|writes)(?: \w+){0,2}\W*\Z"
    r"|\b(?:asks?|asking|tells?|orders?|wants?)(?: \w+){0,5}\W*\Z"
    r"|\b(?:response|answer|text|model|output|it) (?:is[\s`]*|was\W*)\Z"
    r"|\b(?:quot\w+|inject\w+|pretend\w*|fake\w*|instead|such as)\b",
    re.IGNORECASE,
)
_TOPS = frozenset(  # keys of what the whole would be
    "outof max maximum scale range maxscore maxpoints maxrating maxvalue maximumscore totalpoints totalpossible total"
    " possible pointspossible denominator scalemax best bestscore scoremax scorerange scorescale".split()
)
_NUMERAL = re.compile(r"(?<![\w.])[0-9]{1,9}(?:\.[0-9]{1,9})?")
# What begins as JSON does; a brace of a formula or of code need not be JSON.
_OBJECT = re.compile(
    rf"\{{\s*(?:\Z|\"[^\"]*(?:\"\s*(?::|\Z)|\Z)|'[^']*(?:'\s*(?::|\Z)|\Z)|(?:{'|'.join(SCORES)})\s*:)", re.IGNORECASE
)
_BRACELESS = re.compile(rf"\s*[\"'](?:{'|'.join(SCORES)})[\"']\s*:", re.IGNORECASE)  # the brace was the prompt's


class _Items(list[tuple[str, Any]]):
    """An object of JSON; a key may be there twice."""


def read_score(reply: str, scale: Scale = HUNDRED) -> Reading:
    """The score in a judge's reply.

    >>> read_score("I'd rate 85 out of 100."), read_score('```json\\n{"score": 85}\\n```').value
    (Reading(value=85.0, reason=''), 85.0)
    >>> read_score("80-90").reason
    'a range, not a number'
    >>> read_score("150").reason
    '150 is not within 0 to 100'
    """
    if len(reply) > LONGEST:
        return Reading(None, f"the reply has {len(reply):,} characters")
    said = spoken(reply)
    if said.reason:
        return Reading(None, said.reason)
    text = _END_MARKS.sub("", said.text)
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[2].strip()
    if not FENCE.sub("", text).strip():
        return Reading(None, "the reply is empty")
    if any(not digit.isascii() for digit in DIGITS.findall(text)):
        return Reading(None, "digits other than 0 to 9")
    if _BRACELESS.match(text):
        text = f"{{{text}"
    if (found := _from_json(text, scale)) is not None:
        return found
    text = tidy(text, scale)
    return in_prose(text, scale) or none_said(text)


def _from_json(text: str, scale: Scale) -> Reading | None:
    """Rung 1: every object with a score must say the same; None where there is no such object."""
    fenced = [block for block in _FENCED.findall(text) if "{" in block]
    found, outside, problem = _objects("\n".join(fenced) if fenced else text)
    if fenced and not problem:
        more, _, problem = _objects(_FENCED.sub(" ", text))
        found += more
    if problem:
        return Reading(None, problem)
    if not found:
        return None
    values = {_plain(value) for value, *_ in found}
    if len(values) > 1:
        return Reading(None, f"two scores in one reply: {', '.join(sorted(values)[:5])}")
    if fenced:
        first, _, last = text.partition(fenced[0])
        outside = (first, last.rpartition(fenced[-1])[2] if len(fenced) > 1 else last)
    before, after = (FENCE.sub("", side) for side in outside)
    if (not fenced and _WORDY.search(before) and _WORDY.search(after)) or _is_quoted(before, after):
        return Reading(None, "JSON in the middle of a text, which may be quoted")
    readings = [_of_object(one, scale) for one in found]
    reading = next((one for one in readings if one.value is None), readings[0])
    for side in (before, after):  # what is said beside it must not speak against it
        if reason := other_scale(tidy(side, scale), scale):
            return Reading(None, reason)
        said = in_prose(tidy(side.strip("[] \t\r\n"), scale), scale)
        if said is not None and None not in (said.value, reading.value) and said.value != reading.value:
            return Reading(None, f"two scores in one reply: {reading.value:g}, {said.value:g}")
    return reading


def _of_object(found: Found, scale: Scale) -> Reading:
    """The score of an object, and what it says of its scale."""
    value, items, path = found
    if any(map(is_key_of_another, path)) or any(is_key_of_another(key, said) for key, said in items):
        return Reading(None, f"a score of something else: {'.'.join(path) or 'its keys say so'}")
    if any(_speaks_of_another(key, said, value, scale) for key, said in items):
        return Reading(None, f"it speaks of another scale than {scale.low:g} to {scale.high:g}")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return Reading(None, f"the score is {json.dumps(value)[:40]}, not a number")
    if isinstance(value, str):
        match = ALONE.fullmatch(tidy(value, scale))
        return within(match, scale) if match else Reading(None, f"the score is {value[:40]!r}, not a number")
    return in_scale(str(value), scale)


def _speaks_of_another(key: str, said: object, value: object, scale: Scale) -> bool:
    """Whether a key of an object with a score says that this is of another scale: its top, or "8 out of 10"."""
    if re.sub(r"[\W_]", "", key.lower()) in _TOPS:
        numbers = [float(number) for number in _NUMERAL.findall(json.dumps(said))]
        return bool(numbers) and max(numbers) != scale.high
    if not isinstance(said, str) or said is value:
        return False
    fractions = (match for match in FRACTION.finditer(said) if float(match["whole"]) != scale.high)
    same = any(_plain(match["value"]) == _plain(value) for match in fractions)
    return same or (re.search(r"\bscale\b", said, re.IGNORECASE) is not None and bool(other_scale(said, scale)))


def _is_quoted(before: str, after: str) -> bool:
    """Whether the words around an object say that it is another's: 'The answer tries {...}', '{...} is its text'."""
    sentence = re.split(r"[.!?]\s|\n\s*\n", before.strip())[-1]
    introduced = bool(_QUOTES.search(sentence)) and not sentence.endswith((".", "!", "?"))
    return introduced or bool(re.match(r"[ \t\"'`]*[a-z]", after))


def _objects(text: str) -> tuple[list[Found], tuple[str, str], str]:
    """The scores of all JSON objects in a text, with what they say of their scale; what stands before and after.

    Third comes why they must not be read, if so: one of them does not end, or is none.
    """
    found: list[Found] = []
    at, first, last = text.find("{"), -1, 0
    for _ in range(JSON_TRIES):
        if at < 0:
            break
        try:
            value, end = read_json(text, at, _Items)
        except NotJson as error:
            if _OBJECT.match(text, at):
                still = "its JSON is still open" if error.ended else f"its JSON cannot be read: {error}"
                return [], ("", ""), still
            value, end = None, at + 1
        if more := list(_scores_in(value)):
            found += more
            first, last = (at if first < 0 else first), end
        at = text.find("{", end)
    before, after = text[: max(first, 0)], text[last:]
    if found and before.rstrip().endswith("[") and "]" not in after:
        return [], ("", ""), "its JSON is still open"
    return found, (before, after), ""


def _scores_in(value: object, path: tuple[str, ...] = ()) -> Iterator[Found]:
    """All scores in a parsed value."""
    if isinstance(value, _Items):
        for key, inner in value:
            if key.strip().lower() in SCORES:
                yield inner, value, path
            yield from _scores_in(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from _scores_in(inner, path)


def _plain(value: object) -> str:
    """A score for comparison: 85, 85.0 and "85" are one.

    >>> _plain(85), _plain(85.0), _plain(" 85 "), _plain(None)
    ('85', '85', '85', 'null')
    """
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    try:
        return f"{float(value):g}" if isinstance(value, int | float | str) else json.dumps(value)
    except (ValueError, OverflowError):
        return str(value).strip()[:40]
