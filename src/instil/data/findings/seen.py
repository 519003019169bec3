"""A row as those see it who look for what is wrong with its texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instil.data.splits import Part
from instil.records import Example


@dataclass(frozen=True, slots=True)
class Seen:
    """One row: the texts that a model reads, and those that it learns from.

    ``answers`` are the wanted answer, or both answers of a preference pair, and before them the earlier answers of a
    conversation.
    """

    example: Example
    part: Part
    prompt: str
    answers: tuple[str, ...]

    @property
    def row(self) -> int:
        """The number in the file."""
        return self.example.row

    @property
    def answer(self) -> str:
        """The wanted answer."""
        return self.example.output


def seen(example: Example, part: Part, answers: Sequence[str] = ()) -> Seen:
    """A row with its texts.

    Args:
        example: the row.
        part: where it went.
        answers: its answers, where they are not the example's own.
    """
    last = tuple(answers) or (example.output,)
    if example.plain:
        prompt = f"{example.instruction}\n{example.input}" if example.input else example.instruction
        return Seen(example, part, prompt, last)
    turns = example.turns[:-1]
    read = [text for turn in turns if turn.role != "assistant" for text in (turn.content, turn.input) if text]
    said = [text for turn in turns if turn.role == "assistant" for text in (turn.reasoning, turn.content) if text]
    return Seen(example, part, "\n".join(read), (*said, *filter(None, [example.reasoning]), *last))
