"""Texts of a row: what a field must hold, and why it cannot be used."""

from __future__ import annotations

import json
import re
from typing import Any

from instil.files import json_kind

LARGEST_TEXT = 4_000_000  # characters of one field
TURN_KEYS = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})  # of a message
PRINTED = re.compile(r"\s*\[\s*\{\s*'(role|content|from|value)'\s*:")
ABSENT = object()  # for `text_problem`: the row has no such key


class Unusable(ValueError):
    """Why a row cannot be used."""


def text_problem(value: Any) -> str | None:
    """Why a field that must hold text cannot be used, or None."""
    if value is ABSENT:
        return "is missing"
    if not isinstance(value, str):
        return f"is {json_kind(value)}; wanted text"
    if not value.strip():
        return "is empty"
    if len(value) > LARGEST_TEXT:
        return f"has {len(value):,} characters; at most {LARGEST_TEXT:,} are read"
    if "\x00" in value:
        return "holds a NUL character"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return "holds half of a surrogate pair (broken Unicode)"
    return None


def optional_text_problem(value: Any) -> str | None:
    """The same for a field that may be absent or empty."""
    if value is ABSENT or value is None or value == "":
        return None
    problem = text_problem(value)
    return None if problem == "is empty" else problem


def optional_text(value: Any, name: str) -> str:
    """A text that may be absent.

    Raises:
        Unusable: it is something else.
    """
    if problem := optional_text_problem(value):
        raise Unusable(f"{name} {problem}")
    return value or ""


def from_json(value: Any, name: str) -> Any:
    """What a text holds as JSON, as tables have it that know no lists; anything else as it is.

    Raises:
        Unusable: the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_refused)
    except RecursionError:
        raise Unusable(f"{name} is nested too deeply") from None
    except ValueError:
        raise Unusable(f"{name} is a text that is not JSON") from None


def messages_in(value: Any, name: str) -> list[Any] | None:
    """The messages that a text holds as JSON, as tables have them that know no lists; None if it is another text.

    >>> messages_in('[{"role": "user", "content": "Hi."}]', "prompt")
    [{'role': 'user', 'content': 'Hi.'}]

    Raises:
        Unusable: it holds them as Python prints them, which is no JSON.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return None
    if PRINTED.match(value):
        raise Unusable(f"{name} is messages as Python prints them; wanted JSON (json.dumps)")
    try:
        found = json.loads(value, parse_constant=_refused)
    except (ValueError, RecursionError):
        return None
    messages = found and all(isinstance(one, dict) and any(keys <= one.keys() for keys in TURN_KEYS) for one in found)
    return found if messages else None


def yes_or_no(value: Any) -> bool | None:
    """Whether a label says true or false, as tables have it, too; None if neither.

    >>> yes_or_no("False"), yes_or_no(1), yes_or_no("1.0"), yes_or_no("maybe")
    (False, True, True, None)
    """
    words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    return words.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None


def _refused(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def as_json_text(value: Any, name: str) -> str:
    """A value of JSON as text, its keys in the order they came in.

    Raises:
        Unusable: it cannot be written as JSON text.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise Unusable(f"{name} holds what is not JSON") from None
    if problem := text_problem(text):
        raise Unusable(f"{name} {problem}")
    return text
