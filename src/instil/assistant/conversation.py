"""A conversation as OpenAI's interface has it, made the question that a template puts to a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instil.data.shapes.messages import conversation, example_of
from instil.data.shapes.texts import Unusable
from instil.errors import DataError
from instil.records import Example


def conversation_of(messages: Sequence[Mapping[str, Any]]) -> Example:
    """The messages so far, of which the last is the user's, or what came of a tool. They are read as those of rows are.

    Raises:
        DataError: there is none, one cannot be used, or the last asks nothing; the message names it.

    >>> conversation_of([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]).instruction
    'Hi?'
    """
    try:
        turns = conversation(list(messages), "messages", empty_answers=True).turns
        if turns[-1].role not in ("user", "tool"):
            raise Unusable(f"the last of messages is the {turns[-1].role}'s; wanted one of the user")
        return example_of(turns, "messages", need_output=False)[0]
    except Unusable as error:
        raise DataError(str(error)) from error
