"""JSON as models write it: with a comma too many, single quotes, Python's words, comments, or keys without quotes.

What is read is never more than what stands there: an object that does not end is no object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

DEEPEST = 40
FENCED = re.compile(r"\A(?:```|~~~)[ \t]*[A-Za-z0-9_+-]*[ \t]*\r?\n?(.*?)\r?\n?[ \t]*(?:```|~~~)\Z", re.DOTALL)

Pairs = Callable[[list[tuple[str, Any]]], Any]

_BLANK = re.compile(r"(?:\s+|//[^\n]*|#[^\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_SINGLE = re.compile(r"'((?:[^'\\]|\\.|'(?!\s*(?:[,:}\]]|\Z)))*)'", re.DOTALL)
_CURLY = re.compile('\u201c([^\u201c\u201d"]*)\u201d')
_KEY = re.compile(r"[A-Za-z_]\w*(?=\s*:)")
_NUMBER = re.compile(r"-?[0-9]{1,300}(?:\.[0-9]{1,300})?(?:[eE][+-]?[0-9]{1,3})?")
_BARE = re.compile(r"[^\s,:{}\[\]\"'`][^,{}\[\]\"'`\n]{0,80}")
_WORDS = {"true": True, "false": False, "null": None, "none": None}


class NotJson(ValueError):
    """A text is no JSON, however loosely read; ``ended`` says that it ended before its JSON did."""

    def __init__(self, why: str, *, ended: bool = False) -> None:
        super().__init__(why)
        self.ended = ended


def read_json(text: str, at: int = 0, pairs: Pairs = dict) -> tuple[Any, int]:
    """The value that begins at a place, and where it ends; a word without quotes is a string.

    Args:
        text: what holds it.
        at: where it begins.
        pairs: makes a value of an object's keys and values; keys may be there twice.

    Raises:
        NotJson: there is none.

    >>> read_json("{'a': True, b: 1,} // so", 0)
    ({'a': True, 'b': 1}, 18)
    """
    try:
        return json.JSONDecoder(strict=False, object_pairs_hook=pairs).raw_decode(text, at)
    except (ValueError, RecursionError):
        return _value(text, at, pairs, 0)


def whole_json(text: str, pairs: Pairs = dict) -> Any:
    """The value that a whole text is, bare or in a fence; every string of it stands in quotes, so that it is whole.

    Raises:
        NotJson: it is none, or there is more beside it.
    """
    inner = text.strip()
    if fenced := FENCED.match(inner):
        inner = fenced[1].strip()
    start = _skipped(inner, 0)
    try:
        found, end = json.JSONDecoder(strict=False, object_pairs_hook=pairs).raw_decode(inner, start)
    except (ValueError, RecursionError):
        found, end = _value(inner, start, pairs, 0, words=False)
    if _skipped(inner, end) < len(inner):
        raise NotJson("there is more than one value")
    return found


def _value(text: str, at: int, pairs: Pairs, depth: int, *, words: bool = True) -> tuple[Any, int]:
    at = _skipped(text, at)
    if at >= len(text):
        raise NotJson("it is still open", ended=True)
    if depth > DEEPEST:
        raise NotJson("it is nested too deep")
    if text[at] == "{":
        return _object(text, at + 1, pairs, depth, words=words)
    if text[at] == "[":
        return _array(text, at + 1, pairs, depth, words=words)
    if text[at] in "\"'\u201c":
        return _string(text, at)
    match = _BARE.match(text, at)
    if not match:
        raise NotJson(f"{text[at]!r} is no value")
    said = re.split(r"\s*(?://|/\*|#)", match[0])[0].rstrip()
    end = at + len(said)
    if _NUMBER.fullmatch(said):
        return (int(said) if re.fullmatch(r"-?[0-9]+", said) else float(said)), end
    if said.lower() in _WORDS:
        return _WORDS[said.lower()], end
    if not words:
        raise NotJson("a text without quotes")
    return said, end


def _object(text: str, at: int, pairs: Pairs, depth: int, *, words: bool = True) -> tuple[Any, int]:
    items: list[tuple[str, Any]] = []
    while True:
        at = _skipped(text, at)
        if text[at : at + 1] == "}":
            return pairs(items), at + 1
        if at >= len(text):
            raise NotJson("it is still open", ended=True)
        if bare := _KEY.match(text, at):
            key, at = bare[0], bare.end()
        else:
            key, at = _string(text, at)
        at = _skipped(text, at)
        if text[at : at + 1] != ":":
            raise NotJson("a key without a value", ended=at >= len(text))
        value, at = _value(text, at + 1, pairs, depth + 1, words=words)
        items.append((key, value))
        at = _skipped(text, at)
        if text[at : at + 1] == ",":
            at += 1
        elif text[at : at + 1] != "}":
            raise NotJson("no comma between two values", ended=at >= len(text))


def _array(text: str, at: int, pairs: Pairs, depth: int, *, words: bool = True) -> tuple[Any, int]:
    items: list[Any] = []
    while True:
        at = _skipped(text, at)
        if text[at : at + 1] == "]":
            return items, at + 1
        value, at = _value(text, at, pairs, depth + 1, words=words)
        items.append(value)
        at = _skipped(text, at)
        if text[at : at + 1] == ",":
            at += 1
        elif text[at : at + 1] != "]":
            raise NotJson("no comma between two values", ended=at >= len(text))


def _string(text: str, at: int) -> tuple[str, int]:
    """A string; within single quotes an apostrophe is no end."""
    if text[at : at + 1] not in ('"', "'", "\u201c"):
        raise NotJson("no key where one was wanted")
    form = {'"': _STRING, "'": _SINGLE, "\u201c": _CURLY}[text[at]]
    match = form.match(text, at)
    if not match:
        raise NotJson("a text is still open", ended=True)
    inner = match[1]
    if text[at] == "'":
        inner = inner.replace("\\'", "'").replace('"', '\\"').replace('\\\\"', '\\"')
    try:
        return str(json.loads(f'"{inner}"', strict=False)), match.end()
    except ValueError as error:
        raise NotJson("a text with an unknown escape") from error


def _skipped(text: str, at: int) -> int:
    """The place after blanks and comments."""
    match = _BLANK.match(text, at)
    return match.end() if match else at
