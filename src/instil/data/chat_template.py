"""The chat template that a model's folder carries, as far as it says which tokens are marks between turns.

A template is a program in Jinja that `transformers` runs in a sandbox; so it is here.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instil.files import json_object_or_empty

ASKED, ANSWERED = "q7f3a question", "z91c an answer"
LONGEST = 1_000_000  # bytes of a template


@dataclass(frozen=True, slots=True)
class Marks:
    """``end`` is what the template writes after an answer, empty if nothing; ``turn`` is all that only it writes."""

    end: str = ""
    turn: frozenset[str] = frozenset()


def stored_template(folder: Path, config: Mapping[str, Any]) -> str:
    """The chat template of a folder, from wherever its version of `transformers` keeps it; empty if there is none."""
    path = folder / "chat_template.jinja"
    if path.is_file() and path.stat().st_size < LONGEST:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""
    for values in (config, json_object_or_empty(folder / "chat_template.json")):
        found = values.get("chat_template")
        named = found if isinstance(found, list) else [{"name": "default", "template": found}]  # or several by name
        for one in named:
            if isinstance(one, dict) and one.get("name") == "default" and isinstance(one.get("template"), str):
                return str(one["template"])
    return ""


def marks_of(template: str, names: Mapping[str, str], added: Sequence[str]) -> Marks:
    """The added tokens that a template writes around questions and answers.

    Tags that a model is to write itself, such as ``<think>`` with ``</think>``, are none of them.
    """
    if not template or not added:
        return Marks()
    anywhere = re.compile("|".join(re.escape(token) for token in sorted(added, key=len, reverse=True)))
    tags = {token for token in added if token.startswith("</") or f"</{token[1:]}" in added}
    for system, answerer in itertools.product((False, True), ("assistant", "model")):
        first = [{"role": "system", "content": "s20e a rule"}] * system
        asked = [*first, {"role": "user", "content": ASKED}]
        whole = rendered(template, [*asked, {"role": answerer, "content": ANSWERED}], names)
        place = re.search(re.escape(ANSWERED), whole or "", re.IGNORECASE)
        if whole is not None and place:
            after = anywhere.match(whole[place.end() :].lstrip())
            prompt = rendered(template, asked, names, prompt=True) or ""
            turn = {*anywhere.findall(whole), *anywhere.findall(prompt)} - tags
            end = after.group() if after else ""
            return Marks(end, frozenset(turn | {end} - {""}))
    return Marks(turn=frozenset(anywhere.findall(template)) - tags)  # those that stand in it, if it cannot be rendered


def rendered(
    template: str, messages: Sequence[Mapping[str, Any]], names: Mapping[str, str], *, prompt: bool = False
) -> str | None:
    """What a template makes of messages (``prompt``: as far as an answer begins); None if it cannot."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` tells trainers what an answer is; the text is the same without it."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(reason: str) -> None:
        raise ValueError(reason)

    try:
        place = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        place.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        place.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
        values = {"bos_token": "", "eos_token": "", "tools": None, "documents": None, **names}
        return place.from_string(template).render(messages=messages, add_generation_prompt=prompt, **values)
    except Exception:  # a template is a program of someone else's: whatever it raises, it says nothing
        return None
