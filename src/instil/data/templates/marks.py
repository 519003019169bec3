"""What a model's chat template says of its tokens: which of them are marks between turns, and which ends an answer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instil.data.templates.program import program
from instil.errors import DataError

ASKED, ANSWERED = "q7f3a question", "z91c an answer"


@dataclass(frozen=True, slots=True)
class Marks:
    """``end`` is what the template writes after an answer, empty if nothing; ``turn`` is all that only it writes."""

    end: str = ""
    turn: frozenset[str] = frozenset()


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
    values = {"bos_token": "", "eos_token": "", "tools": None, "documents": None, **names}
    length = sum(len(str(message)) for message in messages)
    try:
        return program(template).render(length, messages=messages, add_generation_prompt=prompt, **values)
    except DataError:
        return None
