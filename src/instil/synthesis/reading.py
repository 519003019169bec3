"""What a model wrote, read as parts of a row or refused with a reason: never guessed, never cut to fit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from instil.ask.loose_json import NotJson, whole_json
from instil.data.words import normal, words
from instil.records import blank
from instil.synthesis.prompts import is_text

SHORTEST_TASK = 12  # bytes of an instruction
LONGEST_TASK = 2_000  # characters
LONGEST_ANSWER = 20_000
MARKS = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?s>|\[/?INST\]|</?(?:start|end)_of_turn>")
NO_INPUT = re.compile(r"\W*(?:no ?input|none|n/?a|null|empty|not applicable)\W*", re.IGNORECASE)
_UNSEEN = re.compile(
    r"\battach(?:ed|ment)\b"
    r"|\b(?:this|these|the|given|provided|following|above|below)\s+(?:\w+\s+){0,2}"
    r"(?:image|picture|photo|photograph|screenshot|video|audio|recording|graph|chart|diagram|flowchart|map|link|url"
    r"|website|file)s?\b(?!\s+(?:of|that|which)\s+(?:speech|thought))"
    r"|\b(?:draw|sketch|plot|paint)\s+(?:me\s+)?(?:a|an|the)\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\A\W*(?:i(?:'|\u2019)?m sorry|i am sorry|sorry,|i apologi[sz]e|as an ai\b|as a (?:large )?language model"
    r"|i(?:'|\u2019)m (?:unable|not able)|i am (?:unable|not able)"
    r"|i (?:cannot|can(?:'|\u2019)t) (?:help|assist|provide|fulfil))",
    re.IGNORECASE,
)


def read_fields(text: str, fields: Sequence[str]) -> tuple[dict[str, str] | None, str]:
    """The fields of a reply that is one JSON object, bare or in a fence, loosely written; else None with the reason.

    >>> read_fields('{"passive": "It was seen."}', ["passive"])
    ({'passive': 'It was seen.'}, '')
    >>> read_fields("The passive is: It was seen.", ["passive"])
    (None, 'the reply is not JSON')
    """
    try:
        found = whole_json(text)
    except NotJson as error:
        return None, "the reply is JSON that does not end" if error.ended else "the reply is not JSON"
    if not isinstance(found, dict):
        return None, "the reply is JSON, but no object"
    missing = [name for name in fields if name not in found]
    if missing:
        return None, f"the reply has no {missing[0]!r}"
    for name in fields:
        if not isinstance(found[name], str):
            return None, f"{name!r} of the reply is no text"
        if not is_text(found[name]):
            return None, f"{name!r} of the reply holds characters that cannot be written down"
    return {name: found[name].strip() for name in fields}, ""


def task_problem(instruction: str, given: str = "") -> str:
    """Why an instruction (and its input) makes no task, or nothing.

    >>> task_problem("Describe what the attached image shows.")
    'it needs something that a text cannot hold'
    >>> task_problem("Describe a sunset in one sentence.")
    ''
    """
    if len(instruction.encode("utf-8", "replace")) < SHORTEST_TASK:
        return "the instruction is too short" if instruction else "the instruction is empty"
    if len(instruction) > LONGEST_TASK:
        return f"the instruction has {len(instruction):,} characters"
    if MARKS.search(instruction) or MARKS.search(given):
        return "it holds marks of a chat template"
    if _UNSEEN.search(instruction):
        return "it needs something that a text cannot hold"
    return ""


def answer_problem(instruction: str, given: str, answer: str) -> str:
    """Why an answer teaches nothing, or nothing.

    >>> answer_problem("Name a colour.", "", "As an AI, I have no colours.")
    'the answer is a refusal'
    """
    if not answer:
        return "the answer is empty"
    if len(answer) > LONGEST_ANSWER:
        return f"the answer has {len(answer):,} characters"
    if MARKS.search(answer):
        return "it holds marks of a chat template"
    if _REFUSAL.match(answer):
        return "the answer is a refusal"
    if folded(answer) == folded(instruction):
        return "the answer repeats the task"
    return ""


def tidy_input(given: str) -> str:
    """A task's input; empty where the model says in words that there is none.

    >>> tidy_input("<noinput>"), tidy_input("None."), tidy_input("3 km")
    ('', '', '3 km')
    """
    return "" if blank(given) or NO_INPUT.fullmatch(given) else given


def folded(text: str) -> str:
    """A text by which equal ones are told: letters and digits in lower case, words apart.

    >>> folded("Name  a COLOUR!") == folded("name a colour")
    True
    """
    return " ".join(words(text)) or normal(text).strip()
