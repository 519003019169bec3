"""Rows as a model is asked without being tuned: with an instruction written for it, or with examples before them.

Examples are the training rows whose prompts are nearest to the question (Liu et al. 2022, "What Makes Good In-Context
Examples for GPT-3?", kNN prompting), by the likeness that finds near-duplicates (`instil.data.near_duplicates`); the
nearest stands last, right before the question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from instil.data.near_duplicates import Seen, prompt_text
from instil.records import Example, Turn


def instructed(rows: Sequence[Example], text: str) -> list[Example]:
    """Rows with a system message; one that is there already comes after it."""
    found = []
    for row in rows:
        first, *rest = row.history or (None,)
        if first is not None and first.role == "system":
            found.append(replace(row, history=(replace(first, content=f"{text}\n\n{first.content}"), *rest)))
        else:
            found.append(replace(row, history=(Turn("system", text), *row.history)))
    return found


def in_the_question(rows: Sequence[Example], text: str) -> list[Example]:
    """Rows with the instruction at the head of the question, for forms that have no system message."""
    return [replace(row, instruction=f"{text}\n\n{row.instruction}") for row in rows]


class Nearest:
    """Training rows to be shown as examples, by their likeness to a question.

    Args:
        train: rows of one question and one answer; others are no examples.
    """

    def __init__(self, train: Sequence[Example]) -> None:
        self.rows = [_as_example(row) for row in train if _is_example(row)]
        self._seen = Seen([prompt_text(row) for row in self.rows])

    def before(
        self, rows: Sequence[Example], count: int, tokens: Callable[[Example], int], room: int
    ) -> tuple[list[Example], int]:
        """Rows with so many of the nearest examples before their question, as turns of the conversation.

        Args:
            rows: the questions.
            count: examples of each, at most.
            tokens: how long the prompt of a row is.
            room: tokens that a prompt may have; the farthest examples are left out of one that has more.

        Returns:
            the rows, and how many of them have fewer examples.
        """
        found, fewer = [], 0
        nearest = self._seen.nearest_few([prompt_text(row) for row in rows], count)
        for row, places in zip(rows, nearest, strict=True):
            shown = list(places)
            while shown and tokens(made := self._with(row, shown)) > room:
                shown.pop()
            fewer += len(shown) < min(count, len(self.rows))
            found.append(made if shown else row)
        return found, fewer

    def _with(self, row: Example, places: Sequence[int]) -> Example:
        system = [turn for turn in row.history if turn.role == "system"]
        others = [turn for turn in row.history if turn.role != "system"]
        shown = [turn for at in reversed(places) for turn in self.rows[at].turns]
        return replace(row, history=(*system, *shown, *others))


def _is_example(row: Example) -> bool:
    """Whether it is one question with an answer, whatever the system says before."""
    bare = not row.steps and not row.tools and not row.reasoning and not row.tool_calls
    return bool(bare and row.instruction and row.output and all(turn.role == "system" for turn in row.history))


def _as_example(row: Example) -> Example:
    return replace(row, history=(), weight=1.0)
