"""A conversation with a model, and what can be done with it: taken back, tried again, kept as a row for training.

The terminal is elsewhere (`instil.cli.chat`); here is what is said, by whom, and what it becomes.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

from instil.assistant.assistant import Assistant
from instil.assistant.conversation import conversation_of
from instil.assistant.feedback import PAIRS, ROWS, add_row, kept_row, pair_row
from instil.errors import SettingsError, UserError
from instil.settings.options import GenerateOptions
from instil.settings.resolve import parsed_value

WARM = 0.8  # temperature of another try, where answers are always the likeliest


@dataclass
class Side:
    """One of the models that answer, with what it has said."""

    name: str
    assistant: Assistant
    said: list[str] = field(default_factory=list)


@dataclass
class Conversation:
    """What was asked, and what each side answered; the first side is the one that is kept.

    ``choice`` holds two answers to the last question of which one can be said to be better: of both sides, or of one
    side in two tries.
    """

    sides: list[Side]
    options: GenerateOptions
    folder: Path
    system: str = ""
    asked: list[str] = field(default_factory=list)
    choice: tuple[str, str] | None = None
    tries: int = 0

    def ask(self, text: str) -> None:
        """The user's next message."""
        self.asked.append(text)
        self.choice, self.tries = None, 0

    def messages(self, side: Side) -> list[dict[str, str]]:
        """The conversation so far, as one side knows it; a question that it answered with nothing is left out."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for number, question in enumerate(self.asked):
            if number < len(side.said) and not side.said[number]:
                continue
            found.append({"role": "user", "content": question})
            if number < len(side.said):
                found.append({"role": "assistant", "content": side.said[number]})
        return found

    def answer(self, side: Side) -> Generator[str, None, None]:
        """What a side answers to the last message, in pieces; leaving early keeps what was said until then.

        Raises:
            DataError: the conversation cannot be put to it, or leaves no room.
        """
        said = ""
        try:
            for piece in side.assistant.stream_to(conversation_of(self.messages(side)), self._options()):
                said += piece
                yield piece
        except GeneratorExit:
            self._said(side, said)
            raise
        self._said(side, said)

    def _said(self, side: Side, said: str) -> None:
        side.said.append(said)
        if len(self.sides) == 2 and all(len(one.said) == len(self.asked) for one in self.sides):
            self.choice = (self.sides[0].said[-1], self.sides[1].said[-1])

    def _options(self) -> GenerateOptions:
        if not self.tries:
            return self.options
        warm = self.options.temperature or WARM
        return self.options.changed(temperature=warm, seed=(self.options.seed + self.tries) % 2**32)

    def retry(self) -> list[str]:
        """Take the last answers back to be made again; what they were.

        Raises:
            UserError: nothing was asked yet.
        """
        if not self.asked:
            raise UserError("nothing was asked yet")
        before = [side.said.pop() for side in self.sides if len(side.said) == len(self.asked)]
        self.tries += 1
        return before

    def tried_again(self, before: list[str]) -> None:
        """After another try of a single side: that and the one before are the choice."""
        if len(self.sides) == 1 and before and len(self.sides[0].said) == len(self.asked):
            self.choice = (before[0], self.sides[0].said[-1])

    def undo(self) -> str:
        """Take the last question back, with its answers; the question.

        Raises:
            UserError: nothing was asked yet.
        """
        if not self.asked:
            raise UserError("nothing was asked yet")
        for side in self.sides:
            del side.said[len(self.asked) - 1 :]
        self.choice = None
        return self.asked.pop()

    def clear(self) -> None:
        """Begin anew; the system message stays."""
        self.asked.clear()
        self.choice = None
        for side in self.sides:
            side.said.clear()

    def set(self, name: str, value: str) -> None:
        """Change a setting of generation (``temperature``, ``max_new_tokens``, ...).

        Raises:
            SettingsError: it is not known, or the value cannot be used.
        """
        bare = name.removeprefix("generate.")
        if bare not in GenerateOptions.model_fields:
            known = ", ".join(GenerateOptions.model_fields)
            raise SettingsError(f"no setting {name!r}; known: {known}")
        self.options = self.options.changed(**{bare: parsed_value(value)})

    def keep(self) -> Path:
        """Write the conversation up to the last answer of the first side to a file of rows for training; the file.

        Raises:
            UserError: there is no answer to keep, or the file cannot be written.
        """
        side = self.sides[0]
        if not self.asked or len(side.said) < len(self.asked) or not side.said[-1]:
            raise UserError("there is no answer to keep")
        return add_row(self.folder / ROWS, kept_row(self.messages(side)))

    def better(self, which: int) -> Path:
        """Write the two answers that can be chosen between to a file of preference pairs; the file.

        Args:
            which: the number of the better one, 1 or 2. It stays in the conversation.

        Raises:
            UserError: there are no two answers, they are the same, or the file cannot be written.
        """
        if self.choice is None:
            raise UserError("there are no two answers to choose between; /versus shows the base's, /retry tries again")
        if which not in (1, 2):
            raise UserError(f"there is no answer {which}; wanted 1 or 2")
        chosen, rejected = self.choice if which == 1 else self.choice[::-1]
        side = self.sides[0]
        prompt = self.messages(replace(side, said=side.said[: len(self.asked) - 1]))
        file = add_row(self.folder / PAIRS, pair_row(prompt, chosen, rejected))
        for one in self.sides:  # goes on from the better one
            one.said[len(self.asked) - 1 :] = [chosen]
        return file
