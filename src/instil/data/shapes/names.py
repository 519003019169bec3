"""Which keys make which shape: the names that data sets use, looked up by the keys of a row.

Names are taken as they are written here, or all in capitals; anything else has to be named with ``--map``. The table
is that of TRL, LlamaFactory and axolotl (`docs/shapes.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

CONVERSATIONS = ("messages", "conversations")
QUESTIONS = ("instruction", "prompt", "question", "query")
ANSWERS = ("output", "completion", "response", "answer", "generation")
SUMMARY = ("article", "summary")
INPUTS = ("input", "context", "article")  # what a question is about
SYSTEMS = ("system", "system_prompt")
LABELS = ("label", "kto_tag")
SIDES = ("chosen", "rejected")
BESIDE = ("history", "tools", "task")  # of which more may stand in a row than its shape needs
NOT_READ = ("images", "image", "videos", "video", "audios", "audio")
OWN = {"task", "provenance", "model_response", "finish"}  # keys of rows that were written here, besides their shape's
KNOWN = {*CONVERSATIONS, *QUESTIONS, *ANSWERS, *SUMMARY, *INPUTS, *SYSTEMS, *LABELS, *SIDES, *BESIDE, "text"}

Kind = Literal["flat", "conversation", "text", "pair"]
Need = Literal["answers", "prompts", "pairs"]


@dataclass(frozen=True, slots=True)
class Shape:
    """How rows with certain keys are read.

    ``keys`` says under which key of the row each part stands: ``instruction``, ``output``, ``input``, ``system``,
    ``messages``, ``chosen``, ``label``, ...
    """

    name: str
    kind: Kind
    keys: Mapping[str, str] = field(hash=False)

    def key(self, part: str) -> str:
        """The key of a part; its own name where the shape has none for it."""
        return self.keys.get(part, part)

    @property
    def said(self) -> str:
        """What people are told where rows have this shape; nothing of the usual one."""
        if self.kind == "text":
            return f"rows are texts ({self.name}): all of a text is trained on, and there is no question to answer"
        if self.kind == "conversation":
            return f"rows are conversations ({self.name})"
        if self.kind == "pair" and "messages" in self.keys:
            return f"rows are pairs of answers to conversations ({self.name})"
        if self.kind == "pair" and "instruction" not in self.keys:
            return f"the prompt of a pair is what its two conversations begin with ({self.name})"
        parts = [
            f"{self.keys[part]} is the {part}"
            for part in ("instruction", "input", "output", "system")
            if self.key(part) != part
        ]
        return f"rows have the shape {self.name}: {', '.join(parts)}" if parts else ""


def shape_for_answers(keys: Collection[str], mapped: Collection[str] = ()) -> Shape | None:
    """The shape of a row with these keys, of rows with a wanted answer each; None if there is none.

    >>> shape_for_answers(["question", "answer", "id"]).name
    'question/answer'
    >>> shape_for_answers(["QUESTION", "ANSWER"]).keys["instruction"]
    'QUESTION'
    """
    return _cased(keys, mapped, _answers)


def shape_for_prompts(keys: Collection[str], mapped: Collection[str] = ()) -> Shape | None:
    """The same of rows to be answered, which may carry an answer."""
    return _cased(keys, mapped, _prompts)


def shape_for_pairs(keys: Collection[str], mapped: Collection[str] = ()) -> Shape | None:
    """The same of preference pairs, and of answers that are labelled good or bad."""
    return _cased(keys, mapped, _pairs)


Finder = Callable[[Collection[str], Collection[str]], Shape | None]
FINDERS: dict[Need, Finder] = {
    "answers": shape_for_answers,
    "prompts": shape_for_prompts,
    "pairs": shape_for_pairs,
}
WANTED: dict[Need, str] = {
    "answers": "instruction and output, question and answer, prompt and completion, messages, or text",
    "prompts": "instruction, question, prompt or messages",
    "pairs": "prompt (or instruction, or messages), chosen and rejected; or rows of answers with label true and false",
}


def _cased(keys: Collection[str], mapped: Collection[str], find: Finder) -> Shape | None:
    if (shape := find(keys, mapped)) is not None:
        return shape
    lower = {key.lower(): key for key in keys if key.isupper()}
    shape = find(lower.keys() | set(mapped) & set(keys), mapped) if lower else None
    if shape is None:
        return None
    written = {part: lower.get(key, key) for part, key in shape.keys.items()}
    return Shape("/".join(lower.get(key, key) for key in shape.name.split("/")), shape.kind, written)


def _answers(keys: Collection[str], mapped: Collection[str]) -> Shape | None:
    if conversation := _conversation(keys, mapped):
        return conversation
    question, answer = _question_and_answer(keys, mapped)
    if question and answer:
        return _flat(keys, question, answer)
    if "text" in keys and not {*QUESTIONS, *ANSWERS, *SIDES} & set(keys):
        return Shape("text", "text", {"text": "text"})
    return None


def _prompts(keys: Collection[str], mapped: Collection[str]) -> Shape | None:
    if conversation := _conversation(keys, mapped):
        return conversation
    question, answer = _question_and_answer(keys, mapped)
    question = question or _one(QUESTIONS, keys, mapped)
    return replace(_flat(keys, question, answer), name=question) if question else None  # whether answered or not


def _pairs(keys: Collection[str], mapped: Collection[str]) -> Shape | None:
    if not set(SIDES) <= set(keys):
        label = next((key for key in LABELS if key in keys), "")
        rows = _answers(keys, mapped) if label else None
        if rows is None or rows.kind == "text":
            return None
        return Shape(f"{rows.name} with {label}", rows.kind, {**rows.keys, "label": label})
    sides = {side: side for side in SIDES}
    if conversation := _conversation(keys, mapped):
        return Shape(f"{conversation.name}, chosen, rejected", "pair", {**conversation.keys, **sides})
    if question := _one(QUESTIONS, keys, mapped):
        output = "output" if "output" in keys else ""
        flat = _flat(keys, question, output)
        return Shape(f"{question}, chosen, rejected", "pair", {**flat.keys, **sides})
    return Shape("chosen, rejected", "pair", sides)


def _conversation(keys: Collection[str], mapped: Collection[str]) -> Shape | None:
    flat = {*QUESTIONS, *ANSWERS, *SUMMARY} & set(mapped)
    key = next((key for key in CONVERSATIONS if key in keys), "")
    if not key or (flat and key not in mapped):  # what was mapped by hand is what is wanted
        return None
    found = {"messages": key, **_beside(keys, ("tools", "task"))}
    if system := _one(SYSTEMS, keys, mapped):
        found["system"] = system
    return Shape(key, "conversation", found)


def _question_and_answer(keys: Collection[str], mapped: Collection[str]) -> tuple[str, str]:
    """The keys of question and answer; empty where there is none, or several and it is not clear which is meant."""
    if not mapped and {"instruction", "output"} <= set(keys):
        return "instruction", "output"
    question, answer = _one(QUESTIONS, keys, mapped), _one(ANSWERS, keys, mapped)
    if not question and not answer and set(SUMMARY) <= set(keys):
        return SUMMARY
    return question, answer


def _one(names: Collection[str], keys: Collection[str], mapped: Collection[str]) -> str:
    """The one of the names that is among the keys, first among those named by hand; the usual name before others."""
    for some in (mapped, keys):
        found = [name for name in names if name in some and name in keys]
        if len(found) == 1 or (found and found[0] in ("instruction", "output", "input", "system")):
            return found[0]
        if found:
            return ""
    return ""


def _flat(keys: Collection[str], question: str, answer: str) -> Shape:
    found = {"instruction": question, **({"output": answer} if answer else {})}
    about = next((key for key in INPUTS if key in keys and (key != "article" or question == "question")), "")
    system = next((key for key in SYSTEMS if key in keys), "")
    found |= {part: key for part, key in (("input", about), ("system", system)) if key}
    return Shape(f"{question}/{answer}", "flat", {**found, **_beside(keys, BESIDE)})


def _beside(keys: Collection[str], names: Collection[str]) -> dict[str, str]:
    return {name: name for name in names if name in keys}
