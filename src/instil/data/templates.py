"""The form in which an example is put to the model: one object from data to export.

A template is text with two slots, ``{instruction}`` and ``{input}``, and may hold control tokens
(`Control`), which are encoded as such. What the user wrote goes into the slots as plain text and can
never become a control token: ``<|endoftext|>`` in a row is eleven characters, not an end.

Sources: ``alpaca`` is chapter 7.2, listing 7.2 (one preamble, unlike the two of Stanford's release);
``phi3`` is the right side of figure 7.4; ``chatml`` is OpenAI's markup as SmolLM2 uses it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instil.errors import DataError, did_you_mean
from instil.files import read_json
from instil.records import Example

_SLOT = re.compile(r"\{(instruction|input)\}")
_CONTROL = re.compile(r"\{control:([^}]*)\}")


class Control(str):
    """A control token of the template, such as ``<|im_start|>``; never made from a user's text."""

    __slots__ = ()


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

    def pieces(self, example: Example, *, header: bool = True) -> list[str]:
        """The prompt in pieces; a `Control` is one token, any other string is plain text.

        Args:
            example: its instruction and input fill the slots.
            header: whether the prompt ends with the response header; the chapter lets the model write it.
        """
        form = self.with_input if example.input else self.without_input
        if not header:
            form = form.removesuffix(self.header)
        values = {"instruction": example.instruction, "input": example.input}
        pieces: list[str] = []
        for index, part in enumerate(_CONTROL.split(form)):
            if index % 2:
                pieces.append(Control(part))
            elif part:
                # One pass over the form, so that "{input}" inside a user's instruction stays as written.
                pieces.append(_SLOT.sub(lambda slot: values[slot.group(1)], part))
        return pieces

    def prompt(self, example: Example) -> str:
        """The prompt as one string, for people to read."""
        return "".join(self.pieces(example))

    def full_text(self, example: Example) -> str:
        """Prompt and response, for people to read."""
        return self.prompt(example) + example.output

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

    def chat_template(self) -> str:
        """The same prompt as a Jinja chat template for ``transformers``.

        A system message is put before the user's text, separated by a blank line, because these forms
        have one slot for both. One turn is what the model was tuned on, so only the last user message
        is rendered.
        """
        form = _CONTROL.sub(lambda match: match.group(1), self.without_input)
        before, after = form.split("{instruction}")
        return (
            "{%- set users = messages | selectattr('role', 'equalto', 'user') | list -%}"
            "{%- set system = messages | selectattr('role', 'equalto', 'system') | list -%}"
            f"{{{{- {json.dumps(before)} -}}}}"
            "{%- if system -%}{{- system[0]['content'] + '\\n\\n' -}}{%- endif -%}"
            "{{- users[-1]['content'] -}}"
            f"{{{{- {json.dumps(after)} -}}}}"
        )


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
