"""Rows of any shape come to examples that can be written down and read again, and each row leaves exactly once."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from instil.data.sources import examples_from
from instil.errors import UserError
from instil.records import Pair
from instil.tasks.pairs.source import pairs_from

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip())
)
MAYBE = st.one_of(st.none(), st.just(""), st.just(" \n"), TEXT)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=2)
NAMES = st.sampled_from(
    [("instruction", "output"), ("question", "answer"), ("prompt", "completion"), ("INSTRUCTION", "RESPONSE")]
)


@st.composite
def flat_rows(draw: st.DrawFn, names: tuple[str, str] | None = None) -> dict[str, Any]:
    asked, answer = names or draw(NAMES)
    row: dict[str, Any] = {asked: draw(TEXT), answer: draw(TEXT)}
    if asked == "instruction":
        row["input"] = draw(MAYBE)
    if asked.islower():
        row |= {"system": draw(MAYBE), "history": draw(st.lists(st.tuples(TEXT, TEXT).map(list), max_size=2))}
        row["tools"] = draw(st.one_of(st.none(), st.lists(OBJECTS, max_size=2)))
    return row


@st.composite
def assistant(draw: st.DrawFn, *, calls: bool = False) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": draw(MAYBE if calls else TEXT)}
    if calls:
        call = st.fixed_dictionaries({"name": TEXT, "arguments": OBJECTS})
        given = draw(st.lists(call, min_size=1, max_size=2))
        as_text = draw(st.booleans())
        message["tool_calls"] = [
            {"function": {**one, "arguments": json.dumps(one["arguments"]) if as_text else one["arguments"]}}
            for one in given
        ]
    if draw(st.booleans()):
        message["reasoning_content"] = draw(MAYBE)
    if draw(st.booleans()):
        message["weight"] = draw(st.sampled_from([0, 1, 0.5, True, False]))
    return message


@st.composite
def exchange(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages = [{"role": "user", "content": draw(TEXT)}]
    for _ in range(draw(st.integers(0, 2))):
        messages.append(draw(assistant(calls=True)))
        for _ in range(draw(st.integers(1, 2))):
            messages.append({"role": "tool", "content": draw(MAYBE), "tool_call_id": draw(MAYBE), "name": draw(MAYBE)})
    return [*messages, draw(assistant(calls=draw(st.booleans())))]


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    first: list[dict[str, Any]] = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    messages = [*first]
    for _ in range(draw(st.integers(1, 3))):
        if messages and messages[-1].get("tool_calls"):
            messages.append({"role": "tool", "content": "4"})
            messages.append({"role": "assistant", "content": "So."})
        messages += draw(exchange())
    messages[-1].pop("weight", None)
    more = [{"role": "user", "content": "Well?"}] if draw(st.booleans()) and "tool_calls" not in messages[-1] else []
    return {"messages": [*messages, *more], "tools": draw(st.one_of(st.none(), st.lists(OBJECTS, max_size=2)))}


@settings(max_examples=80)
@given(flat_rows() | conversations() | st.fixed_dictionaries({"text": TEXT}))
def test_rows_come_back_as_they_were_read(row: dict[str, Any]) -> None:
    (example,) = examples_from([row]).examples
    written = json.loads(json.dumps(example.as_json()))
    source = examples_from([written])
    assert source.examples == (example,)
    assert source.sha256 == examples_from([row]).sha256
    if not example.text_only:
        (unanswered,) = examples_from([row], need_output=False).examples
        assert examples_from([unanswered.as_json()], need_output=False).examples == (unanswered,)


@settings(max_examples=50)
@given(flat_rows() | conversations(), TEXT, TEXT)
def test_pairs_come_back_as_they_were_read(row: dict[str, Any], chosen: str, rejected: str) -> None:
    (example,) = examples_from([row]).examples
    asked = replace(example, reasoning="", tool_calls="", weight=1.0)  # which are those of the row's own answer
    for output in (example.output, ""):
        written = json.loads(json.dumps(Pair(replace(example, output=output), chosen, rejected).as_json()))
        wanted = Pair(replace(asked, output=output), chosen, rejected)
        assert pairs_from([written], keep_equal=True).pairs == (wanted,)
        assert pairs_from([json.loads(json.dumps(wanted.as_json()))], keep_equal=True).pairs == (wanted,)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("assistant") | TEXT,
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["messages", "conversations", "role", "from", "content", "value", "instruction", "output", "input", "text",
             "history", "tools", "tool_calls", "function", "name", "arguments", "weight", "train", "prompt", "chosen",
             "rejected", "label", "completion", "reasoning", "type", "system", "images", "task"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=20,
)  # fmt: skip
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "gpt", "human", "function_call", "observation", "x"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": ANYTHING | TEXT}), max_size=4)
ROWS = st.lists(
    ANYTHING
    | st.fixed_dictionaries({"messages": MESSAGES})
    | st.fixed_dictionaries({"chosen": MESSAGES, "rejected": MESSAGES, "prompt": MESSAGES})
    | st.fixed_dictionaries({"instruction": TEXT, "output": TEXT, "history": ANYTHING}),
    max_size=6,
)


@settings(max_examples=150)
@given(ROWS)
def test_whatever_comes_is_read_or_refused_in_a_sentence_and_every_row_leaves_once(rows: list[Any]) -> None:
    for read in (examples_from, pairs_from):
        for more in ({}, {"need_output": False}) if read is examples_from else ({}, {"keep_equal": True}):
            try:
                source = read(rows, skip_bad=True, **more)  # type: ignore[operator]
            except UserError as error:
                assert str(error)
                continue
            left = [one.row for one in source.rejected]
            kept = [example.row for example in source.examples]
            if not any(isinstance(row, dict) and isinstance(row.get("label"), bool) for row in rows):
                assert sorted([*left, *kept]) == list(range(len(rows)))
            assert len({*left, *kept}) == len(left) + len(kept)
