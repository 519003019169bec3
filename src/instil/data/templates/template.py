"""What a template is: a row as pieces, each of which says what it is and how often it counts.

The pieces of a row are its text in order. What the user wrote is text and can never become a control token:
``<|endoftext|>`` in a row is eleven characters, not an end.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from instil.records import Example

if TYPE_CHECKING:
    from instil.settings.options import TrainOn, Turns


class Piece(NamedTuple):
    """A part of a row: plain text, or one control token, such as ``<|im_start|>``, never made from a user's text.

    ``trained`` says whether its ids are targets, ``weight`` how often each of them counts then, and ``answer`` that
    here begins the last answer: the text before it has the ids that it has without it. ``form`` is text of the
    template's own, in which the names of a model's control tokens are these. An empty control token stands for the
    tokenizer's own end of text.
    """

    text: str
    control: bool = False
    trained: bool = False
    answer: bool = False
    form: bool = False
    weight: float = 1.0


class Rendered(NamedTuple):
    """A row as pieces, and how many of its answers are read only, though they were to be trained on.

    A template that writes an answer otherwise once another message follows it has no form in which it could be learnt.
    """

    pieces: list[Piece]
    left_out: int = 0


class Template(ABC):
    """The form in which rows are put to the model: one object from data to export.

    Attributes:
        name: what it is called.
        stop: the control token after which the model stops; empty is the tokenizer's own end of text.
        header: the end of a prompt that announces the response, if it can be trained on.
    """

    name: str
    stop: str
    header: str
    writes_begin: ClassVar[bool] = False
    """Whether it writes by itself what every text begins with, where it wants it."""

    @abstractmethod
    def rendered(self, example: Example, train_on: TrainOn = "response", turns: Turns = "all") -> Rendered:
        """A whole row: every answer in its turn, with the token that ends it.

        Raises:
            DataError: it has no form for something in the row, or lacks the header that is to be trained.
        """

    @abstractmethod
    def prompt_pieces(self, example: Example, *, header: bool = True) -> list[Piece]:
        """What comes before the answer: all turns of the example but the last.

        Args:
            example: what the model sees.
            header: whether the prompt ends with the response header; the chapter lets the model write it.
        """

    @abstractmethod
    def chat_template(self, begin: str = "") -> str:
        """The same as a chat template in Jinja, as `transformers` and llama.cpp read it.

        Args:
            begin: what every text begins with, which a chat template has to write by itself.
        """

    @abstractmethod
    def content(self) -> Mapping[str, Any]:
        """All that shapes the text, as ``template.json`` has it."""

    def preface(self, *, header: bool) -> str:
        """What the model writes before its answer, where the prompt ends with or without the header."""
        return "" if header else self.header

    @property
    def other_chat_templates(self) -> Mapping[str, str]:
        """Chat templates for other uses by their names, such as ``tool_use``."""
        return {}

    @property
    def control_tokens(self) -> frozenset[str]:
        """The names of the control tokens that it is known to write."""
        return frozenset({self.stop} - {""})

    def pieces(self, example: Example, train_on: TrainOn = "response", turns: Turns = "all") -> list[Piece]:
        """The pieces of a whole row (`rendered`)."""
        return self.rendered(example, train_on, turns).pieces

    def text_pieces(self, example: Example) -> list[Piece]:
        """A text without a question: as it is, with the token that ends it, and all of it is learnt."""
        learnt = example.weight > 0
        return [
            Piece(example.output, trained=learnt, answer=True, weight=example.weight),
            Piece(self.stop, control=True, trained=learnt, weight=example.weight),
        ]

    def prompt(self, example: Example, *, header: bool = True) -> str:
        """The prompt as one string, for people to read."""
        return "".join(piece.text for piece in self.prompt_pieces(example, header=header))

    def full_text(self, example: Example) -> str:
        """Prompt and response, for people to read."""
        return self.prompt(example) + example.output

    @property
    def hash(self) -> str:
        """The first 16 hex digits of the SHA-256 of everything that shapes the text."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """The form of ``template.json``."""
        return {**self.content(), "hash": self.hash}


def all_trained(pieces: list[Piece]) -> list[Piece]:
    """The same with every piece trained on but those that count nothing."""
    return [piece._replace(trained=piece.weight > 0) for piece in pieces]
