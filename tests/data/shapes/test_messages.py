"""Conversations: both spellings, every role, tools, thoughts, weights, and who speaks out of turn."""

from __future__ import annotations

import json
from typing import Any

import pytest

from instil.data.sources import examples_from
from instil.errors import DataError
from instil.records import Example, Turn

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
CALLS = json.dumps([CALL])
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def said(role: str, content: Any = None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def told(role: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"from": role, "value": value, **more}


def read(*messages: Any, key: str = "messages", **more: Any) -> Example:
    (row,) = examples_from([{key: list(messages), **more}]).examples
    return row


def refused(*messages: Any, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(*messages, **more)
    return str(caught.value)


ASK, SAY = said("user", "Why?"), said("assistant", "So.")


@pytest.mark.parametrize(
    ("user", "assistant"),
    [("user", "assistant"), ("human", "gpt"), ("prompter", "assistant"), ("User", "Bot"), ("human", "model")],
)
@pytest.mark.parametrize("spelling", [said, told])
@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_both_spellings_and_every_name_of_a_role(user: str, assistant: str, spelling: Any, key: str) -> None:
    row = read(spelling("system", "Be."), spelling(user, "Why?"), spelling(assistant, "So."), key=key)
    assert row == Example("Why?", "So.", row=0, history=(Turn("system", "Be."),))
    assert read(said("developer", "Be."), ASK, SAY) == row


def test_a_conversation_of_several_turns() -> None:
    row = read(ASK, SAY, said("user", "And?"), said("assistant", "Then."))
    assert row == Example("And?", "Then.", row=0, history=(Turn("user", "Why?"), Turn("assistant", "So.")))
    greeted = read(said("assistant", "Hi!"), ASK, SAY)
    assert greeted.history == (Turn("assistant", "Hi!"),)


@pytest.mark.parametrize("arguments", [{"a": 2}, '{"a": 2}'])
@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS), TOOLS[0], [json.dumps(TOOLS[0])]])
def test_tools_and_their_calls(arguments: Any, tools: Any) -> None:
    call = {**CALL, "function": {"name": "add", "arguments": arguments}}
    row = read(
        ASK, said("assistant", None, tool_calls=[call]), said("tool", "4", tool_call_id="c1", name="add"), SAY,
        tools=tools,
    )  # fmt: skip
    assert row.steps == (
        Turn("assistant", "", tool_calls=CALLS),
        Turn("tool", "4", name="add", tool_call_id="c1"),
    )
    assert json.loads(row.tools) == TOOLS
    assert (row.instruction, row.output, row.history) == ("Why?", "So.", ())


def test_calls_in_sharegpt_and_in_the_older_form_of_openai() -> None:
    first = json.dumps({"name": "add", "arguments": {"a": 2}})
    wanted = json.dumps([{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}])
    row = read(told("human", "Why?"), told("function_call", first), told("observation", "4"), told("gpt", "So."))
    assert row.steps == (Turn("assistant", "", tool_calls=wanted), Turn("tool", "4"))
    row = read(ASK, said("assistant", None, function_call=json.loads(first)), said("function", "4", name="add"), SAY)
    assert row.steps == (Turn("assistant", "", tool_calls=wanted), Turn("tool", "4", name="add"))
    row = read(told("human", "Why?"), told("gpt", "Let me see."), told("function_call", first), told("tool", "4"),
               told("gpt", "So."))  # fmt: skip
    assert row.steps[0] == Turn("assistant", "Let me see.", tool_calls=wanted)
    row = read(told("human", "Why?"), told("function_call", first), told("function_call", first))
    assert (row.output, json.loads(row.tool_calls)) == ("", json.loads(wanted) * 2)
    hermes = read(told("human", "Why?"), told("gpt", "<tool_call>{}</tool_call>"), told("tool", "4"), told("gpt", "So"))
    assert hermes.steps == (Turn("assistant", "<tool_call>{}</tool_call>"), Turn("tool", "4"))


def test_an_answer_may_be_a_call() -> None:
    row = read(ASK, said("assistant", "", tool_calls=json.dumps([CALL])))
    assert (row.output, row.tool_calls) == ("", CALLS)
    bare = read(ASK, said("assistant", tool_calls=[{"name": "now"}]))
    assert json.loads(bare.tool_calls) == [{"type": "function", "function": {"name": "now", "arguments": {}}}]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("[", "is a text that is not JSON"),
        ([3], r"tool_calls\[0\] is number"),
        ([{"function": {"arguments": {}}}], "the name of its function is null"),
        ([{"function": {"name": "f", "arguments": "{"}}], r"tool_calls\[0\].arguments is a text that is not JSON"),
        ([{"function": {"name": "f", "arguments": "[1]"}}], "arguments is list; wanted an object"),
        ([{"function": {"name": "f", "arguments": '{"a": NaN}'}}], "not JSON"),
        (3, "tool_calls is number; wanted a list of calls"),
    ],
)
def test_calls_that_are_none(call: Any, says: str) -> None:
    from re import search

    assert search(says, refused(ASK, said("assistant", "x", tool_calls=call)))


@pytest.mark.parametrize("tools", ["{", [3], 3, "[3]", '[{"a": Infinity}]'])
def test_tools_that_are_none(tools: Any) -> None:
    assert "row 0: tools" in refused(ASK, SAY, tools=tools)
    assert read(ASK, SAY, tools=[]).tools == read(ASK, SAY, tools=" ").tools == read(ASK, SAY, tools=None).tools == ""


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_in_a_key_of_their_own(key: str) -> None:
    assert read(ASK, {**SAY, key: "Hm."}).reasoning == "Hm."
    assert read(ASK, {**SAY, key: " \n"}) == read(ASK, {**SAY, key: None}) == read(ASK, SAY)
    assert f"{key} is number" in refused(ASK, {**SAY, key: 3})
    earlier = read(ASK, {**SAY, key: "Hm."}, said("user", "And?"), said("assistant", "Then."))
    assert earlier.history[1].reasoning == "Hm."


def test_thoughts_twice_and_thoughts_in_the_text() -> None:
    assert read(ASK, {**SAY, "thinking": "Hm.", "reasoning": "Hm."}).reasoning == "Hm."
    assert "two different texts under thinking and reasoning" in refused(
        ASK, {**SAY, "thinking": "a", "reasoning": "b"}
    )
    row = read(ASK, said("assistant", "<think>\nHm.\n</think>\n\nSo."))
    assert (row.reasoning, row.output) == ("", "<think>\nHm.\n</think>\n\nSo.")


@pytest.mark.parametrize(
    ("key", "value", "weight"),
    [("weight", 0, 0.0), ("weight", 1, 1.0), ("loss_weight", 0.5, 0.5), ("train", False, 0.0), ("train", True, 1.0),
     ("weight", None, 1.0)],
)  # fmt: skip
def test_weights_of_messages(key: str, value: Any, weight: float) -> None:
    row = read(ASK, {**SAY, key: value}, said("user", "And?"), said("assistant", "Then."))
    assert row.history[1].weight == weight
    assert read(ASK, SAY, said("user", "And?", **{key: None}), {**SAY, key: value}).weight == weight


@pytest.mark.parametrize(
    "value", [-1, "1", float("inf"), float("nan"), [1], 10**400, pytest.param(10**5000, id="huge")]
)
def test_weights_that_are_none(value: Any) -> None:
    assert "messages[1] (assistant): weight is" in refused(ASK, {**SAY, "weight": value})
    assert "weight is -1; wanted 0 or 1" in refused(ASK, {**SAY, "weight": -1})


def test_weights_that_say_nothing_or_too_much() -> None:
    assert "weight and train contradict each other" in refused(ASK, {**SAY, "weight": 0, "train": True})
    assert read(ASK, {**SAY, "weight": 0, "train": False}, said("user", "?"), SAY).history[1].weight == 0
    assert "every message of the assistant has the weight 0" in refused(ASK, {**SAY, "weight": 0})
    assert "messages[0] (user) has the train 1" in refused({**ASK, "train": True}, SAY)
    assert read({**ASK, "weight": 0}, SAY) == read(ASK, SAY)
    detail = [{"begin_offset": 0, "end_offset": 1, "train": True}]
    assert "has train_detail, which trains on parts of a message" in refused(ASK, {**SAY, "train_detail": detail})


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ([{"type": "text", "text": "Why?"}], "Why?"),
        ([{"type": "text", "text": "This:"}, {"type": "text", "text": "why?"}], "This:\nwhy?"),
        ([{"type": "input_text", "text": "Why?"}], "Why?"),
        (["Why?"], "Why?"),
    ],
)
def test_parts_of_text(content: Any, wanted: str) -> None:
    assert read(said("user", content), SAY).instruction == wanted


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "'image_url'; only text is read"),
        ({"type": "image"}, "'image'; only text is read"),
        ({"type": "input_audio"}, "'input_audio'; only text is read"),
        ({"type": "video", "text": "x"}, "'video'; only text is read"),
        ({"type": "thinking", "thinking": "x"}, "of the type 'thinking'; wanted a text"),
        (3, "is number; wanted a text"),
        ({"text": None}, "is object; wanted a text"),
    ],
)
def test_other_parts_are_refused_by_name(part: Any, says: str) -> None:
    message = refused(said("user", [{"type": "text", "text": "Why?"}, part]), SAY)
    assert "messages[0] (user): content[1] is" in message
    assert says in message


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([ASK], "messages: no message of the assistant, so there is no answer to learn"),
        ([SAY], "messages: no message of a user before the last answer"),
        ([said("system", "Be."), SAY], "no message of a user before"),
        ([], "messages is an empty list"),
        ([ASK, ASK, SAY], "message 1 is the user's after the user's; wanted the assistant's"),
        ([ASK, SAY, SAY], "message 2 is the assistant's after the assistant's; wanted the user's or the tool's"),
        ([ASK, said("system", "Be."), SAY], "message 1 is the system's after the user's; wanted the assistant's"),
        ([said("system", "a"), said("system", "b"), ASK, SAY], "message 1 is the system's after the system's"),
        ([ASK, said("tool", "4"), SAY], "message 1 is the tool's after the user's"),
        ([said("tool", "4"), ASK, SAY], "message 0 is the tool's at the beginning"),
        ([ASK, said("assistant", tool_calls=[CALL]), SAY], "after the assistant's with tool_calls; wanted the tool's"),
        ([ASK, said("assistant", "")], "messages[1] (assistant): content is empty"),
        ([ASK, said("assistant", "  \n")], "messages[1] (assistant): content is empty"),
        ([ASK, said("assistant")], "messages[1] (assistant): content is null"),
        ([ASK, said("assistant", ""), ASK, SAY], "messages[1] (assistant): content is empty"),
        ([ASK, {"role": "assistant"}], "messages[1] (assistant): content is missing"),
        ([said("user", ""), SAY], "messages[0] (user): content is empty"),
        ([said("user", 3), SAY], "messages[0] (user): content is number; wanted text"),
        ([said("user", "a\x00"), SAY], "NUL"),
        ([said("user", "\ud800"), SAY], "surrogate"),
        ([said("asistant", "a"), SAY], "messages[0] has the role 'asistant'; did you mean assistant?; known are"),
        ([told("ai", "a"), SAY], "messages[0] has the from 'ai'"),
        ([said(3, "a"), SAY], "messages[0] has the role number"),
        ([{"speaker": "a", "text": "b"}], "has the keys speaker, text; wanted role and content, or from and value"),
        ([{}], "has the keys none; wanted role and content"),
        (["Why?", "So."], "messages[0] is string; wanted an object with role and content"),
        ([ASK, told("function_call", "no JSON")], "its call is a text that is not JSON"),
        ([{**ASK, "tool_calls": [CALL]}, SAY], "messages[0] (user) has tool_calls, which only the assistant makes"),
    ],
)
def test_conversations_that_cannot_be_used(messages: list[Any], says: str) -> None:
    assert says in refused(*messages)


@pytest.mark.parametrize("value", ["x", 3, {"a": 1}])
def test_messages_that_are_no_list(value: Any) -> None:
    with pytest.raises(DataError, match="row 0: messages"):
        examples_from([{"messages": value}])


def test_a_table_may_hold_messages_as_json() -> None:
    assert examples_from([{"messages": json.dumps([ASK, SAY])}]).examples == (Example("Why?", "So.", row=0),)


def test_what_comes_after_the_last_answer_is_dropped_and_told() -> None:
    rows = [{"messages": [ASK, SAY, said("user", "And?")]}, {"messages": [ASK, SAY]}] * 15
    source = examples_from(rows)
    assert {row.output for row in source.examples} == {"So."}
    shown = ", ".join(str(n) for n in range(0, 30, 2))
    assert source.notes[1:] == (f"15 rows went on after the last answer, which is left out: {shown}",)


def test_a_system_message_may_stand_beside_or_inside_but_not_both_ways() -> None:
    assert read(said("system", "Be."), ASK, SAY, system="Be.") == read(ASK, SAY, system="Be.")
    assert "system and the system message of messages differ" in refused(said("system", "Be."), ASK, SAY, system="Go.")


def test_the_id_of_a_call_may_be_a_number() -> None:
    call = said("assistant", None, tool_calls=[CALL])
    assert read(ASK, call, said("tool", "4", tool_call_id=3), SAY).steps[1].tool_call_id == "3"
    assert "tool_call_id is number; wanted text" in refused(ASK, call, said("tool", "4", tool_call_id=10**5000), SAY)
