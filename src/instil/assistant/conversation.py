"""A conversation as OpenAI's interface has it, made the question that a template puts to a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instil.errors import DataError
from instil.records import Example, Role, Turn, blank

ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def conversation_of(messages: Sequence[Mapping[str, Any]]) -> Example:
    """The messages so far, of which the last is the user's.

    Args:
        messages: each with ``role`` (system, developer, user, assistant) and ``content``: a text, or a list of parts
            of text.

    Raises:
        DataError: there is none, one cannot be used, or the last is not the user's; the message names it.

    >>> conversation_of([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]).instruction
    'Hi?'
    """
    if not messages:
        raise DataError("there are no messages; wanted at least one of the user")
    turns = [_turn(message, number) for number, message in enumerate(messages)]
    if turns[-1].role != "user":
        raise DataError(f"the last message is of the {turns[-1].role}; wanted one of the user")
    if blank(turns[-1].content):
        raise DataError("the last message says nothing")
    return Example(turns[-1].content, history=tuple(turns[:-1]))


def _turn(message: Mapping[str, Any], number: int) -> Turn:
    if not isinstance(message, Mapping):
        raise DataError(f"message {number} is no object; wanted role and content")
    role = message.get("role")
    if role not in ROLES:
        raise DataError(f"message {number}: role is {role!r}; wanted one of {', '.join(ROLES)}")
    return Turn(ROLES[str(role)], _text(message.get("content"), number))


def _text(content: Any, number: int) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [_part(part) for part in parts]
    if None in texts:
        raise DataError(f"message {number}: its content is not text, which is all that this model reads")
    return "".join(text for text in texts if text is not None)


def _part(part: Any) -> str | None:
    """The text of a part of a message; None where it is something else."""
    if not isinstance(part, Mapping) or part.get("type") not in ("text", "input_text"):
        return None
    text = part.get("text")
    return text if isinstance(text, str) else None
