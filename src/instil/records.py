"""What crosses from one room to another.

A JSON object becomes an `Example` (or a `Pair` of answers to one), a template and a tokenizer make it
`Encoded`, the collate makes a `Batch` of several, the decoder answers with a `Completion`, and a judge gives
that a `Verdict`. What was written to a file comes back by `record_of`, which says what is wrong with another shape.

Shape suffixes: B rows of a batch · T positions of a row · N tokens to compute (all rows, flat) ·
S supervised predictions · K ids that may stand at a place.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray


Role = Literal["system", "user", "assistant", "tool"]


def visible_from(text: str) -> int:
    """Where the first character is that a reader sees: no white space, control or format character; else the length.

    >>> visible_from(" \\n x"), visible_from("\\u200b")
    (3, 1)
    """
    seen = (at for at, char in enumerate(text) if not char.isspace() and unicodedata.category(char) not in ("Cc", "Cf"))
    return next(seen, len(text))


def blank(text: str) -> bool:
    """Whether a text shows nothing: empty, or white space and invisible characters only."""
    return not text or (not "!" <= text[0] <= "~" and visible_from(text) == len(text))  # mostly the first one shows


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation; ``input`` is what an instruction is about, where a row keeps the two apart.

    Of an assistant's message: ``weight`` is how often its tokens count in the loss (0: it is only read), ``reasoning``
    the thoughts before it, and ``tool_calls`` the calls of tools it makes, a JSON list as text, empty for none. Of a
    tool's: its ``name``, and the ``tool_call_id`` of the call that it answers.
    """

    role: Role
    content: str
    input: str = ""
    weight: float = 1.0
    reasoning: str = ""
    tool_calls: str = ""
    name: str = ""
    tool_call_id: str = ""

    @property
    def about(self) -> str:
        """The input as it is, or nothing where it is blank: a section of spaces says nothing."""
        return "" if blank(self.input) else self.input

    def as_json(self) -> dict[str, Any]:
        """The message in the form of OpenAI's interface, with ``reasoning_content`` and ``weight`` if it has them."""
        content = f"{self.content}\n{self.about}" if self.about else self.content
        message: dict[str, Any] = {"role": self.role, "content": content}
        for key, value in (
            ("reasoning_content", self.reasoning),
            ("name", self.name),
            ("tool_call_id", self.tool_call_id),
        ):
            if value:
                message[key] = value
        if self.tool_calls:
            message["tool_calls"] = json.loads(self.tool_calls)
        if self.weight != 1.0:
            message["weight"] = self.weight
        return message


@dataclass(frozen=True, slots=True)
class Example:
    """One row of the user's data: the chapter's "entry", or a conversation of which the last answer is the plain case.

    ``row`` is the position in the file (from 0), by which every message names it. ``instruction`` is the last message
    of the user (empty where there is only a text) and ``output`` the answer. ``history`` holds the turns before
    ``instruction``: a system message, earlier questions and answers; ``steps`` those between it and the answer: calls
    of tools and what came of them. ``tools`` describes the tools that may be called, a JSON list as text.
    ``reasoning``, ``tool_calls`` and ``weight`` are the answer's, as `Turn` has them.

    >>> [(turn.role, turn.content, turn.input) for turn in Example("Add them.", "5", "2 and 3").turns]
    [('user', 'Add them.', '2 and 3'), ('assistant', '5', '')]
    """

    instruction: str
    output: str = ""
    input: str = ""
    task: str = ""
    row: int = -1
    history: tuple[Turn, ...] = ()
    steps: tuple[Turn, ...] = ()
    tools: str = ""
    reasoning: str = ""
    tool_calls: str = ""
    weight: float = 1.0

    @property
    def about(self) -> str:
        """What the instruction is about: the input as it is, or nothing where it is blank."""
        return "" if blank(self.input) else self.input

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The whole conversation; an Alpaca row is one of two turns. The last one is the answer, empty if unknown."""
        answer = Turn(
            "assistant", self.output, weight=self.weight, reasoning=self.reasoning, tool_calls=self.tool_calls
        )
        return (*self.history, Turn("user", self.instruction, self.input), *self.steps, answer)

    @property
    def text_only(self) -> bool:
        """Whether it is a text without a question (a row with ``text``), all of which is learnt."""
        return not self.instruction and not self.history and not self.steps

    @property
    def plain(self) -> bool:
        """Whether instruction, input and output say all there is."""
        more = self.history or self.steps or self.tools or self.reasoning or self.tool_calls
        return not more and self.weight == 1.0

    def as_json(self) -> dict[str, Any]:
        """The row in Alpaca form, as the book writes it; of a conversation all messages, too, and its tools.

        >>> row = Example("And 3 and 4?", "7", history=(Turn("user", "Add 2 and 3."), Turn("assistant", "5")))
        >>> row.as_json()["messages"][1]
        {'role': 'assistant', 'content': '5'}
        """
        if self.text_only and self.plain:
            return {"text": self.output}
        row: dict[str, Any] = {"instruction": self.instruction, "input": self.input, "output": self.output}
        if not self.plain:
            row["messages"] = [turn.as_json() for turn in self.turns]
        if self.tools:
            row["tools"] = json.loads(self.tools)
        return row


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one example, of which the first is preferred: a row of preference data.

    ``example.output`` may be empty; it takes no part in preference tuning.
    """

    example: Example
    chosen: str
    rejected: str

    @property
    def row(self) -> int:
        """The position in the file, as the example's."""
        return self.example.row

    def as_json(self) -> dict[str, Any]:
        """The row in the form of the chapter's ``instruction-data-with-preference.json``."""
        return {**self.example.as_json(), "chosen": self.chosen, "rejected": self.rejected}


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as token ids, and for each id whether it is a training target.

    The mask is set by position when the row is encoded; nothing later searches for ids.
    ``prompt_length`` is the number of ids that come before the response. ``weights`` says how often each target counts
    in the loss, where not all of them count once; it is empty else. ``straddling`` is the number of ids that are not
    trained on because they lie across the border of what is, and ``left_out`` that of earlier answers that are only
    read because their template writes them otherwise where they are the last. ``soft`` has for each target what might
    stand there instead of the one id.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    prompt_length: int = 0
    row: int = -1
    weights: tuple[float, ...] = ()
    straddling: int = 0
    left_out: int = 0
    soft: SoftTargets | None = None

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.trained) or len(self.weights) not in (0, len(self.ids)):
            raise ValueError(
                f"{len(self.ids)} ids but {len(self.trained)} mask entries and {len(self.weights)} weights"
            )

    @property
    def counts(self) -> tuple[float, ...] | tuple[bool, ...]:
        """How often each id counts as a target: 0 or no where it is none."""
        return self.weights or self.trained

    def targets_at(self, position: int) -> Iterable[tuple[int, float]]:
        """What is to be predicted at a position, where there is a target, each with how often it counts.

        >>> list(Encoded((5, 6, 7), (False, True, True)).targets_at(1))
        [(6, True)]
        """
        if self.soft is None:
            return ((self.ids[position], self.counts[position]),)
        ids_K, shares_K = self.soft.ids_TK[position - 1], self.soft.shares_TK[position - 1]
        return zip(ids_K.tolist(), (shares_K * self.counts[position]).tolist(), strict=True)


@dataclass(frozen=True, slots=True, eq=False)
class SoftTargets:
    """A teacher's likeliest ids at each place of a row but its first, and their shares (Hinton et al., 2015).

    Attributes:
        ids_TK: [T, K].
        shares_TK: the same shape; those of a place add up to one.
    """

    ids_TK: NDArray[np.int32]
    shares_TK: NDArray[np.float32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SoftTargets) and self._bytes() == other._bytes()

    def __hash__(self) -> int:
        return hash(self._bytes())

    def _bytes(self) -> tuple[tuple[int, ...], bytes, bytes]:
        return self.ids_TK.shape, self.ids_TK.tobytes(), self.shares_TK.tobytes()


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Two rows that begin with the same prompt, and which of their ids are scored.

    ``chosen_scored`` and ``rejected_scored`` are spans of positions whose log-probabilities belong to the answer;
    ``reference`` holds these log-probabilities under the reference model, one for each scored id, where they are
    known. ``other`` is the same prompt with the answers of another row (KTO asks how likely those are).
    """

    chosen: Encoded
    rejected: Encoded
    chosen_scored: range
    rejected_scored: range
    reference: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    other: EncodedPair | None = None

    @property
    def row(self) -> int:
        """The pair's number in its file."""
        return self.chosen.row

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the longer answer's row, for who wants to know lengths."""
        return max(self.chosen.ids, self.rejected.ids, key=len)


Finish = Literal["stop", "length", "no_room", "cancelled"]


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer: its text, its ids without the end token, and why it ended.

    ``finish`` is ``"stop"`` when the model gave its end token, ``"length"`` when the limit cut it, and
    ``"no_room"`` when the prompt alone fills the model's context, so that there is no answer.
    """

    text: str
    ids: tuple[int, ...] = ()
    finish: Finish = "stop"
    prompt_tokens: int = 0
    row: int = -1


NO_ROOM = "the prompt left no room for an answer in the model's context"  # why such a row has no score


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said of one answer: a score of 0 to 100, or None with a reason.

    ``said`` is the judge's reply as it came, where it wrote one.
    """

    row: int
    judge: str
    score: float | None
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    said: str = ""
