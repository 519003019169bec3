"""How a reply ended, and what stands in it instead of a text: each named for what it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

SHOWN = 120  # characters of what a model says
TEXTS = ("text", "output_text")  # types of parts that are what a model says
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thoughts", "reasoning_details")

_FAILED = re.compile(
    r"err|fail|abort|cancel|time.?out|resource|interrupt|kill|incomplete|overload|unload|load\b|malform|unexpected"
    r"|too_many|halt|network|repetit|language|\Aother\Z"
)
_FILTERED = re.compile(r"filter|safety|block|prohibit|policy|sensitive|recit|refus|guard|moderat|spii|violat")
_CUT = re.compile(r"length|max|limit|trunc|exhaust|exceed|window")
ENDINGS = ("finish_reason", "native_finish_reason", "finish_details", "stop_reason", "done_reason")


def ending(*reasons: Any) -> str:
    """What a server's ``finish_reason`` means: ``whole``, ``cut``, ``filtered`` or ``failed``; of several the worst.

    >>> ending("stop"), ending("length"), ending("content_filter"), ending("error"), ending(None)
    ('whole', 'cut', 'filtered', 'failed', 'whole')
    >>> ending("stop", {"type": "max_tokens"})
    'cut'
    """
    texts = [text.lower() for reason in reasons for text in _texts(reason)]
    for form, meaning in ((_FILTERED, "filtered"), (_FAILED, "failed"), (_CUT, "cut")):
        if any(form.search(text) for text in texts):
            return meaning
    return "whole"


def endings_of(choice: Mapping[str, Any]) -> list[Any]:
    """All that a choice says of how it ended; where it has a reason, a ``stop_reason`` is a text that it stopped at.

    >>> endings_of({"finish_reason": "stop", "stop_reason": "limit:"}), endings_of({"stop_reason": "max_tokens"})
    (['stop'], ['max_tokens'])
    """
    said = {name: choice[name] for name in ENDINGS if choice.get(name) is not None}
    if len(said) > 1:
        said.pop("stop_reason", None)
    return list(said.values())


def _texts(reason: Any) -> list[str]:
    if isinstance(reason, Mapping):
        return [text for value in reason.values() for text in _texts(value)]
    return [reason] if isinstance(reason, str) else []


def text_of(content: Any) -> str:
    """A message's text: itself, or its parts of type text; thoughts, images and calls of tools are none.

    >>> text_of([{"type": "reasoning", "text": "20"}, {"type": "text", "text": "85"}])
    '85'
    """
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") in TEXTS]
        content = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def instead_of_text(message: Mapping[str, Any]) -> str:
    """What a message without text holds, as the reason why it has none; empty if it holds nothing.

    >>> instead_of_text({"content": None, "refusal": "I will not."})
    'the model refuses: I will not.'
    >>> instead_of_text({"content": "", "reasoning_content": "20 or 85?"})
    'the reply holds a thought and no answer'
    """
    content = message.get("content")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    refusals = [message.get("refusal"), *(part.get("refusal") for part in parts)]
    if said := next((one for one in refusals if isinstance(one, str) and one.strip()), ""):
        return f"the model refuses: {_short(said)}"
    calls = message.get("tool_calls") or message.get("function_call")
    if calls or any("tool" in str(part.get("type")) or "function" in str(part.get("type")) for part in parts):
        return f"the reply is a call of a tool{_names(calls)}, not a text"
    if any(_told(message.get(name)) for name in THOUGHTS) or any(_is_thought(part) for part in parts):
        return "the reply holds a thought and no answer"
    if isinstance(content, list) and len(parts) < len(content):
        return f"the content of the reply is {_short(repr(content))}, no text"
    if parts:
        kinds = ", ".join(dict.fromkeys(str(part.get("type", "no type")) for part in parts))
        return f"the reply has parts of type {_short(kinds)}, and no text"
    if content is not None and not isinstance(content, str | list):
        return f"the content of the reply is {_short(repr(content))}, no text"
    return ""


def refusal_of(message: Mapping[str, Any]) -> str:
    """The refusal in a message, if the server marks it as one, whatever stands beside it."""
    said = message.get("refusal")
    return f"the model refuses: {_short(said)}" if isinstance(said, str) and said.strip() else ""


def _told(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(value)


def _is_thought(part: Mapping[str, Any]) -> bool:
    return bool(re.search(r"reason|think|thought", str(part.get("type"))))


def _names(calls: Any) -> str:
    every: Iterable[Any] = calls if isinstance(calls, list) else [calls]
    functions = [one.get("function", one) for one in every if isinstance(one, dict)]
    names = [str(one["name"]) for one in functions if isinstance(one, dict) and one.get("name")]
    return f" ({_short(', '.join(names))})" if names else ""


def _short(text: str) -> str:
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line[:SHOWN] + ("..." if len(line) > SHOWN else "")
