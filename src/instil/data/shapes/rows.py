"""One row of a known shape as an example, or as a pair of answers to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from instil.data.shapes.calls import tools_text
from instil.data.shapes.messages import Conversation, conversation, example_of, order_problem
from instil.data.shapes.names import LABELS, NOT_READ, OWN, SIDES, Shape
from instil.data.shapes.texts import (
    ABSENT,
    Unusable,
    from_json,
    messages_in,
    optional_text,
    optional_text_problem,
    text_problem,
    yes_or_no,
)
from instil.files import json_kind
from instil.records import Example, Pair, Turn, blank

SAME = ("instruction", "input", "output")  # which a row that was written here says once more beside its messages


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer of which only is said whether it is wanted."""

    example: Example
    wanted: bool


@dataclass(frozen=True, slots=True)
class Read:
    """What a row came to, its keys that were not used, and how many of its messages were dropped.

    ``as_json`` are keys whose texts were read as the messages that they hold.
    """

    made: Example | Pair | Labelled
    unused: frozenset[str] = frozenset()
    dropped: int = 0
    as_json: frozenset[str] = frozenset()


def read_answer(row: Mapping[str, Any], number: int, shape: Shape, *, need_output: bool = True) -> Read:
    """A row as an example.

    Raises:
        Unusable: it cannot be used, and why.
    """
    _check_media(row)
    if shape.kind == "text":
        if problem := text_problem(row.get(shape.key("text"), ABSENT)):
            raise Unusable(f"{shape.key('text')} {problem}")
        example = Example("", row[shape.key("text")], task=_task(row), row=number)
        return Read(example, _unused(row, shape))
    for label in LABELS:
        if need_output and str(row.get(label)).strip().lower() == "false" and shape.keys.get("label") != label:
            raise Unusable(
                f"{label} is false, which says that its answer is not wanted; "
                "leave such rows out, or make pairs of them with --method dpo"
            )
    if shape.kind == "conversation":
        return _conversation_row(row, number, shape, need_output=need_output)
    row, as_json = _with_messages(row, (shape.key("instruction"), shape.key("output")))
    if _is_messages(row.get(shape.key("instruction"))):
        return replace(_two_lists(row, number, shape, need_output=need_output), as_json=as_json)
    example = _flat(row, number, shape, need_output=need_output)
    return Read(example, _unused(row, shape))


def read_labelled(row: Mapping[str, Any], number: int, shape: Shape) -> Read:
    """A row with an answer and a label: whether that answer is wanted.

    Raises:
        Unusable: it cannot be used, and why.
    """
    found = read_answer(row, number, shape)
    label = row.get(shape.key("label"))
    wanted = yes_or_no(label)
    if wanted is None:
        raise Unusable(f"{shape.key('label')} is {json_kind(label)}; wanted true or false")
    assert isinstance(found.made, Example), "rows with answers come to examples"
    _plain_answer(found.made.turns[-1], "its answer")
    return replace(found, made=Labelled(found.made, wanted))


def read_pair(row: Mapping[str, Any], number: int, shape: Shape) -> Read:
    """A row with two answers to one prompt.

    Raises:
        Unusable: it cannot be used, and why.
    """
    _check_media(row)
    row, of_prompt = _with_messages(row, (shape.key("instruction"),))
    row, of_sides = _with_messages(row, SIDES)
    found = _pair(row, number, shape)
    return replace(found, as_json=of_prompt | of_sides)


def _pair(row: Mapping[str, Any], number: int, shape: Shape) -> Read:
    sides = {side: row.get(side, ABSENT) for side in SIDES}
    if all(isinstance(value, list | tuple | Mapping) and value for value in sides.values()):
        return _pair_of_messages(row, number, shape)
    problems = [f"{side} {problem}" for side, value in sides.items() if (problem := text_problem(value))]
    found = Read(Example(""))
    try:
        found = _prompt(row, number, shape)
    except Unusable as error:
        problems.insert(0, str(error))
    if problems:
        raise Unusable(", ".join(problems))
    assert isinstance(found.made, Example), "a prompt is an example without an answer"
    return replace(found, made=Pair(found.made, row["chosen"], row["rejected"]))


def _pair_of_messages(row: Mapping[str, Any], number: int, shape: Shape) -> Read:
    chosen, rejected = (conversation(row[side], side) for side in ("chosen", "rejected"))
    unused = chosen.unused | rejected.unused
    whole = chosen.turns[0].role != "assistant" or len(chosen.turns) > 1
    if whole:
        same = _common(chosen.turns, rejected.turns)
        found = _implied_prompt(row, number, shape, chosen.turns[:same])
        sides = chosen.turns[same:], rejected.turns[same:]
    else:
        found = _prompt(row, number, shape)
        sides = chosen.turns, rejected.turns
    for side, turns in zip(("chosen", "rejected"), sides, strict=True):
        if len(turns) != 1 or turns[0].role != "assistant":
            start = f"the two conversations part after message {same}, and then" if whole else f"{side} is no answer:"
            roles = ", ".join(turn.role for turn in turns) or "nothing"
            raise Unusable(f"{start} {side} has {roles}; wanted one message of the assistant")
        _plain_answer(turns[0], side)
    assert isinstance(found.made, Example), "a prompt is an example without an answer"
    pair = Pair(found.made, sides[0][0].content, sides[1][0].content)
    return replace(found, made=pair, unused=found.unused | frozenset(f"{key!r} of messages" for key in unused))


def _common(one: Sequence[Turn], other: Sequence[Turn]) -> int:
    """How many messages two conversations begin with, without the last answer of either."""
    most = min(len(one), len(other)) - 1
    return next((at for at in range(most) if one[at] != other[at]), most)


def _plain_answer(turn: Turn, name: str) -> None:
    """Preferences are between texts.

    Raises:
        Unusable: an answer is more than that.
    """
    for given, what in ((turn.tool_calls, "tool_calls"), (turn.reasoning, "thoughts in a key of their own")):
        if given:
            raise Unusable(f"{name} has {what}; preferences are between texts, so write them into the text")
    if turn.weight != 1.0:
        raise Unusable(f"{name} has the weight {turn.weight:g}; the answers of a pair have none")


def _implied_prompt(row: Mapping[str, Any], number: int, shape: Shape, turns: Sequence[Turn]) -> Read:
    """The common beginning of two conversations; what a row says besides must not be another prompt."""
    system = _system(row, shape)
    if system and (not turns or turns[0].role != "system"):
        turns = [Turn("system", system), *turns]
    if not turns:
        raise Unusable("chosen and rejected have no message in common, so there is no prompt")
    said = row.get(shape.key("instruction"))
    if isinstance(said, str) and not blank(said) and not any(said.strip() in turn.content for turn in turns):
        raise Unusable(f"{shape.key('instruction')} is not what the two conversations begin with")
    example, _ = example_of(turns, "chosen", need_output=False)
    if turns[-1].role == "assistant":
        raise Unusable(f"chosen and rejected part after message {len(turns)}, which is an answer already")
    tools = tools_text(row.get("tools"))
    example = replace(example, row=number, task=_task(row), tools=tools)
    return Read(example, _unused(row, shape, "messages", "conversations", "prompt"))


def _prompt(row: Mapping[str, Any], number: int, shape: Shape) -> Read:
    """What a pair's answers are answers to."""
    found: Read | None = None
    if "messages" in shape.keys:
        found = _conversation_row(row, number, shape, need_output=False)
    elif _is_messages(row.get(shape.key("instruction"))):
        found = _two_lists(row, number, shape, need_output=False)
    if found is not None:
        assert isinstance(found.made, Example), "a prompt is an example without an answer"
        last = found.made.turns[-1]
        own = row.get("output") == last.content and "messages" in shape.keys  # as `Pair.as_json` writes it
        if (last.content or last.tool_calls) and not own:
            key = shape.key("messages" if "messages" in shape.keys else "instruction")
            raise Unusable(f"{key} ends with an answer; wanted a question, to which chosen and rejected are answers")
        return replace(found, made=replace(found.made, reasoning="", tool_calls="", weight=1.0))  # of its own answer
    return Read(_flat(row, number, shape, need_output=False), _unused(row, shape))


def _conversation_row(row: Mapping[str, Any], number: int, shape: Shape, *, need_output: bool) -> Read:
    key = shape.key("messages")
    found = conversation(row[key], key, answered=need_output)
    return _from_turns(row, number, shape, key, found, need_output=need_output)


def _with_messages(row: Mapping[str, Any], keys: Sequence[str]) -> tuple[Mapping[str, Any], frozenset[str]]:
    """A row in which messages that these keys hold as JSON text are messages, and which keys do; the first one must."""
    found: dict[str, Any] = {}
    for key in keys:
        messages = messages_in(row.get(key), key)
        if messages is None and not found:
            break
        if messages is not None:
            found[key] = messages
    return ({**row, **found}, frozenset(found)) if found else (row, frozenset())


def _is_messages(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and isinstance(value[0], Mapping)


def _two_lists(row: Mapping[str, Any], number: int, shape: Shape, *, need_output: bool) -> Read:
    """TRL's conversational form of prompt and completion: two lists of messages (or a list and a text)."""
    asked, answer = shape.key("instruction"), shape.key("output")
    first = conversation(row[asked], asked)
    given = row.get(answer)
    if given is None and not need_output:
        second = Conversation(())
    elif isinstance(given, str):
        if problem := text_problem(given):
            raise Unusable(f"{answer} {problem}")
        second = Conversation((Turn("assistant", given),))
    elif given is None:
        raise Unusable(f"{answer} is missing")
    else:
        second = conversation(given, answer)
        if second.turns[0].role not in ("assistant", "tool"):
            raise Unusable(f"{answer} begins with a message of the {second.turns[0].role}; wanted the assistant's")
    both = Conversation((*first.turns, *second.turns), first.unused | second.unused)
    return _from_turns(row, number, shape, f"{asked} and {answer}", both, need_output=need_output)


def _from_turns(
    row: Mapping[str, Any], number: int, shape: Shape, key: str, found: Conversation, *, need_output: bool
) -> Read:
    turns = list(found.turns)
    system = _system(row, shape)
    if system and turns[0].role == "system" and turns[0].content != system:
        raise Unusable(f"{shape.key('system')} and the system message of {key} differ; wanted one of them")
    if system and turns[0].role != "system":
        turns.insert(0, Turn("system", system))
    example, dropped = example_of(turns, key, need_output=need_output)
    apart = _apart(row, example.instruction)
    instruction, about = apart or (example.instruction, "")
    tools = tools_text(row.get("tools"))
    example = replace(example, instruction=instruction, input=about, row=number, task=_task(row), tools=tools)
    unused = _unused(row, shape) - (set(SAME) if apart else set())
    return Read(example, unused | frozenset(f"{name!r} of messages" for name in found.unused), dropped)


def _apart(row: Mapping[str, Any], content: str) -> tuple[str, str] | None:
    """Instruction and input, where a row keeps the two apart that are one text in its messages."""
    instruction, about = row.get("instruction"), row.get("input")
    if not isinstance(instruction, str) or not isinstance(about, str):
        return None
    joined = instruction if blank(about) else f"{instruction}\n{about}"
    return (instruction, about) if joined == content else None


def _flat(row: Mapping[str, Any], number: int, shape: Shape, *, need_output: bool) -> Example:
    keys = {part: shape.key(part) for part in ("instruction", "input", "output", "system", "task")}
    values = {part: row.get(key, ABSENT) for part, key in keys.items()}
    problems = []
    for part, key in keys.items():
        needed = part == "instruction" or (part == "output" and need_output)
        check = text_problem if needed else optional_text_problem
        if part == "output" and not need_output and "output" not in shape.keys:
            values[part] = ""
        elif problem := check(values[part]):
            problems.append(f"{key} {problem}")
    if problems:
        raise Unusable(", ".join(problems))
    texts = {part: "" if value is ABSENT or value is None else value for part, value in values.items()}
    if not shape.keys.keys() & {"system", "history", "tools"}:
        return Example(texts["instruction"], texts["output"], texts["input"], texts["task"], number)
    system = (Turn("system", texts["system"]),) if not blank(texts["system"]) else ()
    return Example(
        texts["instruction"],
        texts["output"],
        texts["input"],
        texts["task"],
        number,
        history=(*system, *_history(row.get("history"))),
        tools=tools_text(row.get("tools")),
    )


def _history(value: Any) -> tuple[Turn, ...]:
    """LlamaFactory's history: earlier questions, each with its answer."""
    found = from_json(value, "history") if value else []
    if not isinstance(found, list | tuple):
        raise Unusable(f"history is {json_kind(found)}; wanted a list of [question, answer]")
    if found and all(isinstance(one, Mapping) for one in found):
        said = conversation(found, "history").turns
        if problem := order_problem([*said, Turn("user", "")], "history"):
            raise Unusable(problem)
        return said
    turns: list[Turn] = []
    for at, pair in enumerate(found):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Unusable(f"history[{at}] is {json_kind(pair)}; wanted [question, answer]")
        for text, what in zip(pair, ("question", "answer"), strict=True):
            if problem := text_problem(text):
                raise Unusable(f"the {what} of history[{at}] {problem}")
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return tuple(turns)


def _system(row: Mapping[str, Any], shape: Shape) -> str:
    if "system" not in shape.keys:
        return ""
    system = optional_text(row.get(shape.key("system")), shape.key("system"))
    return "" if blank(system) else system


def _task(row: Mapping[str, Any]) -> str:
    return optional_text(row.get("task"), "task")


def _check_media(row: Mapping[str, Any]) -> None:
    for key in NOT_READ:
        if row.get(key):
            raise Unusable(f"has {key}; only text is read, so leave out rows with images and the like")


def _unused(row: Mapping[str, Any], shape: Shape, *more: str) -> frozenset[str]:
    used = set(shape.keys.values())
    return frozenset(repr(key) for key in row.keys() - OWN - used - set(more) if row[key] is not None)
