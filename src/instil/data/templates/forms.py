"""Templates that are forms with slots: those of the book, of Stanford's Alpaca, and of the usual chat markups.

A form is text with the slots ``{instruction}`` and ``{input}`` (``{system}`` in that for a system message), and may
hold control tokens, written ``{control:NAME}``, which are encoded as such.

Sources: ``alpaca`` is chapter 7.2, listing 7.2 (one preamble); ``alpaca-stanford`` is ``train.py`` of Stanford's
release, which has another preamble where there is an input, and nothing after the header's colon; ``phi3`` is the
right side of figure 7.4; ``chatml`` is OpenAI's markup as SmolLM2 and Qwen use it; ``llama3`` and ``gemma`` are the
markups in Meta's and Google's model cards, with texts as they are (their own templates strip them).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from instil.data.templates.template import Piece, Rendered, Template, all_trained
from instil.errors import DataError, did_you_mean
from instil.records import Example, Turn

if TYPE_CHECKING:
    from instil.settings.options import TrainOn, Turns

_PART = re.compile(r"\{(instruction|input|system)\}|\{control:([^}]*)\}")
_CONTROL = re.compile(r"\{control:([^}]*)\}")
_SLOTS = {"with_input": ["input", "instruction"], "without_input": ["instruction"], "system": ["system"], "header": []}
_OPTIONAL = ("system", "between")  # left out of what is hashed where they are empty
_Kind = Literal["form", "control", "slot"]


@dataclass(frozen=True, slots=True)
class FormTemplate(Template):
    """A form for a question with and without an input, and the token that ends a response.

    ``stop`` names the control token after which the model stops; empty means the tokenizer's own end of text.
    ``header`` is the end of both forms that announces the response. ``system`` is the form of a system message; without
    one it is put before the next question, with a blank line. ``between`` stands between an answer's end and what
    follows.

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
    system: str = ""
    between: str = ""

    def rendered(self, example: Example, train_on: TrainOn = "response", turns: Turns = "all") -> Rendered:
        if train_on == "response_with_header" and not self.header:
            raise DataError(
                f"the template {self.name!r} has no response header to train on; "
                "use data.train_on=response, or a template that has one (alpaca, phi3)"
            )
        if example.tools:
            raise DataError(f"the template {self.name!r} has no form for tools{_ADVICE}")
        told = example.turns
        last = len(told) - 1

        def weight(number: int) -> float:
            return told[number].weight if turns == "all" or number == last else 0.0

        if train_on == "all":
            return Rendered(all_trained(self._pieces(told, lambda number: told[number].weight, last=last)))
        return Rendered(self._pieces(told, weight, last=last, train_header=train_on == "response_with_header"))

    def prompt_pieces(self, example: Example, *, header: bool = True) -> list[Piece]:
        if example.tools:
            raise DataError(f"the template {self.name!r} has no form for tools{_ADVICE}")
        return self._pieces(example.turns[:-1], lambda number: 0.0, header=header)

    def _pieces(
        self,
        turns: Sequence[Turn],
        weight: Callable[[int], float],
        *,
        last: int = -1,
        header: bool = True,
        train_header: bool = False,
    ) -> list[Piece]:
        pieces: list[Piece] = []
        system, asked = "", False  # text that waits for a question; whether a question waits for an answer
        for number, turn in enumerate(turns):
            if turn.role == "assistant" and asked and not (turn.reasoning or turn.tool_calls):
                asked, counts = False, weight(number)
                pieces.append(Piece(turn.content, trained=counts > 0, answer=number == last, weight=counts))
                pieces.append(Piece(self.stop, control=True, trained=counts > 0, weight=counts))
                if self.between and number < len(turns) - 1:
                    pieces.append(Piece(self.between, form=True))
            elif turn.role == "system" and not asked:
                if self.system:
                    pieces += _filled(self.system, {"system": turn.content})
                else:
                    system += f"{turn.content}\n\n"
            elif turn.role == "user" and not asked:
                asked = True
                form = self.with_input if turn.about else self.without_input
                values = {"instruction": system + turn.content, "input": turn.about}
                announced = self.header if form.endswith(self.header) else ""
                announces = header or number < len(turns) - 1
                trained = train_header and weight(number + 1) > 0
                pieces += _filled(form.removesuffix(announced) if announced else form, values)
                if announced and announces:
                    pieces += _filled(announced, values, trained=trained, weight=weight(number + 1) if trained else 1.0)
                system = ""
            else:
                raise DataError(f"the template {self.name!r} has no form for {_said(turn)}{_ADVICE}")
        if system:
            raise DataError(f"the template {self.name!r} has no form for a system message after the last question")
        return pieces

    @property
    def control_tokens(self) -> frozenset[str]:
        named = _CONTROL.findall(self.with_input + self.without_input + self.system)
        return frozenset({*named, self.stop} - {""})

    def content(self) -> dict[str, str]:
        values = asdict(self)
        return {key: value for key, value in values.items() if value or key not in _OPTIONAL}

    def chat_template(self, begin: str = "") -> str:
        """See `Template.chat_template`: all turns as training writes them; other conversations are refused."""
        mark = begin.rstrip()
        space = begin[len(mark) :]  # some vocabularies begin a text with one, unless it has one
        before, after = _named(self.without_input).split("{instruction}")
        stop = json.dumps(self.stop) if self.stop else "eos_token"

        def first(text: str) -> str:
            """What some vocabularies begin a text with, unless it begins so."""
            return (
                f"('' if not state.first or ({text}).startswith({space!r}) else {space!r}) + {text}" if space else text
            )

        question = first(f"{json.dumps(before)} + text + {json.dumps(after)}")
        waits = "{%- set state.system = state.system + message['content'] + '\\n\\n' -%}"
        if self.system:
            opens, closes = _named(self.system).split("{system}")
            said = first(f"{json.dumps(opens)} + message['content'] + {json.dumps(closes)}")
            waits = f"{{{{- {said} -}}}}{{%- set state.first = false -%}}"
        return (
            "{%- set state = namespace(system='', asked=false, first=true) -%}"
            f"{{{{- {json.dumps(mark)} -}}}}"
            "{%- for message in messages -%}"
            "{%- if message['role'] == 'user' and not state.asked -%}"
            "{%- set text = state.system + message['content'] -%}"
            f"{{{{- {question} -}}}}"
            "{%- set state.system = '' -%}{%- set state.asked = true -%}{%- set state.first = false -%}"
            "{%- elif message['role'] == 'assistant' and state.asked"
            " and not message['tool_calls'] and not message['reasoning_content'] -%}"
            f"{{{{- message['content'] + {stop} -}}}}"
            + (
                f"{{%- if not loop.last -%}}{{{{- {json.dumps(self.between)} -}}}}{{%- endif -%}}"
                if self.between
                else ""
            )
            + "{%- set state.asked = false -%}"
            "{%- elif message['role'] == 'system' and not state.asked -%}" + waits + "{%- else -%}"
            f"{{{{- raise_exception({json.dumps(f'the template {self.name} has no form for this message')}) -}}}}"
            "{%- endif -%}{%- endfor -%}"
            f"{{%- if state.system or tools -%}}"
            f"{{{{- raise_exception({json.dumps(f'the template {self.name} has no form for this conversation')}) -}}}}"
            "{%- endif -%}"
        )


_ADVICE = "; use data.template=model if the model's own has one, or leave it out of the rows"


def _said(turn: Turn) -> str:
    """What a turn is that there is no form for."""
    if turn.reasoning:
        return "reasoning"
    if turn.tool_calls:
        return "calls of tools"
    if turn.role == "tool":
        return "a turn of the tool"
    return f"a message of the {turn.role} here: questions and answers take turns"


@functools.lru_cache(maxsize=256)
def _parts(form: str) -> tuple[tuple[_Kind, str], ...]:
    """A form cut into its text, its control tokens and its slots."""
    found: list[tuple[_Kind, str]] = []
    at = 0
    for match in _PART.finditer(form):
        found.append(("form", form[at : match.start()]))
        slot, control = match.groups()
        found.append(("slot", slot) if slot is not None else ("control", control))
        at = match.end()
    found.append(("form", form[at:]))
    return tuple(part for part in found if part[0] != "form" or part[1])


@functools.lru_cache(maxsize=1024)
def _unfilled(form: str, trained: bool, weight: float) -> tuple[Piece | str, ...]:
    """The same as pieces, with the names of slots between them."""
    return tuple(
        text
        if kind == "slot"
        else Piece(text, control=kind == "control", trained=trained, form=kind == "form", weight=weight)
        for kind, text in _parts(form)
    )


def _filled(form: str, values: Mapping[str, str], *, trained: bool = False, weight: float = 1.0) -> list[Piece]:
    """A form with its slots filled, so that "{input}" inside a user's instruction stays as written."""
    return [
        Piece(values[part], trained=trained, weight=weight) if isinstance(part, str) else part
        for part in _unfilled(form, trained, weight)
        if not isinstance(part, str) or values[part]
    ]


def _named(form: str) -> str:
    """A form with its control tokens as text."""
    return _CONTROL.sub(lambda match: match.group(1), form)


_PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_WITH_CONTEXT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


def _chat(start: str, end: str, *, closes: str, roles: Sequence[str]) -> dict[str, str]:
    """The forms of a markup whose messages are ``start ROLE end TEXT closes``."""
    user, assistant = (f"{start}{role}{end}" for role in roles[:2])
    return {
        "with_input": f"{user}{{instruction}}\n{{input}}{closes}{assistant}",
        "without_input": f"{user}{{instruction}}{closes}{assistant}",
        "system": f"{start}{roles[2]}{end}{{system}}{closes}" if len(roles) > 2 else "",
    }


_ROLES = ("user", "assistant", "system")
TEMPLATES = {
    template.name: template
    for template in (
        FormTemplate(
            "alpaca",
            f"{_PREAMBLE}\n\n### Instruction:\n{{instruction}}\n\n### Input:\n{{input}}\n\n### Response:\n",
            f"{_PREAMBLE}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n",
            header="\n\n### Response:\n",
        ),
        FormTemplate(
            "alpaca-stanford",
            f"{_WITH_CONTEXT}\n\n### Instruction:\n{{instruction}}\n\n### Input:\n{{input}}\n\n### Response:",
            f"{_PREAMBLE}\n\n### Instruction:\n{{instruction}}\n\n### Response:",
            header="\n\n### Response:",
        ),
        FormTemplate(
            "phi3",
            "<|user|>\n{instruction}\n{input}\n<|assistant|>\n",
            "<|user|>\n{instruction}\n<|assistant|>\n",
            header="\n<|assistant|>\n",
        ),
        FormTemplate(
            "chatml",
            **_chat("{control:<|im_start|>}", "\n", closes="{control:<|im_end|>}\n", roles=_ROLES),
            stop="<|im_end|>",
            between="\n",
        ),
        FormTemplate(
            "llama3",
            **_chat(
                "{control:<|start_header_id|>}",
                "{control:<|end_header_id|>}\n\n",
                closes="{control:<|eot_id|>}",
                roles=_ROLES,
            ),
            stop="<|eot_id|>",
        ),
        FormTemplate(
            "gemma",
            **_chat("{control:<start_of_turn>}", "\n", closes="{control:<end_of_turn>}\n", roles=("user", "model")),
            stop="<end_of_turn>",
            between="\n",
        ),
        FormTemplate("plain", "{instruction}\n{input}\n", "{instruction}\n"),
    )
}


def template_named(name: str) -> FormTemplate:
    """A template by name.

    Raises:
        DataError: there is no template of that name.
    """
    if name not in TEMPLATES:
        known = ", ".join(TEMPLATES)
        raise DataError(
            f"no template named {name!r}; known: {known}, model (the model's own), or a file (.jinja, .json)"
            + did_you_mean(name, [*TEMPLATES, "model"])
        )
    return TEMPLATES[name]


def form_from(stored: Mapping[str, Any]) -> FormTemplate:
    """The form that ``template.json`` holds; KeyError or TypeError if it holds none."""
    needed = {key: stored[key] for key in ("name", "with_input", "without_input", "stop", "header")}
    more = {key: stored[key] for key in _OPTIONAL if key in stored}
    values = {**needed, **more}
    if not all(isinstance(value, str) for value in values.values()):
        raise TypeError("a form is text")
    for key, wanted in _SLOTS.items():
        found = sorted(text for kind, text in _parts(values.get(key, "")) if kind == "slot")
        if found != (wanted if key != "system" or values.get(key) else []):
            raise TypeError(f"{key} has the slots {found}; wanted {wanted}")
    return FormTemplate(**cast(dict[str, str], values))
