"""The form in which an example is put to the model: one object from data to export.

A template is text with two slots, ``{instruction}`` and ``{input}``, and may hold control tokens, which are encoded as
such. What the user wrote goes into the slots as plain text and can
never become a control token: ``<|endoftext|>`` in a row is eleven characters, not an end.

Sources: ``alpaca`` is chapter 7.2, listing 7.2 (one preamble, unlike the two of Stanford's release);
``phi3`` is the right side of figure 7.4; ``chatml`` is OpenAI's markup as SmolLM2 uses it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from instil.errors import DataError, did_you_mean
from instil.files import read_json
from instil.records import Example, Turn
from instil.settings.options import TrainOn

_SLOT = re.compile(r"\{(instruction|input)\}")
_CONTROL = re.compile(r"\{control:([^}]*)\}")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a row: plain text, or one control token, such as ``<|im_start|>``, never made from a user's text.

    ``trained`` says whether its ids are targets, and ``answer`` that it is what the model is to write: the text before
    it has the ids that it has without it. ``form`` is text of the template's own, in which the names of a model's
    control tokens are these. An empty control token stands for the tokenizer's own end of text.
    """

    text: str
    control: bool = False
    trained: bool = False
    answer: bool = False
    form: bool = False


@dataclass(frozen=True, slots=True)
class Template:
    """The prompt with and without an input, and the token that ends a response.

    ``stop`` names the control token after which the model stops; empty means the tokenizer's own end
    of text. ``header`` is the end of both prompts that announces the response. In the two prompts a
    control token is written ``{control:NAME}``.

    >>> print(template_named("phi3").prompt(Example("Name a colour.")), end="")
    <|user|>
    Name a colour.
    <|assistant|>
    """

    name: str
    with_input: str
    without_input: str
    stop: str = ""
    header: str = ""

    def pieces(self, example: Example, train_on: TrainOn = "response") -> list[Piece]:
        """A whole row: every question in this form, every answer with the token that ends it.

        Raises:
            DataError: this template has no form for a turn of some role, or lacks the header that is to be trained.
        """
        if train_on == "response_with_header" and not self.header:
            raise DataError(
                f"the template {self.name!r} has no response header to train on; "
                "use data.train_on=response, or a template that has one (alpaca, phi3)"
            )
        turns = example.turns[-1:] if example.text_only else example.turns  # a text has no question to stand after
        pieces = self._rendered(turns, train_header=train_on == "response_with_header")
        return [replace(piece, trained=True) for piece in pieces] if train_on == "all" else pieces

    def prompt_pieces(self, example: Example, *, header: bool = True) -> list[Piece]:
        """What comes before the answer.

        Args:
            example: its turns but the last are what the model sees.
            header: whether the prompt ends with the response header; the chapter lets the model write it.
        """
        return self._rendered(example.turns[:-1], header=header)

    def _rendered(self, turns: Sequence[Turn], *, header: bool = True, train_header: bool = False) -> list[Piece]:
        pieces: list[Piece] = []
        system = ""
        for turn in turns:
            if turn.role == "assistant":
                pieces += [Piece(turn.content, trained=True, answer=True), Piece(self.stop, control=True, trained=True)]
            elif turn.role == "system":
                system += f"{turn.content}\n\n"
            elif turn.role == "user":
                form = self.with_input if turn.about else self.without_input
                values = {"instruction": system + turn.content, "input": turn.about}
                announced = self.header if form.endswith(self.header) else ""
                with_header = header or turn is not turns[-1]
                pieces += _filled(form.removesuffix(announced), values)
                pieces += _filled(announced if with_header else "", values, trained=train_header)
                system = ""
            else:
                raise DataError(f"the template {self.name!r} has no form for a turn of the {turn.role}")
        return pieces

    def prompt(self, example: Example, *, header: bool = True) -> str:
        """The prompt as one string, for people to read."""
        return "".join(piece.text for piece in self.prompt_pieces(example, header=header))

    def full_text(self, example: Example) -> str:
        """Prompt and response, for people to read."""
        return self.prompt(example) + example.output

    @property
    def control_tokens(self) -> frozenset[str]:
        """The names of the control tokens that it writes."""
        named = _CONTROL.findall(self.with_input + self.without_input)
        return frozenset({*named, self.stop} - {""})

    @property
    def hash(self) -> str:
        """The first 16 hex digits of the SHA-256 of everything that shapes the text."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, str]:
        """The form of ``template.json``."""
        return {**asdict(self), "hash": self.hash}

    @staticmethod
    def from_json(stored: Any, where: str) -> Template:
        """Read ``template.json``; its hash must match its text.

        Raises:
            DataError: it is not a template, or was edited without its hash.
        """
        fields = ("name", "with_input", "without_input", "stop", "header")
        try:
            template = Template(**{key: str(stored[key]) for key in fields})
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{where}: not a template (wanted name, with_input, without_input, stop, header)"
            ) from error
        if stored.get("hash") != template.hash:
            raise DataError(f"{where}: its text has hash {template.hash} but it says {stored.get('hash')}")
        return template

    def chat_template(self, begin: str = "") -> str:
        """The same prompt as a Jinja chat template for ``transformers``.

        Args:
            begin: what every text begins with, which a chat template has to write by itself.

        A system message is put before the user's text, separated by a blank line, because these forms
        have one slot for both. One turn is what the model was tuned on, so only the last user message
        is rendered.
        """
        form = _CONTROL.sub(lambda match: match.group(1), self.without_input)
        before, after = form.split("{instruction}")
        mark = begin.rstrip()
        space = begin[len(mark) :]  # some vocabularies begin a text with one, unless it has one
        first = "(system[0]['content'] if system else users[-1]['content'])"
        joint = f"{{{{- '' if {first}.startswith({space!r}) else {space!r} -}}}}" if space and not before else ""
        before = mark + (space if before and not before.startswith(space or "\0") else "") + before
        return (
            "{%- set users = messages | selectattr('role', 'equalto', 'user') | list -%}"
            "{%- set system = messages | selectattr('role', 'equalto', 'system') | list -%}"
            f"{{{{- {json.dumps(before)} -}}}}{joint}"
            "{%- if system -%}{{- system[0]['content'] + '\\n\\n' -}}{%- endif -%}"
            "{{- users[-1]['content'] -}}"
            f"{{{{- {json.dumps(after)} -}}}}"
        )


def _filled(form: str, values: Mapping[str, str], *, trained: bool = False) -> list[Piece]:
    """A form with its slots filled, in one pass, so that "{input}" inside a user's instruction stays as written."""
    pieces: list[Piece] = []
    for index, part in enumerate(_CONTROL.split(form)):
        if index % 2:
            pieces.append(Piece(part, control=True, trained=trained))
            continue
        for number, text in enumerate(_SLOT.split(part)):
            filled = Piece(values[text], trained=trained) if number % 2 else Piece(text, trained=trained, form=True)
            pieces += [filled] if filled.text else []
    return pieces


_PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

TEMPLATES = {
    template.name: template
    for template in (
        Template(
            "alpaca",
            f"{_PREAMBLE}\n\n### Instruction:\n{{instruction}}\n\n### Input:\n{{input}}\n\n### Response:\n",
            f"{_PREAMBLE}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n",
            header="\n\n### Response:\n",
        ),
        Template(
            "phi3",
            "<|user|>\n{instruction}\n{input}\n<|assistant|>\n",
            "<|user|>\n{instruction}\n<|assistant|>\n",
            header="\n<|assistant|>\n",
        ),
        Template(
            "chatml",
            "{control:<|im_start|>}user\n{instruction}\n{input}{control:<|im_end|>}\n{control:<|im_start|>}assistant\n",
            "{control:<|im_start|>}user\n{instruction}{control:<|im_end|>}\n{control:<|im_start|>}assistant\n",
            stop="<|im_end|>",
        ),
        Template("plain", "{instruction}\n{input}\n", "{instruction}\n"),
    )
}


def template_named(name: str) -> Template:
    """A template by name.

    Raises:
        DataError: there is no template of that name.
    """
    if name not in TEMPLATES:
        raise DataError(f"no template named {name!r}; known: {', '.join(TEMPLATES)}" + did_you_mean(name, TEMPLATES))
    return TEMPLATES[name]


TEMPLATE_FILE = "template.json"


def read_template(file: Path) -> Template:
    """A ``template.json``.

    Raises:
        DataError: it is absent or damaged.
    """
    return Template.from_json(read_json(file), str(file))
