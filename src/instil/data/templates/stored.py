"""Chat templates where models keep them: in a folder, as several versions of `transformers` do, or in a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instil.data.templates.chat import DEFAULT
from instil.errors import UserError
from instil.files import json_object_or_empty
from instil.gguf_header import read_gguf

LONGEST = 1_000_000  # bytes of a file
MORE = "additional_chat_templates"
_IN_GGUF = "tokenizer.chat_template"


def stored_template(folder: Path, config: Mapping[str, Any]) -> str:
    """The chat template of a folder; empty if there is none."""
    return stored_templates(folder, config).get(DEFAULT, "")


def stored_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """All chat templates of a folder by their names; the usual one is ``default``."""
    found = templates_said(json_object_or_empty(folder / "chat_template.json")) | templates_said(config)
    for path in [folder / "chat_template.jinja", *sorted((folder / MORE).glob("*.jinja"))]:
        if text := _text(path):
            found[DEFAULT if path.parent == folder else path.stem] = text
    return found


def templates_in_gguf(path: Path) -> dict[str, str]:
    """All chat templates of a GGUF file; none if it cannot be read."""
    try:
        values = read_gguf(path).values
    except (UserError, OSError):
        return {}
    found = {
        key.removeprefix(_IN_GGUF).removeprefix("."): text for key, text in values.items() if key.startswith(_IN_GGUF)
    }
    return {name or DEFAULT: text for name, text in found.items() if isinstance(text, str) and name != "s"}


def templates_said(config: Mapping[str, Any]) -> dict[str, str]:
    """What ``chat_template`` says in a configuration: one, or several by name."""
    found = config.get("chat_template")
    named = found if isinstance(found, list) else [{"name": DEFAULT, "template": found}]
    return {
        str(one["name"]): one["template"]
        for one in named
        if isinstance(one, dict) and "name" in one and isinstance(one.get("template"), str)
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() and path.stat().st_size < LONGEST else ""
    except (OSError, ValueError):
        return ""
