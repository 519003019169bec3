"""What a chatty model says before it answers: "Here is the rewritten response:".

Such a line is no part of the answer. A preface *of rewriting* speaks of the rewriting itself ("the revised output",
"with a more polite tone"), which nobody had asked the answering model for: it can be cut off. Any other one ("Here are
three vegetables:") may well belong to the answer, and is told of only.
"""

from __future__ import annotations

import re

LONGEST = 160  # characters of a preface
_OPENERS = (
    r"(?:sure|certainly|of course|absolutely|okay|ok|i'd be (?:happy|glad|delighted) to|i would be (?:happy|glad) to)"
)
_HERE = re.compile(
    rf"(?:{_OPENERS}\b[^\n:]{{0,80}}?[.!,:]?\s+)?"
    r"(?:here(?:'s|\s+is|\s+are|\s+you go)|below (?:is|are)|this is)\b[^\n:]*:[*_]*[ \t]*\n\s*",
    re.IGNORECASE,
)
_OF_REWRITING = re.compile(
    r"\b(?:rewrit\w*|rewrote|rephras\w*|reword\w*|revised|paraphras\w*|"
    r"(?:more |less |very )?(?:polite|impolite|rude|courteous|respectful)(?:ly)?\s+(?:\w+\s+)?"
    r"(?:tone|way|version|form|manner|response|output|answer|style|text))\b",
    re.IGNORECASE,
)
_LINE = re.compile(r"[^\n:]*:[*_]*[ \t]*\n\s*")
_INLINE = re.compile(r"[^\n:]*:[*_]*\s*")
_QUOTES = (('"', '"'), ("\u201c", "\u201d"), ("'", "'"), ("```\n", "```"))


def preface_of(text: str) -> str:
    """The preface that an answer begins with, as it stands there; empty where it begins with the answer.

    >>> preface_of("Here are two colours:\\n\\n1. Red\\n2. Blue")
    'Here are two colours:\\n\\n'
    >>> preface_of("Here is the rewritten text: It is 4."), preface_of("Here is a dog."), preface_of("Note: 4")
    ('Here is the rewritten text: ', '', '')
    """
    start = len(text) - len(text.lstrip())
    match = _HERE.match(text, start)
    if match and len(match[0]) <= LONGEST:
        return text[: match.end()]
    return rewriting_preface(text)


def rewriting_preface(text: str) -> str:
    """The preface if it speaks of the rewriting; empty otherwise.

    >>> rewriting_preface("Here's the revised output:\\n\\nIt is 4."), rewriting_preface("Here are two:\\n\\n1. Red")
    ("Here's the revised output:\\n\\n", '')
    """
    start = len(text) - len(text.lstrip())
    for form in (_LINE, _INLINE):
        match = form.match(text, start)
        if match and len(match[0]) <= LONGEST and text[match.end() :].strip() and _speaks_of_it(match[0]):
            return text[: match.end()]
    return ""


def without_preface(text: str) -> str:
    """An answer without a preface of rewriting and without the quotes that came with it; stripped.

    >>> without_preface('Here is the rewritten output:\\n\\n"It is 4."'), without_preface('"Yes" is it.')
    ('It is 4.', '"Yes" is it.')
    """
    preface = rewriting_preface(text)
    rest = text[len(preface) :].strip()
    if preface:
        rest = unquoted(rest)
    return rest


def unquoted(text: str) -> str:
    """A text without the quotes around the whole of it.

    >>> unquoted('"It is 4."'), unquoted('"A" and "B"')
    ('It is 4.', '"A" and "B"')
    """
    for left, right in _QUOTES:
        inner = text[len(left) : len(text) - len(right)]
        if len(text) > len(left + right) and text.startswith(left) and text.endswith(right) and right not in inner:
            return inner.strip()
    return text


def _speaks_of_it(line: str) -> bool:
    """Whether a line that ends in a colon introduces a rewriting, and is not the answer to such a task."""
    begins = re.match(
        rf"\s*[\"'*]*(?:{_OPENERS}\b|here\b|below\b|this is\b|rewritten\b|revised\b)", line, re.IGNORECASE
    )
    return bool(begins and _OF_REWRITING.search(line))
