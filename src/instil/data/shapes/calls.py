"""Tools and calls of them, in the one form in which examples carry them.

A tool is an object, as OpenAI's interface describes functions. A call is
``{"id": ..., "type": "function", "function": {"name": ..., "arguments": {...}}}`` (the id only if there was one); its
arguments are an object, since chat templates of models write them out; OpenAI's JSON text of them is read.
"""

from __future__ import annotations

from typing import Any

from instil.data.shapes.texts import Unusable, as_json_text, from_json, text_problem
from instil.files import json_kind


def tools_text(value: Any, name: str = "tools") -> str:
    """The tools of a row as JSON text; empty for none.

    >>> tools_text('[{"name": "add"}]')
    '[{"name": "add"}]'

    Raises:
        Unusable: they are neither a list of objects nor JSON text of one.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    found = from_json(value, name)
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list):
        raise Unusable(f"{name} is {json_kind(found)}; wanted a list of tools, or that as JSON text")
    tools = [from_json(tool, f"{name}[{at}]") for at, tool in enumerate(found)]
    for at, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise Unusable(f"{name}[{at}] is {json_kind(tool)}; wanted an object that describes a tool")
    return as_json_text(tools, name) if tools else ""


def calls_text(value: Any, name: str = "tool_calls") -> str:
    """The calls of one message as JSON text; empty for none.

    >>> calls_text([{"function": {"name": "add", "arguments": '{"a": 1}'}}])
    '[{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]'

    Raises:
        Unusable: one is no call of a function.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    found = from_json(value, name)
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list):
        raise Unusable(f"{name} is {json_kind(found)}; wanted a list of calls")
    calls = [_call(one, f"{name}[{at}]") for at, one in enumerate(found)]
    return as_json_text(calls, name) if calls else ""


def _call(value: Any, name: str) -> dict[str, Any]:
    call = from_json(value, name)
    if not isinstance(call, dict):
        raise Unusable(f"{name} is {json_kind(call)}; wanted an object with a function's name and arguments")
    function = call["function"] if isinstance(call.get("function"), dict) else call
    if problem := text_problem(function.get("name")):
        raise Unusable(f"{name}: the name of its function {problem}")
    arguments: Any = next((function[key] for key in ("arguments", "parameters") if function.get(key) is not None), {})
    if isinstance(arguments, str):
        arguments = from_json(arguments, f"{name}.arguments") if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise Unusable(f"{name}.arguments is {json_kind(arguments)}; wanted an object, or that as JSON text")
    made: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) and call["id"] else made
