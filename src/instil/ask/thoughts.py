"""What a model thought before it answered, told from what it said, in every spelling that is in use.

A mark of a thought counts at the beginning of a reply only; in a sentence, in quotes or in code it is a word like any
other. Where it cannot be told which of the two it is, the reply has a reason instead of a text: a text is whole, or it
is none.

The spellings: ``<think>`` and its like with any prefix (``<seed:think>``, ``<mm:think>``), ``[THINK]`` (Mistral),
``<|START_THINKING|>`` (Cohere), ``<|begin_of_thought|>`` (OpenThinker), boxed diamonds (Kimi), ``<unused94>``
(MedGemma), brackets of another width or as HTML writes them, and the channels of Harmony (gpt-oss) and Gemma. Some chat
templates write the opening mark into the prompt, so that the reply holds the closing one only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060\u00ad"))
OPEN = "the reply ends inside of a thought"
ONLY = "the reply holds a thought and no answer"
AMIDST = "the reply holds a mark of a thought in its middle"
MARKS = 300  # of thoughts, after which a reply is no text that anybody meant
MOST = 20  # thoughts that a reply may begin with
NOT_BEGUN = "the reply ends a thought that it did not begin"

_NAMES = r"think(?:ing)?|thoughts?|reasoning|inner_?(?:thoughts?|monologue)"
_MORE_NAMES = rf"{_NAMES}|reason|reflect(?:ion)?|scratch_?pad|analysis|critique|rationale|cot|deliberation"
_PARTS = frozenset("start begin end stop of prefix suffix open close opened closed".split())
_ENDS = frozenset("end stop suffix close closed".split())
# Marks of which the name says nothing, in the words of the others.
_SPELLED = (
    (re.compile(r"\A\s*<unused94>(?:thought\b)?"), "<unused95>"),
    (re.compile(r"\A\s*\[unused16\]"), "[unused17]"),
    (re.compile(r"\A\s*<\|inner_prefix\|>"), "<|inner_suffix|>"),
    (re.compile(r"\A\s*<\|channel>\s*(?:thought|analysis)\b"), "<channel|>"),
)
_AROUND = re.compile(  # what some models put around their answer
    r"\A\s*<\|?(?:START_RESPONSE|START_TEXT|begin_of_solution|begin_of_answer)\|?>"
    r"|<\|?(?:END_RESPONSE|END_TEXT|end_of_solution|end_of_answer)\|?>\s*\Z",
    re.IGNORECASE,
)
_HARMONY = re.compile(r"\A\s*(?:<\|start\|>\s*\w*\s*)?(?:<\|channel\|>|(?:analysis|commentary|final)\s*<\|message\|>)")
_CHANNEL = re.compile(
    r"(?:\A\s*|<\|channel\|>\s*)(?P<name>\w+)(?P<to>[^<>]*)(?:<\|constrain\|>[^<>]*)?<\|message\|>"
    r"(?P<said>.*?)(?=<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.DOTALL,
)
_BARE_CHANNEL = re.compile(r"\A\s*(?:analysis|commentary)(?=[A-Z0-9])")  # Harmony whose special tokens were dropped
_BARE_LINE = re.compile(r"\A\s*(?:analysis|commentary)\s*\n")
_ABOUT = re.compile(r"\s*<[^<>\n]*>[^<>\n]{0,20}<[^<>\n]*>(?: [a-z]|[,;:])")  # "<think> and </think> are tags"
_BARE_FINAL = re.compile(r"assistant\s*final(?=\s*\S)")


def _tag(names: str) -> re.Pattern[str]:
    name = rf"(?P<name>(?:\w[\w.\-\u2581]{{0,40}}[:_.\-\u2581])?(?:{names})(?:[_\-]\w{{1,40}})?)"
    return re.compile(
        rf"(?:[<\uff1c]|&lt;) ?(?P<slash>/?)[|\uff5c]?(?P<slash2>/?) ?{name}(?: [^<>\n]{{0,80}}?)?"
        r"(?P<empty>/?)[|\uff5c]?"
        r"(?:[>\uff1e]|&gt;)"
        rf"|(?P<square>\[)(?P<slash3>/?)(?P<name2>{names})\](?!\()"
        rf"|\u25c1 ?(?P<slash4>/?) ?(?P<name3>{names}) ?\u25b7",
        re.IGNORECASE,
    )


_TAG, _MORE_TAGS = _tag(_NAMES), _tag(_MORE_NAMES)


@dataclass(frozen=True, slots=True)
class Spoken:
    """A reply's text without the thought before it; or no text, with the reason."""

    text: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Mark:
    start: int
    end: int
    kind: str
    closing: bool
    empty: bool


def spoken(reply: str, *, data: bool = False) -> Spoken:
    """What a reply says.

    Args:
        reply: what the model wrote.
        data: the text is to be kept as it is: invisible characters inside stay (they join letters in Persian and in
            Hindi), fewer words are taken for names of thoughts, and a mark in a sentence is a word of it. A reading for
            a score can afford to refuse more.

    >>> spoken("<think>first?</think>second").text, spoken("[THINK]20[/THINK]85").text
    ('second', '85')
    >>> spoken("Put it between <think> and </think>.", data=True).text
    'Put it between <think> and </think>.'
    >>> spoken("<think>first"), spoken("<think>first</think>").reason
    (Spoken(text='', reason='the reply ends inside of a thought'), 'the reply holds a thought and no answer')
    """
    text = reply.lstrip("".join(map(chr, INVISIBLE)) + " \t\r\n") if data else reply.translate(INVISIBLE).strip()
    if (harmony := _harmony(text, data=data)) is not None:
        return harmony
    tag = _TAG if data else _MORE_TAGS
    if sum(1 for _ in islice(tag.finditer(text), MARKS + 1)) > MARKS:
        return Spoken("", AMIDST)
    rest, thought = text, False
    for count in range(MOST + 1):
        after = _after_thought(rest, tag)
        if after is None:
            break
        if count == MOST:
            return Spoken("", AMIDST)
        if after < 0:
            return Spoken("", OPEN)
        if data and _ABOUT.match(rest):
            return Spoken("", AMIDST)
        rest, thought = rest[after:], True
    begun = _orphan(rest, tag, thought=thought, data=data)
    if isinstance(begun, str):
        return Spoken("", begun)
    rest = rest[begun:]
    if thought or rest != text or _AROUND.match(text):
        rest = _AROUND.sub("", _AROUND.sub("", rest))
    rest = rest.strip()
    return Spoken(rest, ONLY if text.strip() and not rest else "")


def begins_with_thought(text: str) -> bool:
    """Whether a text begins as a thought does; what a model makes of it cannot be told from a thought of its own.

    >>> begins_with_thought("<think>2 + 2</think>4"), begins_with_thought("Write <think> first.")
    (True, False)
    """
    return _harmony(text, data=True) is not None or _after_thought(text.lstrip(), _TAG) is not None


def _harmony(text: str, *, data: bool) -> Spoken | None:
    """The text of Harmony's one final channel; None where a reply is not written in channels."""
    if _HARMONY.match(text):
        finals = [match["said"].strip() for match in _CHANNEL.finditer(text) if match["name"].lower() == "final"]
        if len(finals) > 1:
            return Spoken("", "the reply holds two final channels")
        if not finals:
            return Spoken("", OPEN)
        return Spoken(finals[0], "" if finals[0] else ONLY)
    finals = _BARE_FINAL.split(text)
    if _BARE_CHANNEL.match(text) or (_BARE_LINE.match(text) and (len(finals) > 1 or not data)):
        if len(finals) == 2:
            return Spoken(finals[1].strip())
        return Spoken("", OPEN) if len(finals) < 2 else Spoken("", AMIDST)
    return None


def _after_thought(text: str, tag: re.Pattern[str]) -> int | None:
    """Where the thought ends that a text begins with; -1 if nowhere, None if it begins with none."""
    for begins, ends in _SPELLED:
        if match := begins.match(text):
            at = text.find(ends, match.end())
            return at + len(ends) if at >= 0 else -1
    start = len(text) - len(text.lstrip())
    match = tag.match(text, start)
    if not match or (first := _mark(match)).closing:
        return None
    if first.empty:
        return first.end
    depth = 0
    for mark in _marks(text, tag, start):
        if mark.kind != first.kind or mark.empty:
            continue
        depth += -1 if mark.closing else 1
        if depth == 0:
            return mark.end
    return -1


def _orphan(text: str, tag: re.Pattern[str], *, thought: bool, data: bool) -> int | str:
    """Where a text begins after its leading thoughts: after the end of one that the prompt began; or why there is none.

    Marks that are words of a sentence are passed over.
    """
    marks = [mark for mark in _marks(text, tag, 0) if not _in_sentence(text, mark, data=data)]
    if not marks:
        return 0
    if len(marks) > 1 or thought or not marks[0].closing:
        return AMIDST if thought or not marks[0].closing else NOT_BEGUN
    before, after = text[: marks[0].start], text[marks[0].end :]
    told = before.rstrip(" \t")
    own_line = not told or told.endswith("\n")
    if data:  # to the letter what templates lead to; a line that shows the mark has no blank line after it
        shows = told.rstrip().endswith((":", "\uff1a"))
        ends = own_line and not shows and bool(re.match(r"[ \t]*\r?\n\s*\n", after))
    else:
        sentence = before.endswith((".", "!", "?", ")", "\u3002"))
        ends = own_line or sentence or bool(re.match(r"[ \t]*(?:\r?\n|\Z)", after))
    return marks[0].end if ends else NOT_BEGUN


def _mark(match: re.Match[str]) -> _Mark:
    """A tag with what it is: its name without the words for beginning and end."""
    name = (match["name"] or match["name2"] or match["name3"]).lower()
    parts = re.split(r"[_.\-\u2581]", name)
    closing = any(match[slash] for slash in ("slash", "slash2", "slash3", "slash4")) or bool(_ENDS & set(parts))
    kind = "_".join(part for part in parts if part not in _PARTS)
    return _Mark(match.start(), match.end(), kind, closing, bool(match["empty"]))


def _marks(text: str, tag: re.Pattern[str], at: int) -> Iterator[_Mark]:
    """All tags from a place on that do not stand in quotes or code."""
    fences = [match.start() for match in re.finditer(r"```|~~~", text)]
    for match in tag.finditer(text, at):
        mark = _mark(match)
        if sum(fence < mark.start for fence in fences[:100]) % 2 == 0 and not _quoted(text, mark):
            yield mark


def _quoted(text: str, mark: _Mark) -> bool:
    before, after = text[max(mark.start - 1, 0) : mark.start], text[mark.end : mark.end + 1]
    line = text[text.rfind("\n", 0, mark.start) + 1 : mark.start]
    if (before, after) in (("\u201c", "\u201d"), ("\u2018", "\u2019"), ("'", "'"), ("\u00ab", "\u00bb")):
        return True
    if before == after and before in ('"', "`") and line.count(before) % 2 == 1:
        return True
    inline, rest = line.replace("```", ""), text[mark.end :].partition("\n")[0].replace("```", "")
    return inline.count("`") % 2 == 1 and "`" in rest


def _in_sentence(text: str, mark: _Mark, *, data: bool) -> bool:
    """Whether a tag stands among the words of a sentence, as a word of it."""
    before, after = text[: mark.start], text[mark.end :]
    if mark.closing and not data:
        return False
    word_before = bool(re.search(r"[^\s.!?:>][ \t(]\Z", before)) or before.endswith("(")
    goes_on = r"[ \t]?[,.;:!?)]|[ \t]\S|[ \t]?[/\-]" if data else r"[ \t]?[,.;:!?)]|[ \t][a-z]|[ \t]?[/\-]"
    return word_before and bool(re.match(goes_on, after))
