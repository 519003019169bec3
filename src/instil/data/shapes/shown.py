"""What a row asks, as one text for somebody who is to read it: a judge, or a model that rewrites."""

from __future__ import annotations

from instil.records import Example

SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def asked_text(example: Example) -> str:
    """Instruction and input; of a conversation all that was said before the answer, each with its speaker.

    >>> from instil.records import Turn
    >>> print(asked_text(Example("And 3?", "4", history=(Turn("user", "1 + 1?"), Turn("assistant", "2")))))
    User: 1 + 1?
    <BLANKLINE>
    Assistant: 2
    <BLANKLINE>
    User: And 3?
    """
    if not example.history and not example.steps:
        return _text(example.instruction, example.about)
    return "\n\n".join(
        f"{SPEAKERS[turn.role]}: {_text(turn.content, turn.about)}{turn.tool_calls}" for turn in example.turns[:-1]
    )


def _text(instruction: str, about: str) -> str:
    return f"{instruction}\n\n{about}" if about else instruction
