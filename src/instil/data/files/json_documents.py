"""Rows in one JSON value that is a whole file: a list, an object with one list in it, or columns as pandas writes them.

::

    [{"instruction": "a"}, ...]                              orient="records", and what most people write
    {"rows": [{"instruction": "a"}, ...], "version": 1}      one list of objects, under any name (orient="table", too)
    {"instruction": {"0": "a", "1": "b"}, "output": ...}     orient="columns", which pandas writes if not told otherwise
    {"0": {"instruction": "a"}, "1": ...}                    orient="index"
    {"columns": ["instruction"], "data": [["a"], ...]}       orient="split"
    {"instruction": ["a", "b"], "output": ["c", "d"]}        columns as lists
"""

from __future__ import annotations

from typing import Any

from instil.data.shapes.names import ANSWERS, CONVERSATIONS, QUESTIONS, SIDES, shape_for_answers, shape_for_pairs
from instil.data.shapes.texts import TURN_KEYS
from instil.errors import DataError, listed
from instil.files import json_kind

# An object with one of them is a row, unless it is made of columns, or holds rows.
ROW_KEYS = {*CONVERSATIONS, *QUESTIONS, *ANSWERS, *SIDES, "text", "conversation", "model_response"}
WANTED = "wanted a list of objects with instruction and output"


def rows_of_document(parsed: Any, name: str) -> list[Any]:
    """The rows in a parsed file.

    Raises:
        DataError: there are none in it, or it is not clear which of its parts they are.

    >>> rows_of_document({"instruction": {"0": "a", "1": "b"}, "output": {"0": "c", "1": "d"}}, "rows.json")
    [{'instruction': 'a', 'output': 'c'}, {'instruction': 'b', 'output': 'd'}]
    >>> rows_of_document({"version": 1, "rows": [{"instruction": "a"}]}, "rows.json")
    [{'instruction': 'a'}]
    """
    if isinstance(parsed, list):
        return parsed
    if not isinstance(parsed, dict):
        raise DataError(f"{name}: found a JSON {json_kind(parsed)}; {WANTED}")
    if not parsed:
        raise DataError(f"{name}: found an empty JSON object; {WANTED}")
    values = list(parsed.values())
    if _is_split(parsed):
        return _from_split(parsed, name)
    if parsed.keys() == {"schema", "data"} and _holds_objects(parsed["data"]):
        index = parsed["schema"].get("primaryKey", []) if isinstance(parsed["schema"], dict) else []
        return [
            {key: value for key, value in row.items() if key != "index" or index != ["index"]} for row in parsed["data"]
        ]
    if all(isinstance(value, dict) for value in values) and (rows := _from_objects(parsed, name)) is not None:
        return rows
    if all(isinstance(value, list) for value in values) and not any(_holds_objects(value) for value in values):
        return _from_lists(parsed, name)
    lists = {key: value for key, value in parsed.items() if isinstance(value, list)}
    whole = shape_for_answers(parsed) or shape_for_pairs(parsed)
    if whole or (_has_row_keys(parsed) and not any(map(_holds_rows, lists.values()))):
        return [parsed]  # JSONL of a single line
    if (len(lists) == 1 and _holds_turns(*lists.values())) or (not lists and _is_text(values)):
        return [parsed]
    held = {key: value for key, value in lists.items() if _holds_objects(value) and not _holds_turns(value)} or lists
    if len(held) == 1:
        return next(iter(held.values()))
    if held:
        parts = [f"{key!r}, with {len(value):,} entries" for key, value in held.items()]
        raise DataError(
            f"{name}: found a JSON object with {len(held)} lists in it; wanted one:\n{listed(parts)}\n"
            "write the one that is wanted into a file of its own"
        )
    keys = ", ".join(map(repr, list(parsed)[:10]))
    raise DataError(f"{name}: found a JSON object with no list in it (keys {keys}); {WANTED}")


def _is_split(parsed: dict[str, Any]) -> bool:
    return (
        parsed.keys() >= {"columns", "data"}
        and parsed.keys() <= {"columns", "data", "index"}
        and all(isinstance(value, list) for value in parsed.values())
    )


def _from_split(parsed: dict[str, Any], name: str) -> list[Any]:
    columns, data = parsed["columns"], parsed["data"]
    if not all(isinstance(column, str) for column in columns) or len(set(columns)) != len(columns):
        raise DataError(f"{name}: its 'columns' are not names, each one once; wanted pandas' orient='split'")
    wrong = [
        f"row {row}: has {len(cells) if isinstance(cells, list) else 'no'} cells"
        for row, cells in enumerate(data)
        if not isinstance(cells, list) or len(cells) != len(columns)
    ]
    if wrong:
        raise DataError(f"{name}: rows that do not have {len(columns)} cells, one for each column:\n{listed(wrong)}")
    return [dict(zip(columns, cells, strict=True)) for cells in data]


def _from_objects(parsed: dict[str, Any], name: str) -> list[Any] | None:
    """Rows out of objects of objects; None if they are no table."""
    outer, inner = list(parsed), [list(value) for value in parsed.values()]
    if all(key.isdecimal() for key in outer):  # by index
        return list(parsed.values())
    if not inner[0]:
        return None
    if not all(key.isdecimal() for keys in inner for key in keys):
        return None
    first = set(inner[0])
    for column, keys in zip(outer, inner, strict=True):
        if set(keys) != first:
            odd = sorted(first ^ set(keys), key=int)
            raise DataError(
                f"{name}: the columns {outer[0]!r} and {column!r} do not have the same rows; only one of them has: "
                f"{', '.join(odd[:10])}{', ...' if len(odd) > 10 else ''}"
            )
    return [{column: parsed[column][index] for column in outer} for index in inner[0]]


def _is_text(values: list[Any]) -> bool:
    """Whether the values are those of a row with keys of its own: some texts, and nothing with parts."""
    texts = sum(isinstance(value, str) for value in values)
    return texts > 1 and not any(isinstance(value, list | dict) for value in values)


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _has_row_keys(row: dict[str, Any]) -> bool:
    return not ROW_KEYS.isdisjoint(key.lower() for key in row)


def _holds_rows(value: Any) -> bool:
    return _holds_objects(value) and not _holds_turns(value) and all(map(_has_row_keys, value))


def _holds_turns(value: Any) -> bool:
    return _holds_objects(value) and all(any(entry.keys() >= keys for keys in TURN_KEYS) for entry in value)


def _from_lists(parsed: dict[str, Any], name: str) -> list[Any]:
    lengths = {column: len(cells) for column, cells in parsed.items()}
    if len(lengths) == 1 and not (ROW_KEYS & lengths.keys()):  # a list under a name, whatever it holds
        return next(iter(parsed.values()))
    if len(set(lengths.values())) > 1:
        parts = [f"{column!r} has {length:,}" for column, length in lengths.items()]
        raise DataError(f"{name}: columns of unequal length:\n{listed(parts)}")
    return [dict(zip(parsed, cells, strict=True)) for cells in zip(*parsed.values(), strict=True)]
