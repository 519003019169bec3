"""Bodies of requests, read so that nothing in them surprises whoever works with them later."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

from instil.errors import parsing_problem
from instil.serve.errors import ServeError

DEPTH: Final = 64  # lists and objects inside one another; a JSON schema of an answer needs some
CONTAINERS: Final = 10_000  # lists and objects in all: a megabyte of empty ones takes seconds to read
VALUES: Final = 200_000  # in all, which is more than any context has tokens
DIGITS: Final = 308  # of a whole number that is still one of the numbers of float
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)  # to the end of the body, if need be: never twice
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def strict(body: bytes) -> Any:
    """What a body of JSON says.

    Raises:
        ServeError: 400: it is not JSON in UTF-8, is nested deeply, has very many parts, or holds a number beyond float,
            NaN, or half of a surrogate pair, none of which can be carried on.

    >>> strict(b'{"temperature": 0.5}')
    {'temperature': 0.5}
    >>> strict(b'[1e999]')
    Traceback (most recent call last):
    instil.serve.errors.ServeError: the body holds a number that is too large: 1e999
    """
    if body.count(b"[") + body.count(b"{") > CONTAINERS or body.count(b",") > VALUES:
        plain = _TEXT.sub(b"", body)  # a prompt may be full of brackets
        if plain.count(b"[") + plain.count(b"{") > CONTAINERS or plain.count(b",") > VALUES:
            raise ServeError(400, f"the body holds more than {CONTAINERS:,} lists and objects, or {VALUES:,} values")
    try:
        read = json.loads(body.decode("utf-8-sig"), parse_float=_float, parse_int=_whole, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ServeError(400, f"the body is not JSON that is read here: {parsing_problem(error)}") from None
    deep = body.count(b"[") + body.count(b"{") > DEPTH
    if deep or _SURROGATE.search(body):
        _look_into(read)
    return read


def _look_into(read: Any) -> None:
    """Depth and texts of what was read, without recursion."""
    layer = [read]
    for _ in range(DEPTH + 1):
        below: list[Any] = []
        for value in layer:
            if isinstance(value, str):
                _no_half_pair(value)
            elif isinstance(value, list):
                below += value
            elif isinstance(value, dict):
                below += value.values()
                for key in value:
                    _no_half_pair(key)
        if not below:
            return
        layer = below
    raise ServeError(400, f"the body is nested more than {DEPTH} deep")


def _no_half_pair(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ServeError(400, "the body holds half of a surrogate pair, which is no character") from None


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ServeError(400, f"the body holds a number that is too large: {text[:40]}")
    return value


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > DIGITS:
        raise ServeError(400, f"the body holds a number that is too large: {text[:40]}...")
    return int(text)


def _no_number(text: str) -> NoReturn:
    raise ServeError(400, f"the body holds {text}, which is not JSON")
