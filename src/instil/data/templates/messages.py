"""Turns as a chat template sees them: dictionaries in the form of OpenAI's interface; their texts know their origin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from instil.data.templates.tracked import Origin, Tracked
from instil.records import Turn


def texts_of(turns: Sequence[Turn]) -> list[str]:
    """The texts of turns as a template sees them: an input stands after its instruction."""
    return [text_of(turn) for turn in turns]


def text_of(turn: Turn) -> str:
    """That of one."""
    return f"{turn.content}\n{turn.about}" if turn.about else turn.content


def message_of(turn: Turn, number: int | None, texts_of_calls: bool) -> dict[str, Any]:
    """A turn as a template sees it; with a number its texts know that they are of this message."""

    def of(value: Any, field: str) -> Any:
        return value if number is None else with_origin(value, (number, field))

    message: dict[str, Any] = {"role": turn.role, "content": of(text_of(turn), "content")}
    if turn.reasoning:
        message["reasoning_content"] = message["thinking"] = of(turn.reasoning, "reasoning")
    if turn.tool_calls:
        message["tool_calls"] = of(_calls(turn.tool_calls, texts_of_calls), "tool_calls")
    for key, value in (("name", turn.name), ("tool_call_id", turn.tool_call_id)):
        if value:
            message[key] = of(value, key)
    return message


def _calls(stored: str, as_text: bool) -> Any:
    """Calls of tools, whose arguments are objects, or text."""
    calls = json.loads(stored)
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or "arguments" not in function:
            continue
        arguments = function["arguments"]
        if as_text and not isinstance(arguments, str):
            function["arguments"] = json.dumps(arguments, ensure_ascii=False)
        elif not as_text and isinstance(arguments, str):
            try:
                parsed = json.loads(arguments)
            except ValueError:
                continue
            function["arguments"] = parsed if isinstance(parsed, dict) else arguments
    return calls


def with_origin(value: Any, origin: Origin) -> Any:
    """The same with an origin for every text in it, keys included."""
    if isinstance(value, str):
        return Tracked.of(value, origin)
    if isinstance(value, dict):
        return {Tracked.of(key, origin): with_origin(held, origin) for key, held in value.items()}
    if isinstance(value, list):
        return [with_origin(held, origin) for held in value]
    return value
