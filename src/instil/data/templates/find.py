"""A template by what the user calls it: a name, ``model`` for the model's own, or a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from instil.data.templates.chat import DEFAULT, ChatTemplate, chat_from
from instil.data.templates.forms import TEMPLATES, form_from, template_named
from instil.data.templates.stored import stored_templates, templates_in_gguf, templates_said
from instil.data.templates.template import Template
from instil.errors import DataError
from instil.files import json_object_or_empty, read_json
from instil.records import Example, Turn

TEMPLATE_FILE = "template.json"
OWN = "model"
BOOKS = "alpaca"
PROBE = Turn("user", "q7f3a question"), Turn("assistant", "z91c an answer")
THINKING = "enable_thinking"
CALL = '[{"type": "function", "id": "call00001", "function": {"name": "look", "arguments": {"at": "x"}}}]'


class Marks(Protocol):
    """What is asked of a tokenizer here."""

    eos: str
    names: Mapping[str, str]

    def marks_in(self, text: str) -> list[tuple[str, bool]]:
        """A template's text cut into plain text and the names of control tokens (True)."""


def find_template(asked: str, model: Path, tokenizer: Marks) -> Template:
    """A template by name, the model's own (``model``), or that of a file (``.jinja``, ``.json``).

    Args:
        asked: what it is called.
        model: the folder or file of the model.
        tokenizer: of the model.

    Raises:
        DataError: there is none, or it cannot be used.
    """
    if asked in TEMPLATES:
        return TEMPLATES[asked]
    if asked == OWN:
        return _own(model, tokenizer)
    path = Path(asked)
    if path.suffix not in (".jinja", ".jinja2", ".j2", ".json"):
        return template_named(asked)  # which says that there is none
    if not path.is_file():
        raise DataError(f"{path}: no such file; wanted a chat template in Jinja, or a template.json")
    if path.suffix == ".json":
        stored = read_json(path)
        if not isinstance(stored, dict) or "chat_template" not in stored:
            return template_from(stored, str(path))
        return _made(path.stem, templates_said(stored), tokenizer, str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return _made(path.stem, {DEFAULT: text}, tokenizer, str(path))


def usual_template(model: Path, tokenizer: Marks, preferred: str = "") -> tuple[Template, list[str]]:
    """The template of a model for which none is asked: its own where it carries one, else the book's.

    Args:
        model: the folder or file of the model.
        tokenizer: of the model.
        preferred: what is laid down for the model instead.

    Returns:
        the template, and why it is not the model's own where that cannot be used.
    """
    if preferred:
        return find_template(preferred, model, tokenizer), []
    if DEFAULT not in own_templates(model):
        return TEMPLATES[BOOKS], []
    try:
        return _own(model, tokenizer), []
    except DataError as error:
        return TEMPLATES[BOOKS], [f"rows are put to the model in the form {BOOKS}, since {error}"]


def own_templates(model: Path) -> dict[str, str]:
    """All chat templates that a model's folder or file carries, by their names."""
    if model.is_file():
        return {} if model.suffix == ".pth" else templates_in_gguf(model)
    return stored_templates(model, json_object_or_empty(model / "tokenizer_config.json"))


def _own(model: Path, tokenizer: Marks) -> ChatTemplate:
    found = own_templates(model)
    if DEFAULT not in found:
        raise DataError(
            f"{model}: this model carries no chat template; take one by name with data.template: "
            f"{', '.join(TEMPLATES)}, or a file (.jinja)"
        )
    return _made(OWN, found, tokenizer, f"{model}: its chat template")


def _made(name: str, sources: Mapping[str, str], tokenizer: Marks, where: str) -> ChatTemplate:
    """A template with what it writes around an answer.

    Raises:
        DataError: it cannot render a question with its answer.
    """
    if DEFAULT not in sources:
        raise DataError(f"{where}: it holds no chat template")
    variables = {key: value for key, value in tokenizer.names.items() if value} | {"eos_token": tokenizer.eos}
    template = ChatTemplate(name, tuple(sorted(sources.items())), tuple(sorted(variables.items())))
    try:
        after, written = template.around(PROBE)
    except DataError as error:
        # Some ask for thoughts, and write an answer without any otherwise than they ask for it.
        template = replace(template, variables=tuple(sorted([*template.variables, (THINKING, False)])))
        try:
            after, written = template.around(PROBE)
        except DataError:
            raise DataError(f"{where} cannot be used: {error}") from error
    stop = next((text for text, control in tokenizer.marks_in(after) if control), "")
    if not stop and after.strip():
        raise DataError(
            f"{where} cannot be used: it ends answers with {after.strip()[:40]!r}, which is no control token of this "
            "model, so that they would have no end; write {{ eos_token }} there, or take another template"
        )
    made = replace(template, stop=stop, written=written)
    other = replace(made, texts_of_calls=True)
    return other if not _takes_calls(made) and _takes_calls(other) else made


def _takes_calls(template: ChatTemplate) -> bool:
    """Whether a template can write calls of tools, with arguments as it is given them."""
    try:
        template.rendered(Example(PROBE[0].content, tool_calls=CALL))
    except DataError:
        return False
    return True


def template_from(stored: Any, where: str) -> Template:
    """What ``template.json`` holds; its hash must match its text.

    Raises:
        DataError: it is not a template, or was edited without its hash.
    """
    try:
        template: Template = chat_from(stored) if stored.get("kind") == "jinja" else form_from(stored)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where}: not a template (wanted name, with_input with {{instruction}} and {{input}}, without_input with "
            "{instruction}, stop, header; or a chat template)"
        ) from error
    if stored.get("hash") != template.hash:
        raise DataError(f"{where}: its text has hash {template.hash} but it says {stored.get('hash')}")
    return template


def read_template(file: Path) -> Template:
    """A ``template.json``.

    Raises:
        DataError: it is absent or damaged.
    """
    return template_from(read_json(file), str(file))
