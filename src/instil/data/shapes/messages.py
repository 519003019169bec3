"""Conversations: messages in OpenAI's spelling or ShareGPT's, as turns, and a conversation as an example.

Thoughts that stand in a key of their own (``reasoning_content``, ``thinking``, ``reasoning``) are a turn's reasoning;
``<think>`` at the beginning of a text stays part of it, as in TRL and axolotl: the templates of models that think split
it off themselves, and others want it as it is. Parts of a text are joined by line ends, as servers join them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from instil.data.shapes.calls import calls_text
from instil.data.shapes.texts import (
    ABSENT,
    Unusable,
    from_json,
    optional_text,
    optional_text_problem,
    text_problem,
)
from instil.errors import did_you_mean
from instil.files import json_kind
from instil.records import Example, Role, Turn, blank

ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(
        ("tool", "observation", "ipython", "function", "tool_response", "function_response"),
        "tool",
    ),
}
CALLS = ("function_call", "tool_call")  # roles of messages whose text is a call of a tool, as JSON
REASONING = ("reasoning_content", "thinking", "reasoning")
WEIGHTS = ("weight", "loss_weight", "train")  # OpenAI's, LlamaFactory's, axolotl's
BARE = frozenset(("role", "from", "content", "value"))
LARGEST_WEIGHT = 1_000_000
COMMON = BARE | {"train_detail", *WEIGHTS}
KEYS: dict[Role, frozenset[str]] = {  # of messages, which are used
    "system": COMMON,
    "user": COMMON,
    "assistant": COMMON | {"tool_calls", "function_call", *REASONING},
    "tool": COMMON | {"name", "tool_call_id"},
}
NO_TEXT = ("image", "video", "audio", "file")
FOLLOWS: dict[str, tuple[Role, ...]] = {  # who may speak after whom
    "": ("system", "user", "assistant"),
    "system": ("user", "assistant"),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns of a list of messages, and what of them is not used."""

    turns: tuple[Turn, ...]
    unused: frozenset[str] = frozenset()


def conversation(value: Any, key: str, *, answered: bool = True, empty_answers: bool = False) -> Conversation:
    """Messages as turns.

    Args:
        value: a list of messages, JSON text of one, or a single message.
        key: what messages about them call the list.
        answered: whether the last answer has to be there; else an empty one at the end is taken for none.
        empty_answers: whether an answer may say nothing, as a model's own may in a talk with it.

    Raises:
        Unusable: it is no list of messages, or one of them cannot be used.
    """
    found = from_json(value, key)
    found = [found] if isinstance(found, Mapping) else found
    if not isinstance(found, list | tuple):
        raise Unusable(f"{key} is {json_kind(found)}; wanted a list of messages")
    if not answered and found and _is_empty_answer(found[-1]):
        found = found[:-1]
    if not found:
        raise Unusable(f"{key} is an empty list")
    turns: list[Turn] = []
    unused: set[str] = set()
    for at, message in enumerate(found):
        turn, role = _turn(message, f"{key}[{at}]", empty_answers)
        if role in CALLS and turns and turns[-1].role == "assistant":  # what was said before it, or another call
            calls = [*(from_json(turns[-1].tool_calls or "[]", key)), *from_json(turn.tool_calls, key)]
            turns[-1] = replace(turns[-1], tool_calls=calls_text(calls))
        else:
            turns.append(turn)
        if not message.keys() <= KEYS[turn.role]:
            unused |= {name for name in message.keys() - KEYS[turn.role] if message[name] is not None}
    return Conversation(tuple(turns), frozenset(unused))


def _is_empty_answer(message: Any) -> bool:
    return (
        isinstance(message, Mapping)
        and message.get("role") == "assistant"
        and message.get("content") in ("", None)
        and not message.keys() & {"tool_calls", "function_call", "value"}
    )


def _turn(message: Any, where: str, empty_answers: bool) -> tuple[Turn, str]:
    """A message as a turn, and the role as it was written."""
    if not isinstance(message, Mapping):
        raise Unusable(f"{where} is {json_kind(message)}; wanted an object with role and content, or from and value")
    role_key = "role" if message.get("role") is not None else "from"
    usual = "content" if role_key == "role" else "value"
    text_key = next((key for key in ("content", "value") if message.get(key) is not None), usual)
    said = message.get(role_key)
    if said is None:
        keys = ", ".join(sorted(map(str, message))[:8]) or "none"
        raise Unusable(f"{where} has the keys {keys}; wanted role and content, or from and value")
    name = said.strip().lower() if isinstance(said, str) else ""
    role = ROLES.get(name)
    if role is None:
        shown = repr(said[:40]) if isinstance(said, str) else json_kind(said)
        known = ", ".join(ROLES)
        raise Unusable(f"{where} has the {role_key} {shown}{did_you_mean(name, ROLES)}; known are {known}")
    where = f"{where} ({said})"
    if message.keys() <= BARE and name not in CALLS and role != "tool":
        may_be_empty = empty_answers and role == "assistant" and text_key in message
        return Turn(
            role, _content(message.get(text_key, ABSENT), f"{where}: {text_key}", may_be_empty=may_be_empty)
        ), name
    if message.get("train_detail") is not None:
        raise Unusable(
            f"{where} has train_detail, which trains on parts of a message; wanted a weight of 0 or 1 for the whole"
        )
    calls = _calls(message, name, where)
    given = None if name in CALLS else message.get(text_key, ABSENT)
    may_be_empty = bool(calls) or role == "tool" or (empty_answers and role == "assistant" and text_key in message)
    content = _content(given, f"{where}: {text_key}", may_be_empty=may_be_empty)
    content = content if content.strip() or not calls else ""
    weight = _weight(message, where, role)
    if role == "assistant":
        reasoning = _reasoning(message, where)
        return Turn(role, content, weight=weight, reasoning=reasoning, tool_calls=calls), name
    if calls:
        raise Unusable(f"{where} has tool_calls, which only the assistant makes")
    if role == "tool":
        tool = optional_text(message.get("name"), f"{where}: name")
        return Turn(role, content, name=tool, tool_call_id=_id(message.get("tool_call_id"), where)), name
    return Turn(role, content), name


def _id(value: Any, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 64:
        return str(value)
    return optional_text(value, f"{where}: tool_call_id")


def _calls(message: Mapping[str, Any], role: str, where: str) -> str:
    if role in CALLS:
        text = message.get("value", message.get("content"))
        calls = calls_text(text, f"{where}: its call")
        if not calls:
            raise Unusable(f"{where} holds no call of a tool")
        return calls
    if message.get("tool_calls"):
        return calls_text(message["tool_calls"], f"{where}: tool_calls")
    return calls_text(message.get("function_call"), f"{where}: function_call")


def _content(value: Any, name: str, *, may_be_empty: bool = False) -> str:
    if isinstance(value, list | tuple):
        value = "\n".join(_part(part, f"{name}[{at}]") for at, part in enumerate(value))
    problem = optional_text_problem(value) if may_be_empty else text_problem(value)
    if problem:
        raise Unusable(f"{name} {problem}")
    return "" if value is ABSENT or value is None else value


def _part(part: Any, name: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(kind, str) and any(word in kind for word in NO_TEXT):
        raise Unusable(f"{name} is of the type {kind!r}; only text is read, so leave out rows with images and the like")
    if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
        found = f"of the type {kind!r}" if isinstance(kind, str) else json_kind(part)
        raise Unusable(f"{name} is {found}; wanted a text, or parts of the type 'text'")
    return str(part["text"])


def _reasoning(message: Mapping[str, Any], where: str) -> str:
    texts = {key: optional_text(message.get(key), f"{where}: {key}") for key in REASONING}
    different = {text: key for key, text in texts.items() if not blank(text)}
    if len(different) > 1:
        raise Unusable(f"{where} has two different texts under {' and '.join(different.values())}; wanted one")
    return next(iter(different), "")


def _weight(message: Mapping[str, Any], where: str, role: Role) -> float:
    weights: dict[float, str] = {}
    for key in WEIGHTS:
        value = message.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or not 0 <= value <= LARGEST_WEIGHT:
            told = isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**15)
            shown = value if told else json_kind(value)
            raise Unusable(f"{where}: {key} is {shown}; wanted 0 or 1, or another number up to {LARGEST_WEIGHT:,}")
        weights[float(value)] = key
    if len(weights) > 1:
        raise Unusable(f"{where}: {' and '.join(weights.values())} contradict each other")
    weight = next(iter(weights), 1.0)
    if role != "assistant" and weights and weight:
        raise Unusable(
            f"{where} has the {weights[weight]} {weight:g}, and only messages of the assistant are trained on; "
            "leave it out (data.train_on=all trains on whole rows)"
        )
    return weight


def order_problem(turns: Sequence[Turn], key: str) -> str | None:
    """Who speaks out of turn, or None."""
    before = ""
    for at, turn in enumerate(turns):
        wanted = ("tool",) if at and turns[at - 1].tool_calls else FOLLOWS[before]
        if turn.role not in wanted:
            after = f"after the {before}'s" if before else "at the beginning"
            calls = " with tool_calls" if at and turns[at - 1].tool_calls else ""
            others = " or ".join(f"the {role}'s" for role in wanted)
            return f"{key}: message {at} is the {turn.role}'s {after}{calls}; wanted {others}"
        before = turn.role
    return None


def example_of(turns: Sequence[Turn], key: str, *, need_output: bool) -> tuple[Example, int]:
    """A conversation as an example whose output is the last answer, and how many messages after that are dropped.

    Without ``need_output`` a conversation that ends with a question or the result of a tool is one to be answered.

    Raises:
        Unusable: nobody asks, nobody answers, or somebody speaks out of turn.
    """
    answers = [at for at, turn in enumerate(turns) if turn.role == "assistant"]
    if need_output and not answers:
        raise Unusable(f"{key}: no message of the assistant, so there is no answer to learn")
    asks = not need_output and turns[-1].role in ("user", "tool")
    end = len(turns) if asks else (answers[-1] if answers else 0)
    kept = turns if asks else turns[: end + 1]
    if problem := order_problem(kept, key):
        raise Unusable(problem)
    questions = [at for at, turn in enumerate(turns[:end]) if turn.role == "user"]
    if not questions:
        raise Unusable(f"{key}: no message of a user before the last answer")
    answer = Turn("assistant", "") if asks else turns[end]
    if need_output and not any(turn.weight for turn in kept if turn.role == "assistant"):
        raise Unusable(f"{key}: every message of the assistant has the weight 0, so there is nothing to learn")
    asked = questions[-1]
    example = Example(
        turns[asked].content,
        answer.content,
        history=tuple(turns[:asked]),
        steps=tuple(turns[asked + 1 : end]),
        reasoning=answer.reasoning,
        tool_calls=answer.tool_calls,
        weight=answer.weight,
    )
    return example, len(turns) - len(kept)
