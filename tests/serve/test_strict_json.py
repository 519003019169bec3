"""What a body of JSON may hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from instil.serve.errors import ServeError
from instil.serve.strict_json import DEPTH, strict


@pytest.mark.parametrize(
    "value",
    [{}, [], "x", 0, -1.5, True, None, {"a": ["\N{SNOWMAN}", "\N{GRINNING FACE}", "\x00"]}, [1e308, 10**300, -(2**64)]],
)
def test_what_json_can_say_is_read(value: Any) -> None:
    assert strict(json.dumps(value).encode()) == value
    assert strict(json.dumps(value, ensure_ascii=False).encode()) == value
    assert strict(b"\xef\xbb\xbf" + json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8"),
        (b'"\xed\xa0\x80"', "is not UTF-8"),  # half of a pair, in bytes
        (b'"\n"', "not JSON"),
        (b"model=x&prompt=y", "not JSON"),
        (b"[NaN]", "holds NaN"),
        (b"[-Infinity]", "holds -Infinity"),
        (b"[1e309]", "too large: 1e309"),
        (b"[-1e309]", "too large: -1e309"),
        (b"[" + b"9" * 309 + b"]", "too large: 99999"),
        (b"[" + b"9" * 500_000 + b"]", "too large: 99999"),
        (b'["\\ud800"]', "half of a surrogate pair"),
        (b'["\\uDC00x"]', "half of a surrogate pair"),
        (b'{"a": {"\\ud83d": 1}}', "half of a surrogate pair"),
        (b"[" * 10_000, "nested too deeply"),
        (b"[" * 10_000 + b"]" * 10_000, "nested too deeply"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "nested"),
        (b"[" * (DEPTH + 1) + b"1" + b"]" * (DEPTH + 1), f"nested more than {DEPTH} deep"),
    ],
)
def test_what_nobody_can_work_with_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(ServeError) as told:
        strict(body)
    assert told.value.status == 400
    assert said in told.value.message
    assert len(told.value.message) < 200


def test_as_deep_as_is_allowed() -> None:
    for inner in (b"1", b'"\\ud83d\\ude00"', b""):
        strict(b"[" * DEPTH + inner + b"]" * DEPTH)


@pytest.mark.parametrize("body", [b"[" + b"[]," * 330_000 + b"[]]", b"[" + b"1," * 500_000 + b"1]", b"[" * 10_001])
def test_a_body_of_very_many_parts_is_refused_before_it_is_read(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *args, **more: pytest.fail("it was read"))
    with pytest.raises(ServeError, match="more than 10,000 lists and objects, or 200,000 values"):
        strict(body)


@pytest.mark.parametrize("text", ["{[,}]" * 100_000, '\\"[,' * 100_000, "[" * 300_000 + "\\", ',"' * 250_000])
def test_texts_may_be_full_of_brackets(text: str) -> None:
    assert strict(json.dumps([text, {"a": text[::-1]}]).encode()) == [text, {"a": text[::-1]}]


@pytest.mark.parametrize("body", [b'"' + b'\\"[' * 300_000, b'["' + b"[," * 300_000, b'"\\' * 300_000 + b"[" * 20_000])
def test_a_text_without_an_end_takes_no_quadratic_time(body: bytes) -> None:
    with pytest.raises(ServeError):
        strict(body)
