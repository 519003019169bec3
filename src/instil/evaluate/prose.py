"""The score in what a judge says in words: rungs 2 to 5 of `instil.evaluate.parsing`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from instil.evaluate.doubts import BOUND, IN_PASSING, is_of_another, is_qualified, other_scale, spoken_against
from instil.evaluate.scales import DASHES, NUMBER, WORD, Reading, Scale, within

MOST = 100  # numbers that a verdict may give; a reply with more is one that did not end
FENCE = re.compile(r"```[A-Za-z]*|~~~[A-Za-z]*")
_MARKUP = re.compile(r"[*`]{1,3}|(?<![^\W_])_{1,3}|_{1,3}(?![^\W_])")
_BLANKS = re.compile(r"[^\S\n]+")
_LINES = re.compile(r" ?\n[ \n]*")
_WHOLE_SCALE = r"(?P<whole>[0-9]+(?:\.[0-9]+)?)(?![\w]|[.,][0-9])"
_SCORE = rf"(?P<value>{NUMBER})(?: ?(?:/|\bout of(?: a)?\b) ?{_WHOLE_SCALE}| ?(?P<percent>%|percent\b))?"
_QUOTE_MARKS = "\"'\u201c\u201d\u2018\u2019\u00ab\u00bb"
_NUMBER_ALONE = rf"[\s{_QUOTE_MARKS}(\[$#{{]*{_SCORE}(?: ?points?)?[\s{_QUOTE_MARKS})\]$.!}}|]*"
_BARE = re.compile(_NUMBER_ALONE, re.IGNORECASE)
_AT_HEAD = re.compile(rf"{_NUMBER_ALONE} (?=(?:final |overall )?{WORD}\b)", re.IGNORECASE)
ALONE = re.compile(
    rf"(?:(?:final |overall |total |my |the )*{WORD}[ |]*(?:[-=]>|[:={DASHES}|\uff1a\u2192])?)?{_NUMBER_ALONE}",
    re.IGNORECASE,
)
_LABEL = re.compile(
    rf"(?P<before>[^\n.;!?]{{0,40}}?)(?<![\w])(?P<final>final|overall|total)?(?:(?<=\w) )?(?P<word>{WORD}s?)?"
    rf"(?:(?: for| of)? (?:the |this |my )?(?:model |assistant )?(?:response|answer))?"
    rf"(?: ?[:=\uff1a]| [{DASHES}](?= ))[ \n\"']*{_SCORE}",
    re.IGNORECASE,
)
_GIVEN = re.compile(
    r"(?:\bI(?:'d| would| will|'ll| have| can)? (?:\w+ ){0,2}?(?:rate|rated|score|scored|give|gave|grade|graded|assign"
    r"|assigned|award|awarded|say)\b|\b"
    rf"{WORD}\b(?: for (?:the |this )?(?:model )?(?:response|answer))?(?: (?:is|of|was)\b| would be\b)"
    r"|\banswer is(?= an? )"
    r"|\bdeserves(?= an? ))"
    r"(?: (?:it|this|that|the|a|an|at|as|with|of|to|my|model|model's|assistant's|response|answer|"
    rf"{WORD}|final|overall|about|around)\b){{0,8}}:? ?{_SCORE}",
    re.IGNORECASE,
)
FRACTION = re.compile(rf"(?P<value>{NUMBER}) ?(?:/|\bout of\b) ?{_WHOLE_SCALE}", re.IGNORECASE)
_TO = rf" ?%? ?(?:[{DASHES}\u2026~\uff5e]{{1,3}}(?= ?[0-9])|\.\.\.?|\bto\b|\bor\b|\u00b1|\+/-) ?[0-9]"
_RANGE = re.compile(rf"[0-9](?:{_TO}| and [0-9])", re.IGNORECASE)
_GOES_ON = re.compile(_TO, re.IGNORECASE)
# What may follow a score; else the number counts something ("3 errors") or is only the start of one ("8 5", "1. ...").
_AFTER = re.compile(
    r"\s*\Z|[.!]?\n|[.!;,)\]\"'}]|:(?! ?[0-9])"
    r"| (?:points?\b|because|since|as\b|for\b|due|given|overall|based|but|and\b(?! ?[0-9])"
    rf"|though|with|which|in\b|\(|[{DASHES}] ?(?![0-9 ]))",
    re.IGNORECASE,
)
_LIST = re.compile(r"(?m)^ ?[0-9]{1,2}[.)] \S")
_ANY_NUMBER = re.compile(NUMBER)
_NAMES = (  # of a verdict, here and in other languages
    rf"(?:{WORD}|verdict|evaluation|assessment|judge?ment|result|answer|conclusion|total|points"
    r"|bewertung|punktzahl|punkte|wertung|note|nota|puntuaci[o\u00f3]n|calificaci[o\u00f3]n|puntaje"
    r"|pontua[c\u00e7][a\u00e3]o|punteggio|voto|valutazione|\u043e\u0446\u0435\u043d\u043a\u0430|\u0431\u0430\u043b\u043b|"
    r"beoordeling|cijfer|betyg|po\u00e4ng|karakter|ocena|wynik|puan|skor|nilai|\u8bc4\u5206|\u5f97\u5206|\u5206\u6570"
    r"|\u8a55\u5206|\u5206\u6578|\u70b9\u6570|\u8a55\u4fa1|\u30b9\u30b3\u30a2|\uc810\uc218|\ud3c9\uc810"
    r"|\u0627\u0644\u0646\u062a\u064a\u062c\u0629|\u0627\u0644\u062f\u0631\u062c\u0629|\u0938\u094d\u0915\u094b\u0930"
    r"|\u0e04\u0e30\u0e41\u0e19\u0e19)"
)
_NAMED = (
    r"(?:\A ?:|(?:\A|[.!?;\n] ?)(?:(?:so|here(?:'s| is)|my|the|a|its|final|overall|total|model|response|as) ?){0,5}"
    rf"{_NAMES} ?[:\uff1a])"
)
_AT_END = re.compile(rf"(?:\A|(?<!\bno)[.!?;\n]|{_NAMED}) ?{_SCORE} ?(?:points?)?[.!]?\Z", re.IGNORECASE)
_VERDICT = re.compile(rf"{_NAMED} ?{_SCORE}[.!]?(?=\n|\Z)", re.IGNORECASE)
_AT_TAIL = re.compile(
    rf"(?:[>\])}}\u25b7\uff1e\u3011]|&gt;) ?\n?{_SCORE}[.!]?\Z", re.IGNORECASE
)  # after a mark of some kind
_AT_START = re.compile(rf"\A{_SCORE}(?:[,;:\n]|[.!]\n| [{DASHES}] )", re.IGNORECASE)
DIGITS = re.compile(r"\d")


def in_prose(text: str, scale: Scale) -> Reading | None:
    """Rungs 2 to 5."""
    if match := ALONE.fullmatch(text):
        return within(match, scale)
    if reason := other_scale(text, scale):
        return Reading(None, reason)
    for rung in (_labelled, _given, _apart):
        if (found := rung(text, scale)) is not None:
            return found
    return None


def tidy(text: str, scale: Scale) -> str:
    """In one form: no fences and markup, single blanks, "(out of 100)" without brackets, no mention of the scale."""
    text = re.sub(r"\\boxed\{([^{}]*)\}", r"\1", _MARKUP.sub("", FENCE.sub(" ", text)))
    text = _LINES.sub("\n", _BLANKS.sub(" ", text)).strip()
    text = re.sub(r"\((out of [0-9]+)\)", r"\1", text, flags=re.IGNORECASE)
    low, high = f"{scale.low:g}", f"{scale.high:g}"
    ends = rf"\b{low} ?(?:[{DASHES}]|to|and) ?{high}\b"
    mention = (
        rf"(?:on )?(?:a |the )?(?:scale|range) ?(?:of|from|between|is|:)? ?\(?{ends}\)?"
        rf"|(?:\bon )?(?:\ba |\bthe )?\(?{ends}\)? ?(?:point )?(?:scale|range)"
        rf"|\bfrom {ends}|\bbetween {ends}| ?\({ends}\)"
    )
    return re.sub(mention, "", text, flags=re.IGNORECASE).strip(" ,")


def _labelled(text: str, scale: Scale) -> Reading | None:
    """Rung 3; where two labels of one kind stand at different numbers, neither is believed."""
    matches = [match for match in _LABEL.finditer(text) if match["final"] or match["word"]]
    if not matches:
        return None
    if len(matches) > MOST:
        return Reading(None, f"{len(matches):,} scores in one reply")
    final = [match for match in matches if match["final"]]
    for match in final or matches:
        before = match["before"]
        if IN_PASSING.search(before):
            return Reading(None, f"a number in passing: {match.group().strip()[-40:]!r}")
        if is_of_another(before) or (match["word"] and not match["final"] and is_qualified(before)):
            return Reading(None, f"a number of something else: {match.group().strip()[-40:]!r}")
        if match["word"] and match["word"].lower().endswith("s") and _LIST.search(text):
            return Reading(None, "a list of scores")
    reading = _agreed(final or matches, text, scale)
    return reading if final else _unless_another(reading, text, scale)


def _given(text: str, scale: Scale) -> Reading | None:
    """Rung 4: what the judge says that it gives, unless it only might."""
    matches = list(_GIVEN.finditer(text))
    if len(matches) > MOST:
        return Reading(None, f"{len(matches):,} scores in one reply")
    for match in matches:
        start = max(text.rfind(mark, 0, match.start()) for mark in ".!?;\n") + 1
        end = min((at for mark in ".!?;\n" if (at := text.find(mark, match.end())) >= 0), default=len(text))
        if IN_PASSING.search(text[start:end]) or text[max(match.start() - 1, 0)] in _QUOTE_MARKS:
            return Reading(None, f"a number in passing: {text[start:end].strip()[:60]!r}")
        named = re.match(WORD, match.group(), re.IGNORECASE) is not None
        if is_of_another(text[start : match.start()]) or (named and is_qualified(text[: match.start()])):
            return Reading(None, f"a number of something else: {text[start:end].strip()[:60]!r}")
    return _unless_another(_agreed(matches, text, scale), text, scale) if matches else None


def _unless_another(reading: Reading, text: str, scale: Scale) -> Reading:
    """A reading, unless another number stands in the text as a verdict does: alone on a line, or out of all points."""
    others = [match for line in text.split("\n") if (match := _BARE.fullmatch(line.strip()))]
    others += [match for match in (_AT_HEAD.match(text), _AT_TAIL.search(text)) if match]
    others += _VERDICT.finditer(text)
    others += [match for match in FRACTION.finditer(text) if float(match["whole"]) == scale.high]
    for match in others if reading.value is not None else ():
        other = within(match, scale).value
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
        if listed or not _AFTER.match(follows) or BOUND.search(text[:start]):
            return Reading(None, f"not sure what this number says: {text[max(0, start - 20) : match.end() + 20]!r}")
    readings = [within(match, scale) for match in matches]
    for match, reading in zip(matches, readings, strict=True):
        if reading.value is not None and (
            reason := spoken_against(text, match.end(), float(match["value"].lstrip("+")))
        ):
            return Reading(None, reason)
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
    fractions = list(FRACTION.finditer(text))
    if len(fractions) > MOST:
        return Reading(None, f"{len(fractions):,} scores in one reply")
    if fractions and len({(match["value"], match["whole"]) for match in fractions}) == 1:
        whole_scale = float(fractions[0]["whole"]) == scale.high and not IN_PASSING.search(text)
        if whole_scale and not _ANY_NUMBER.search(FRACTION.sub(" ", text)):
            return _agreed(fractions, text, scale)
    numbers = _ANY_NUMBER.findall(text)
    if len(set(numbers)) == 1 and not fractions:
        match = _AT_END.search(text) or _AT_START.match(text)
        if match and not BOUND.search(text[: match.start("value")]):
            return within(match, scale)
    return None


def none_said(text: str) -> Reading:
    numbers: Iterable[str] = _ANY_NUMBER.findall(text)
    shown = ", ".join(list(dict.fromkeys(numbers))[:5])
    if not shown:
        return Reading(None, "no number that stands alone" if DIGITS.search(text) else "no number in the reply")
    return Reading(None, f"no number is said to be the score: {shown}")
