"""Changes of values of JSON, and of whole folders of files that are written down as one such value.

A folder is an object whose keys are names of files. A text is the file's text; ``{"$bytes": ...}`` holds bytes as
Latin-1; ``{"$lines": [...]}`` is JSON Lines; ``{"$toml": {...}}`` is TOML; ``{"$tensors": {name: [type, shape]}}`` a
safetensors file; anything else is JSON.
"""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import tomli_w

from tests.fuzz.promise import Mutate

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    1.5,
    -0.0,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    2**31,
    2**63,
    2**64,
    -(2**63),
    10**400,
    "",
    " ",
    "\0",
    "\ud800",
    "\ufdd0",
    "é",
    "▁",
    "<|endoftext|>",
    "[]",
    "{}",
    "null",
    "1e999",
    "a" * 300,
    "../x",
    [],
    {},
    [[]],
    [{}],
    {"": ""},
    [None],
    "０",
    "-0",
    "NaN",
)
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "I32": 4, "F8_E4M3": 1, "F8_E5M2": 1}
MOST = 1 << 20  # bytes of a tensor that are written
FILLED = b"<"  # a number near 0.01 in float32 and bfloat16, near 1 in float16


def dumped(value: Any) -> bytes:
    """A value as JSON, as Python writes it: with NaN, and with halves of surrogate pairs escaped."""
    return json.dumps(value).encode()


def parsed(given: bytes) -> Any:
    """The value in bytes.

    Raises:
        ValueError: there is none.
    """
    try:
        return json.loads(given)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def tree_mutator(words: Sequence[Any] = (), pool: Callable[[], Sequence[Any]] = lambda: ()) -> Any:
    """Changes of one to four places of a value; now and then of its bytes.

    Args:
        words: values and keys that mean something to the target.
        pool: other values, of which parts are taken.
    """
    held: list[Any] = []

    def mutated(given: bytes, draw: Random, mutate: Mutate) -> bytes:
        if not held:
            held.extend(pool())
        try:
            value = parsed(given)
        except ValueError:
            value = copy.deepcopy(draw.choice(held)) if held else {}
        for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 4))):
            value = changed(value, draw, mutate, words, held)
        return dumped(value)

    return mutated


Place = tuple[Any, Any]  # what holds a value, and its key there


def places(value: Any, most: int = 5000) -> list[Place]:
    """All places below a value."""
    found: list[Place] = []
    left = [value]
    while left and len(found) < most:
        holder = left.pop()
        inside = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
        for key, one in inside:
            found.append((holder, key))
            if isinstance(one, dict | list):
                left.append(one)
    return found


def changed(value: Any, draw: Random, mutate: Mutate, words: Sequence[Any], pool: Sequence[Any]) -> Any:
    """The value with one change, made in place."""
    root = [value]
    every = places(root)
    holder, key = draw.choice(every)
    one = holder[key]
    how = draw.randrange(12)
    if how == 0:
        holder[key] = copy.deepcopy(draw.choice(ODD))
    elif how == 1:
        holder[key] = copy.deepcopy(draw.choice(words)) if words else draw.choice(ODD)
    elif how == 2:  # a copy of another place
        other, name = draw.choice(every)
        holder[key] = copy.deepcopy(other[name])
    elif how == 3 and pool:
        other, name = draw.choice(places([draw.choice(pool)]))
        holder[key] = copy.deepcopy(other[name])
    elif how == 4 and holder is not root:
        del holder[key]
    elif how == 5 and isinstance(holder, list) and holder is not root:
        holder[key:key] = [copy.deepcopy(one)] * draw.choice((1, 1, 2, 40))
    elif how == 6 and isinstance(holder, dict):
        _renamed(holder, key, str(draw.choice([*words, *(name for _, name in every), *ODD[18:]])), draw)
    elif how == 7:
        holder[key] = draw.choice(
            ([one], {"a": one}, [one, one], json.dumps(one), _deep(one, draw.choice((3, 60, 2000))))
        )
    elif how == 8 and isinstance(one, dict):
        one[str(draw.choice(words or ODD))] = copy.deepcopy(draw.choice([*words, *ODD]))
    elif how == 8 and isinstance(one, list):
        one.append(copy.deepcopy(draw.choice([*words, *ODD])))
    else:
        holder[key] = _scalar(one, draw, mutate, words)
    return root[0]


def _renamed(holder: dict[str, Any], key: str, name: str, draw: Random) -> None:
    """Give a value another key, in its place or as well."""
    items = list(holder.items())
    more = draw.random() < 0.3
    holder.clear()
    for old, value in items:
        if old == key:
            holder[name] = value
            if not more:
                continue
        holder.setdefault(old, value)


def _deep(value: Any, levels: int) -> Any:
    for _ in range(levels // 200 + 1 if levels > 900 else levels):  # Python's own writer goes no deeper than 1,000
        value = [value]
    return value if levels < 900 else "[" * levels + "]" * levels


def _scalar(value: Any, draw: Random, mutate: Mutate, words: Sequence[Any]) -> Any:
    if isinstance(value, bool) or value is None:
        return draw.choice((True, False, 0, 1, "true", None))
    if isinstance(value, int | float):
        steps: list[Callable[[], Any]] = [
            lambda: value + 1,
            lambda: value - 1,
            lambda: -value,
            lambda: value * 2,
            lambda: float(value),
            lambda: value / 3,
            lambda: str(value),
            lambda: value * 10**6,
            lambda: draw.randrange(-3, 70),
        ]
        try:
            return draw.choice(steps)()
        except OverflowError:
            return 0
    if isinstance(value, str):
        return _text(value, draw, mutate, [str(word) for word in words if isinstance(word, str)])
    if isinstance(value, list) and len(value) > 1:
        at, to = draw.randrange(len(value)), draw.randrange(len(value))
        value[at], value[to] = value[to], value[at]
    return value


def _text(text: str, draw: Random, mutate: Mutate, words: Sequence[str]) -> str:
    at = draw.randrange(len(text) + 1)
    to = min(len(text), at + draw.choice((1, 1, 2, 5, 30)))
    how = draw.randrange(6)
    if how == 0:
        return text[:at] + text[to:]
    if how == 1:
        return text[:at] + text[at:to] * draw.choice((2, 3, 50)) + text[to:]
    if how == 2 and words:
        return text[:at] + draw.choice(words) + text[draw.choice((at, to)) :]
    if how == 3:
        return text[:at] + str(draw.choice(ODD[18:30])) + text[to:]
    if how == 4:
        return text[:at] + chr(draw.choice((draw.randrange(128), draw.randrange(0xD800), 0x1F600))) + text[to:]
    return mutate(text.encode("utf-8", "replace"), len(text) * 4 + 20).decode("utf-8", "replace")


def lay_out(folder: Path, files: Any) -> None:
    """Write the files of a folder; names that lead out of it, or are none, are passed over."""
    for name, content in files.items() if isinstance(files, dict) else ():
        parts = str(name).split("/")
        if (
            not name
            or len(parts) > 3
            or any(part in ("", ".", "..") or "\0" in part or len(part) > 80 for part in parts)
        ):
            continue
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content_of(content))
        except (OSError, ValueError):  # a file stands where a folder should be, or a name has no bytes
            continue


def content_of(value: Any) -> bytes:
    """The bytes of a file, of what stands for it."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, dict) and isinstance(value.get("$bytes"), str):
        return str(value["$bytes"]).encode("latin-1", "replace")
    if isinstance(value, dict) and isinstance(value.get("$lines"), list):
        return b"".join(dumped(line) + b"\n" for line in value["$lines"])
    if isinstance(value, dict) and isinstance(value.get("$toml"), dict):
        return toml(value["$toml"])
    if isinstance(value, dict) and isinstance(value.get("$tensors"), dict):
        return tensors(value["$tensors"])
    return dumped(value)


def toml(table: Any) -> bytes:
    """A table as TOML, without what that has no words for."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(inner) for key, inner in value.items() if inner is not None}
        return [kept(inner) for inner in value if inner is not None] if isinstance(value, list) else value

    try:
        return tomli_w.dumps(kept(table)).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError):
        return dumped(table)


def tensors(told: Mapping[str, Any]) -> bytes:
    """A safetensors file; what is no tensor, or a large one, is left out."""
    header: dict[str, Any] = {}
    at = 0
    for name, one in told.items():
        if (size := size_of(one)) is not None:
            header[name] = {"dtype": one[0], "shape": one[1], "data_offsets": [at, at + size]}
            at += size
    text = dumped(header)
    return struct.pack("<Q", len(text)) + text + FILLED * at


def size_of(told: Any) -> int | None:
    """Bytes of a tensor, which is told of as ``[type, shape]``; None where it is none, or too large."""
    if not (isinstance(told, list) and len(told) >= 2 and isinstance(told[1], list) and len(told[1]) < 9):
        return None
    if not all(type(side) is int and 0 <= side < MOST for side in told[1]):
        return None
    size = math.prod(told[1]) * WIDTHS.get(str(told[0]), 4)
    return size if size <= MOST else None
