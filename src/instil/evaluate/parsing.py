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
from collections.abc import Iterable
from dataclasses import dataclass

from instil.ask.loose_json import NotJson, read_json
from instil.ask.thoughts import spoken

NOTHING = ""  # the reason of a reading that succeeded
LONGEST = 20_000  # characters; a verdict is short
JSON_TRIES = 50
SCORES = ("score", "rating", "overall_score", "final_score")  # keys of a JSON reply


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

_END_MARKS = re.compile(r"(?:\s*(?:<\|\w{2,20}\|>|</s>|<end_of_turn>|<eos>))+\s*\Z")
_WRAPPED = re.compile(r"\s*<(score|rating|answer|final|verdict|output|result)>([^<]*)</\1>\s*", re.IGNORECASE)
_FENCED = re.compile(r"(?:```|~~~)[A-Za-z]*\n?(.*?)(?:```|~~~)", re.DOTALL)
_FENCE = re.compile(r"```[A-Za-z]*|~~~[A-Za-z]*")
_MARKUP = re.compile(r"[*`]{1,3}|(?<![^\W_])_{1,3}|_{1,3}(?![^\W_])")
_BLANKS = re.compile(r"[^\S\n]+")
_LINES = re.compile(r" ?\n[ \n]*")
_DASHES = "\\-\u2010\u2011\u2012\u2013\u2014\u2212"

_NUMBER = rf"(?<![\w.,/{_DASHES}])[{_DASHES}+]?[0-9]+(?:\.[0-9]+)?(?![\w]|[.,][0-9])"
_WHOLE_SCALE = r"(?P<whole>[0-9]+(?:\.[0-9]+)?)(?![\w]|[.,][0-9])"
_SCORE = rf"(?P<value>{_NUMBER})(?: ?(?:/|\bout of(?: a)?\b) ?{_WHOLE_SCALE}| ?(?P<percent>%|percent\b))?"
_WORD = r"(?:score|rating|grade|mark)"
_QUOTE_MARKS = "\"'\u201c\u201d\u2018\u2019\u00ab\u00bb"
_NUMBER_ALONE = rf"[\s{_QUOTE_MARKS}(\[$#{{]*{_SCORE}(?: ?points?)?[\s{_QUOTE_MARKS})\]$.!}}|]*"
_BARE = re.compile(_NUMBER_ALONE, re.IGNORECASE)
_AT_HEAD = re.compile(rf"{_NUMBER_ALONE} (?=(?:final |overall )?{_WORD}\b)", re.IGNORECASE)
_ALONE = re.compile(
    rf"(?:(?:final |overall |total |my |the )*{_WORD}[ |]*(?:[-=]>|[:={_DASHES}|\uff1a\u2192])?)?{_NUMBER_ALONE}",
    re.IGNORECASE,
)
_LABEL = re.compile(
    rf"(?P<before>[^\n.;!?]{{0,40}}?)(?<![\w])(?P<final>final|overall|total)?(?:(?<=\w) )?(?P<word>{_WORD}s?)?"
    rf"(?:(?: for| of)? (?:the |this |my )?(?:model |assistant )?(?:response|answer))?"
    rf"(?: ?[:=\uff1a]| [{_DASHES}](?= ))[ \n\"']*{_SCORE}",
    re.IGNORECASE,
)
_GIVEN = re.compile(
    r"(?:\bI(?:'d| would| will|'ll| have| can)? (?:\w+ ){0,2}?(?:rate|rated|score|scored|give|gave|grade|graded|assign"
    r"|assigned|award|awarded|say)\b|\b"
    rf"{_WORD}\b(?: for (?:the |this )?(?:model )?(?:response|answer))?(?: (?:is|of|was)\b| would be\b)"
    r"|\banswer is(?= an? )"
    r"|\bdeserves(?= an? ))"
    r"(?: (?:it|this|that|the|a|an|at|as|with|of|to|my|model|model's|assistant's|response|answer|"
    rf"{_WORD}|final|overall|about|around)\b){{0,8}}:? ?{_SCORE}",
    re.IGNORECASE,
)
_FRACTION = re.compile(rf"(?P<value>{_NUMBER}) ?(?:/|\bout of\b) ?{_WHOLE_SCALE}", re.IGNORECASE)
_TO = rf" ?%? ?(?:[{_DASHES}\u2026~](?= ?[0-9])|\.\.\.?|\bto\b|\bor\b|\u00b1|\+/-) ?[0-9]"
_RANGE = re.compile(rf"[0-9](?:{_TO}| and [0-9])", re.IGNORECASE)
_GOES_ON = re.compile(_TO, re.IGNORECASE)
_BOUND = re.compile(
    r"(?:[<>\u2264\u2265~]|\b(?:at most|at least|over|under|above|below|up to|more than|less than|not)) ?\Z",
    re.IGNORECASE,
)
# What may follow a score; else the number counts something ("3 errors") or is only the start of one ("8 5", "1. ...").
_AFTER = re.compile(
    r"\s*\Z|[.!]?\n|[.!;,)\]\"'}]|:(?! ?[0-9])"
    r"| (?:points?\b|because|since|as\b|for\b|due|given|overall|based|but|and\b(?! ?[0-9])"
    rf"|though|with|which|in\b|\(|[{_DASHES}] ?(?![0-9 ]))",
    re.IGNORECASE,
)
_IN_PASSING = re.compile(
    r"\b(?:if|had|unless|perfect|ideal|maximum|max|minimum|best|highest|lowest|possible|not|never|without|could|should"
    r"|would have|would need|sure(?![!,])|certain|confident|confidence|says|said|claims?|asks|tries|wrote"
    r"|writes|quot\w+|\w+n't)\b",
    re.IGNORECASE,
)
_OTHER_SCALE = re.compile(
    rf"\b(?:scale|range)\b[^.\n0-9]{{0,20}}[0-9]+ ?(?:[{_DASHES}]|to|and) ?[0-9]+"
    rf"|[0-9] ?[{_DASHES}]? ?point scale|\bstars?\b",
    re.IGNORECASE,
)
_LIST = re.compile(r"(?m)^ ?[0-9]{1,2}[.)] \S")
_WORDY = re.compile(r"\w")
_QUOTES = re.compile(  # what is said of another's words: 'The answer contains the JSON {...}'
    r"\b(?:says?|said|claims?|claimed|asks|tries|tried|contains?|includes?|attempts?|outputs?|prints?|replie[sd]"
    r"|has|had|gave|wrote|writes)(?: \w+){0,2}\W*\Z"
    r"|\b(?:asks?|asking|tells?|orders?|wants?)(?: \w+){0,5}\W*\Z"
    r"|\b(?:response|answer|text|model|output|it) (?:is[\s`]*|was\W*)\Z"
    r"|\b(?:quot\w+|inject\w+|pretend\w*|fake\w*|instead|such as)\b",
    re.IGNORECASE,
)
# What begins as JSON does; a brace of a formula or of code need not be JSON.
_OBJECT = re.compile(
    rf"\{{\s*(?:\Z|\"[^\"]*(?:\"\s*(?::|\Z)|\Z)|'[^']*(?:'\s*(?::|\Z)|\Z)|(?:{'|'.join(SCORES)})\s*:)", re.IGNORECASE
)
_BRACELESS = re.compile(rf"\s*[\"'](?:{'|'.join(SCORES)})[\"']\s*:", re.IGNORECASE)  # the brace was the prompt's
_ANY_NUMBER = re.compile(_NUMBER)
_DIGITS = re.compile(r"\d")
_AT_END = re.compile(rf"(?:\A|[.!?:;\n] ?){_SCORE} ?(?:points?)?[.!]?\Z", re.IGNORECASE)
_AT_TAIL = re.compile(
    rf"(?:[>\])}}\u25b7\uff1e\u3011]|&gt;) ?\n?{_SCORE}[.!]?\Z", re.IGNORECASE
)  # after a mark of some kind
_AT_START = re.compile(rf"\A{_SCORE}(?:[,;:\n]|[.!]\n| [{_DASHES}] )", re.IGNORECASE)


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
    if not _FENCE.sub("", text).strip():
        return Reading(None, "the reply is empty")
    if any(not digit.isascii() for digit in _DIGITS.findall(text)):
        return Reading(None, "digits other than 0 to 9")
    if _BRACELESS.match(text):
        text = f"{{{text}"
    if (found := _from_json(text, scale)) is not None:
        return found
    text = _tidy(text, scale)
    return _in_prose(text, scale) or _none(text)


def _in_prose(text: str, scale: Scale) -> Reading | None:
    """Rungs 2 to 5."""
    if match := _ALONE.fullmatch(text):
        return _within(match, scale)
    if _OTHER_SCALE.search(text):
        return Reading(None, f"it speaks of another scale than {scale.low:g} to {scale.high:g}")
    for rung in (_labelled, _given, _apart):
        if (found := rung(text, scale)) is not None:
            return found
    return None


def _tidy(text: str, scale: Scale) -> str:
    """In one form: no fences and markup, single blanks, "(out of 100)" without brackets, no mention of the scale."""
    text = re.sub(r"\\boxed\{([^{}]*)\}", r"\1", _MARKUP.sub("", _FENCE.sub(" ", text)))
    text = _LINES.sub("\n", _BLANKS.sub(" ", text)).strip()
    text = re.sub(r"\((out of [0-9]+)\)", r"\1", text, flags=re.IGNORECASE)
    low, high = f"{scale.low:g}", f"{scale.high:g}"
    ends = rf"\b{low} ?(?:[{_DASHES}]|to|and) ?{high}\b"
    mention = (
        rf"(?:on )?(?:a |the )?(?:scale|range) ?(?:of|from|between|is|:)? ?\(?{ends}\)?"
        rf"|\(?{ends}\)? ?(?:point )?(?:scale|range)|\bfrom {ends}|\bbetween {ends}| ?\({ends}\)"
    )
    return re.sub(mention, "", text, flags=re.IGNORECASE).strip(" ,")


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
    values = {_plain(value) for value, _ in found}
    if len(values) > 1:
        return Reading(None, f"two scores in one reply: {', '.join(sorted(values)[:5])}")
    if fenced:
        first, _, last = text.partition(fenced[0])
        outside = (first, last.rpartition(fenced[-1])[2] if len(fenced) > 1 else last)
    before, after = (_FENCE.sub("", side) for side in outside)
    if (not fenced and _WORDY.search(before) and _WORDY.search(after)) or _is_quoted(before, after):
        return Reading(None, "JSON in the middle of a text, which may be quoted")
    reading = _of_object(found[0], scale)
    for side in (before, after):  # what is said beside it must not speak against it
        said = _in_prose(_tidy(side.strip("[] \t\r\n"), scale), scale)
        if said is not None and None not in (said.value, reading.value) and said.value != reading.value:
            return Reading(None, f"two scores in one reply: {reading.value:g}, {said.value:g}")
    return reading


def _of_object(found: tuple[object, list[object]], scale: Scale) -> Reading:
    """The score of an object, and what it says of its scale."""
    value, others = found
    if any(isinstance(other, int | float) and other != scale.high for other in others):
        return Reading(None, f"it speaks of another scale than {scale.low:g} to {scale.high:g}")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return Reading(None, f"the score is {json.dumps(value)[:40]}, not a number")
    if isinstance(value, str):
        match = _ALONE.fullmatch(_tidy(value, scale))
        return _within(match, scale) if match else Reading(None, f"the score is {value[:40]!r}, not a number")
    return _in_scale(str(value), scale)


def _is_quoted(before: str, after: str) -> bool:
    """Whether the words around an object say that it is another's: 'The answer tries {...}', '{...} is its text'."""
    sentence = re.split(r"[.!?]\s|\n\s*\n", before.strip())[-1]
    introduced = bool(_QUOTES.search(sentence)) and not sentence.endswith((".", "!", "?"))
    return introduced or bool(re.match(r"[ \t\"'`]*[a-z]", after))


def _objects(text: str) -> tuple[list[tuple[object, list[object]]], tuple[str, str], str]:
    """The scores of all JSON objects in a text, with what they say of their scale; what stands before and after.

    Third comes why they must not be read, if so: one of them does not end, or is none.
    """
    found: list[tuple[object, list[object]]] = []

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        names = [(key.strip().lower(), value) for key, value in items]
        whole = [value for key, value in names if key in ("out_of", "max", "scale", "max_score", "maximum")]
        found.extend((value, whole) for key, value in names if key in SCORES)
        return dict(items)

    at, first, last = text.find("{"), -1, 0
    for _ in range(JSON_TRIES):
        if at < 0:
            break
        count = len(found)
        try:
            end = read_json(text, at, pairs)[1]
        except NotJson as error:
            del found[count:]
            if _OBJECT.match(text, at):
                still = "its JSON is still open" if error.ended else f"its JSON cannot be read: {error}"
                return [], ("", ""), still
            end = at + 1
        if len(found) > count:
            first, last = (at if first < 0 else first), end
        at = text.find("{", end)
    before, after = text[: max(first, 0)], text[last:]
    if found and before.rstrip().endswith("[") and "]" not in after:
        return [], ("", ""), "its JSON is still open"
    return found, (before, after), ""


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


def _labelled(text: str, scale: Scale) -> Reading | None:
    """Rung 3; where two labels of one kind stand at different numbers, neither is believed."""
    matches = [match for match in _LABEL.finditer(text) if match["final"] or match["word"]]
    if not matches:
        return None
    final = [match for match in matches if match["final"]]
    for match in matches:
        if _IN_PASSING.search(match["before"]):
            return Reading(None, f"a number in passing: {match.group().strip()[-40:]!r}")
        if match["word"] and match["word"].lower().endswith("s") and _LIST.search(text):
            return Reading(None, "a list of scores")
    reading = _agreed(final or matches, text, scale)
    return reading if final else _unless_another(reading, text, scale)


def _given(text: str, scale: Scale) -> Reading | None:
    """Rung 4: what the judge says that it gives, unless it only might."""
    matches = list(_GIVEN.finditer(text))
    for match in matches:
        start = max(text.rfind(mark, 0, match.start()) for mark in ".!?;\n") + 1
        end = min((at for mark in ".!?;\n" if (at := text.find(mark, match.end())) >= 0), default=len(text))
        if _IN_PASSING.search(text[start:end]) or text[max(match.start() - 1, 0)] in _QUOTE_MARKS:
            return Reading(None, f"a number in passing: {text[start:end].strip()[:60]!r}")
    return _unless_another(_agreed(matches, text, scale), text, scale) if matches else None


def _unless_another(reading: Reading, text: str, scale: Scale) -> Reading:
    """A reading, unless another number stands in the text as a verdict does: alone on a line, or out of all points."""
    others = [match for line in text.split("\n") if (match := _BARE.fullmatch(line.strip()))]
    others += [match for match in (_AT_HEAD.match(text), _AT_TAIL.search(text)) if match]
    others += [match for match in _FRACTION.finditer(text) if float(match["whole"]) == scale.high]
    for match in others if reading.value is not None else ():
        other = _within(match, scale).value
        if other is not None and other != reading.value:
            return Reading(None, f"two scores in one reply: {reading.value:g}, {other:g}")
    return reading


def _agreed(matches: list[re.Match[str]], text: str, scale: Scale) -> Reading:
    """The number that all matches stand at."""
    for match in matches:
        if _GOES_ON.match(text, match.end()):
            return Reading(None, "a range, not a number")
        start = match.start("value")
        follows = text[match.end() :]
        listed = re.match(r"[.)] \S", follows) and (start == 0 or text[start - 1] == "\n" or _next_item(match, text))
        if listed or not _AFTER.match(follows) or _BOUND.search(text[:start]):
            return Reading(None, f"not sure what this number says: {text[max(0, start - 20) : match.end() + 20]!r}")
    readings = [_within(match, scale) for match in matches]
    if len({reading.value for reading in readings}) > 1:
        return Reading(None, f"two scores in one reply: {', '.join(match['value'] for match in matches[:5])}")
    return readings[-1]


def _next_item(match: re.Match[str], text: str) -> bool:
    """Whether a number is the marker of a list's item, the next of which follows."""
    try:
        following = int(match["value"]) + 1
    except ValueError:
        return False
    return bool(re.search(rf"(?<![\w.]){following}[.)] ", text[match.end() :]))


def _apart(text: str, scale: Scale) -> Reading | None:
    """Rung 5: the one number there is, if it stands apart."""
    if _RANGE.search(text):
        return Reading(None, "a range, not a number")
    fractions = list(_FRACTION.finditer(text))
    if fractions and len({(match["value"], match["whole"]) for match in fractions}) == 1:
        whole_scale = float(fractions[0]["whole"]) == scale.high and not _IN_PASSING.search(text)
        if whole_scale and not _ANY_NUMBER.search(_FRACTION.sub(" ", text)):
            return _agreed(fractions, text, scale)
    numbers = _ANY_NUMBER.findall(text)
    if len(set(numbers)) == 1 and not fractions:
        match = _AT_END.search(text) or _AT_START.match(text)
        if match and not _BOUND.search(text[: match.start("value")]):
            return _within(match, scale)
    return None


def _none(text: str) -> Reading:
    numbers: Iterable[str] = _ANY_NUMBER.findall(text)
    shown = ", ".join(list(dict.fromkeys(numbers))[:5])
    if not shown:
        return Reading(None, "no number that stands alone" if _DIGITS.search(text) else "no number in the reply")
    return Reading(None, f"no number is said to be the score: {shown}")


def _within(match: re.Match[str], scale: Scale) -> Reading:
    """A matched number, brought from the denominator that is written to the scale."""
    named = match.groupdict()
    whole = "100" if named.get("percent") else named.get("whole")
    if whole is None or float(whole) == scale.high:
        return _in_scale(match["value"], scale)
    if scale.low != 0 or float(whole) not in (5.0, 10.0, 20.0, 100.0):
        return Reading(None, f"{match.group().strip()[-40:]!r} is not on a scale of {scale.low:g} to {scale.high:g}")
    value = _number(match["value"]) / float(whole) * scale.high
    return _in_scale(f"{value:g}", scale)


def _in_scale(number: str, scale: Scale) -> Reading:
    try:
        value = _number(number)
    except ValueError:
        return Reading(None, f"{number[:40]!r} is not a number")
    if not scale.low <= value <= scale.high:
        return Reading(None, f"{number[:40]} is not within {scale.low:g} to {scale.high:g}")
    if 0 < value < 1 and scale.high == HUNDRED.high:
        return Reading(None, f"{number[:40]} may be a share or a score")
    return Reading(value + 0.0)  # no negative zero


def _number(text: str) -> float:
    """A number whose sign may be any dash.

    >>> _number("\u22125"), _number("85.5")
    (-5.0, 85.5)
    """
    return float(f"-{text[1:]}" if text[0] in _DASHES else text)
