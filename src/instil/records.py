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
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from instil.layouts import Grid, Layout
from instil.machine import sent

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


IGNORED = -100  # torch's cross_entropy skips this target


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


@dataclass(frozen=True, slots=True)
class Known:
    """`Batch.states`, `Batch.trained_tokens` and `Batch.real_tokens` of a batch."""

    states: tuple[Tensor, Tensor]
    trained_tokens: float
    real_tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens to compute, where each one stands, and what is to be predicted from which.

    =============  =====  =========================================================
    field          shape  meaning
    =============  =====  =========================================================
    ids_N          [N]    token ids, flat
    positions_N    [N]    position of each token in its own sequence, from 0
    rows_N         [N]    which row of the batch it belongs to; -1 for padding, 0 for what all rows share
    at_S           [S]    index into N of each supervised prediction
    targets_S      [S]    the id to be predicted there
    weights_S      [S]    how often that prediction counts: the sum of the weights of the rows that make it
    layout         -      which tokens see which (`Grid`, `Tree`: causal within each row)
    examples       [B]    the row numbers of the data set, for messages
    known          -      what was found out before the batch went to a GPU, which would be waited for
    =============  =====  =========================================================

    The head is applied to ``hidden[at_S]`` only, and a loss is ``sum(weights_S * nll_S)`` with
    ``trained_tokens`` as its count, which is a fraction where messages have fractions as weights.
    """

    ids_N: Tensor
    positions_N: Tensor
    rows_N: Tensor
    at_S: Tensor
    targets_S: Tensor
    weights_S: Tensor
    layout: Layout
    examples: tuple[int, ...] = ()
    known: Known | None = None

    def states(self) -> tuple[Tensor, Tensor]:
        """Which tokens predict anything, [U], in order, and which of these each prediction is made from, [S]."""
        return self.known.states if self.known else self.at_S.unique(return_inverse=True)  # type: ignore[no-untyped-call]

    @property
    def trained_tokens(self) -> float:
        """How many predictions the loss sums over, each as often as it counts."""
        if self.known:
            return self.known.trained_tokens
        return float(self.weights_S.double().sum().item())

    @property
    def real_tokens(self) -> int:
        """How many tokens the rows have, without padding; a shared one counts in every row."""
        if self.known:
            return self.known.real_tokens
        return self.layout.tokens_of_rows - int((self.rows_N < 0).sum().item())

    @property
    def inputs(self) -> Tensor:
        """The ids as the book's collate returns them, [B, T] (only of a padded grid)."""
        return self.ids_N.view(self.layout.rows, self._grid.length)

    @property
    def targets(self) -> Tensor:
        """The targets as the book's collate returns them, [B, T], -100 where nothing is predicted."""
        flat = self.ids_N.new_full(self.ids_N.shape, IGNORED)
        flat[self.at_S] = self.targets_S
        return flat.view(self.layout.rows, self._grid.length)

    @property
    def _grid(self) -> Grid:
        if not isinstance(self.layout, Grid):
            raise TypeError("a batch that shares its prefix has no rectangle of ids; make it with collate()")
        return self.layout

    @staticmethod
    def untargeted(ids_N: Tensor, positions_N: Tensor, rows_N: Tensor, layout: Layout) -> Batch:
        """Tokens of which nothing is to be predicted by the loss: prompts, and tokens being generated."""
        none = ids_N.new_empty(0)
        return Batch(ids_N, positions_N, rows_N, none, none, none.float(), layout)

    def to(self, device: Any) -> Batch:
        """The same batch on another device; what hangs on its values is found out before."""
        if self.ids_N.device == device:
            return self
        known = self.known
        if len(self.at_S):
            at_U, row_S = self.states()
            known = Known((sent(at_U, device), sent(row_S, device)), self.trained_tokens, self.real_tokens)
        return Batch(
            sent(self.ids_N, device),
            sent(self.positions_N, device),
            sent(self.rows_N, device),
            sent(self.at_S, device),
            sent(self.targets_S, device),
            sent(self.weights_S, device),
            self.layout,
            self.examples,
            known,
        )

    def tensors(self) -> list[Tensor]:
        """All that it consists of."""
        found = [getattr(self, field.name) for field in fields(self)]
        parts = [one for one in found if hasattr(one, "record_stream")]
        return [*parts, *(self.known.states if self.known else ())]


@dataclass(frozen=True, slots=True)
class PairBatch(Batch):
    """A batch of preference pairs; the rows are the first pair's chosen and rejected, the second's, and so on.

    Every prediction is made once, however many rows it belongs to. The weights count those of chosen rows that are
    trained on, for a loss that is a likelihood; what is scored of each row is listed here:

    ============  =====  ==============================================================================
    field         shape  meaning
    ============  =====  ==============================================================================
    prediction_M  [M]    index into S of each scored id of each row, row after row
    row_M         [M]    the row it belongs to, 0 to 2 * pairs - 1
    reference_M   [M]    its log-probability under the reference model; zeros where that is not known
    others        -      the same prompts with answers of other rows, or None
    ============  =====  ==============================================================================
    """

    prediction_M: Tensor = None  # type: ignore[assignment]  # fields after those with defaults need one
    row_M: Tensor = None  # type: ignore[assignment]
    reference_M: Tensor = None  # type: ignore[assignment]
    others: PairBatch | None = None

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return self.layout.rows // 2

    def to(self, device: Any) -> PairBatch:
        """The same batch on another device."""
        plain = Batch.to(self, device)
        if isinstance(plain, PairBatch):
            return plain
        return PairBatch(
            **{field.name: getattr(plain, field.name) for field in fields(plain)},
            prediction_M=sent(self.prediction_M, device),
            row_M=sent(self.row_M, device),
            reference_M=sent(self.reference_M, device),
            others=self.others.to(device) if self.others else None,
        )

    def tensors(self) -> list[Tensor]:
        return [*Batch.tensors(self), *(self.others.tensors() if self.others else ())]


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
