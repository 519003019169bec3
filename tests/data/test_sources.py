"""Rows from files: every encoding and form that is accepted, and every refusal with its message."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from instil.data.sources import examples_from, in_nfc, open_source, read_source
from instil.errors import DataError
from instil.records import Example, Turn

GOOD = [{"instruction": "Say hi.", "input": "", "output": "Hi."}, {"instruction": "Ünï", "output": "cödé"}]


def write(tmp_path: Path, content: str | bytes, name: str = "rows.json") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


AS_JSON = json.dumps(GOOD, ensure_ascii=False)
AS_LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in GOOD)


@pytest.mark.parametrize(
    "content",
    [
        AS_JSON.encode(),
        b"\xef\xbb\xbf" + AS_JSON.encode(),
        json.dumps(GOOD, indent=2).replace("\n", "\r\n").encode(),
        AS_JSON.encode("utf-16"),
        AS_JSON.encode("utf-32"),
        AS_LINES.encode(),
        AS_LINES.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + AS_LINES.encode() + b"\n\n",
        json.dumps({"data": GOOD}).encode(),
    ],
    ids="json bom crlf utf16 utf32 jsonl jsonl-crlf jsonl-bom data-key".split(),
)
def test_every_form_gives_the_same_rows_and_the_same_hash(tmp_path: Path, content: bytes) -> None:
    source = read_source(write(tmp_path, content))
    assert [e.as_json() for e in source.examples] == [{"input": "", **row} for row in GOOD]
    assert source.sha256 == read_source(write(tmp_path, AS_JSON, "plain.json")).sha256


def test_line_separators_inside_a_jsonl_string_do_not_cut_it(tmp_path: Path) -> None:
    row = {"instruction": "a\u2028b\x85c", "output": "d"}
    lines = "\n".join(json.dumps(r, ensure_ascii=False) for r in [row, row | {"output": "e"}])
    assert read_source(write(tmp_path, lines)).examples[0].instruction == "a\u2028b\x85c"


def test_a_single_jsonl_line_is_one_row(tmp_path: Path) -> None:
    assert len(read_source(write(tmp_path, json.dumps(GOOD[0])))) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("  \n ", "is empty"),
        ("[]", "no rows"),
        ("hello", "neither JSON nor JSONL"),
        ('{"a": 1}', "found a JSON object"),
        ("3", "found a JSON number"),
        (AS_JSON[:-5], "cut off"),
        (AS_LINES[:-5], "line 2"),
        ('[{"instruction": "a", "output": NaN}]', "NaN is not JSON"),
        ('[{"instruction": "a", "instruction": "b", "output": "c"}]', "twice"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"instruction": "a", "output": ' + "9" * 5000 + "}]", "Exceeds the limit"),
        ("caf\xe9".encode("latin-1"), "byte 3"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, content: str | bytes, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_source(write(tmp_path, content))
    assert "rows.json" in str(caught.value)


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    ("line", "kind"),
    [("[1, 2]", "list"), ("[]", "list"), ("5", "number"), ('"a"', "string"), ("null", "null"), ("true", "true/false")],
)
def test_a_line_that_is_no_object_is_a_row_of_the_wrong_kind(tmp_path: Path, line: str, kind: str, at: int) -> None:
    lines = AS_LINES.splitlines()
    path = write(tmp_path, "\n".join([*lines[:at], line, *lines[at:]]) + "\n")
    where = f" (rows.json line {at + 1})"
    with pytest.raises(DataError, match=re.escape(f"row {at}: is a {kind}; wanted an object{where}")):
        read_source(path)
    kept = read_source(path, skip_bad=True)
    assert [example.output for example in kept.examples] == [row["output"] for row in GOOD]
    assert [(one.row, one.where) for one in kept.rejected] == [(at, f"rows.json line {at + 1}")]
    # Objects over several lines each are no different, but a place in such a file is a row's.
    if at:
        objects = [json.dumps(row, indent=1) for row in GOOD]
        path = write(tmp_path, "\n".join([*objects[:at], line, *objects[at:]]))
        assert [(one.row, one.reason) for one in read_source(path, skip_bad=True).rejected] == [
            (at, f"is a {kind}; wanted an object")
        ]


def test_a_list_in_one_line_is_a_list_whatever_follows(tmp_path: Path) -> None:
    for end in ("", "\n", "\r\n\n"):
        assert len(read_source(write(tmp_path, AS_JSON.replace("\n", "") + end))) == len(GOOD)
    with pytest.raises(DataError, match=r"none of its 2 rows can be used.*\n  rows 0, 1: is a list; wanted an object"):
        read_source(write(tmp_path, "[1, 2]\n[3, 4]\n"))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_source(tmp_path / "nothing.json")
    with pytest.raises(DataError, match="did you mean starter"):
        read_source("startr")
    with pytest.raises(DataError, match="is a folder"):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"output": "b"}, "instruction is missing"),
        ({"instruction": "a"}, "output is missing"),
        ({"instruction": None, "output": "b"}, "instruction is null"),
        ({"instruction": "a", "output": 3}, "output is number"),
        ({"instruction": "a", "output": True}, "output is true/false"),
        ({"instruction": "a", "output": {"b": 1}}, "output is object"),
        ({"instruction": ["a"], "output": "b"}, "instruction is list"),
        ({"instruction": " ", "output": "b"}, "instruction is empty"),
        ({"instruction": "a", "output": ""}, "output is empty"),
        ({"instruction": "a", "input": 5, "output": "b"}, "input is number"),
        ({"instruction": "a\x00", "output": "b"}, "NUL"),
        ({"instruction": "a", "output": "\ud800"}, "surrogate"),
        ("text", "is a string; wanted an object"),
        (None, "is a null"),
    ],
)
def test_an_unusable_row_is_named(tmp_path: Path, row: object, says: str) -> None:
    path = write(tmp_path, json.dumps([GOOD[0], row]))
    with pytest.raises(DataError, match=f"row 1: .*{says}"):
        read_source(path)
    kept = read_source(path, skip_bad=True)
    assert [example.row for example in kept.examples] == [0]
    assert len(kept.skipped) == 1
    assert "row 1" in kept.skipped[0]


@pytest.mark.parametrize("lines", [False, True])
def test_what_is_no_json_is_named_by_row_and_key(tmp_path: Path, lines: bool) -> None:
    rows = [
        '{"instruction": "a", "output": "b"}',
        '{"instruction": "a", "output": NaN}',
        '{"instruction": "a", "output": "b", "extra": {"scores": [1, -Infinity]}}',
        '{"instruction": "a", "input": "x", "input": "y", "output": "b"}',
    ]
    with pytest.raises(DataError) as caught:
        read_source(write(tmp_path, "\n".join(rows) if lines else f"[{', '.join(rows)}]"))
    said = str(caught.value)
    assert "row 1: output: NaN is not JSON" in said
    assert "row 2: extra.scores[1]: -Infinity is not JSON" in said
    assert "row 3: it has the key 'input' twice" in said
    assert "row 0" not in said


def test_equal_complaints_of_lines_are_one_and_name_their_lines_where_rows_do_not(tmp_path: Path) -> None:
    twice = '{"instruction": "a", "output": "b", "output": "c"}\n'
    with pytest.raises(DataError) as caught:
        read_source(write(tmp_path, twice * 12))
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(DataError, match=r"row 1: it has the key 'output' twice \(line 3\)"):
        read_source(write(tmp_path, f"{twice}\n{twice}"))


@pytest.mark.parametrize(
    "row", ['{"instruction": "a", "output": "b"}', '{"instruction": "a", "output": "b", "data": [1]}']
)
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_a_file_of_one_line_is_one_row(tmp_path: Path, row: str, end: str) -> None:
    assert read_source(write(tmp_path, row + end)).examples[0].output == "b"


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("chosen", r"found the keys\n  chosen \(row 0\)"),
        ("rejected", r"found the keys\n  rejected \(row 0\)"),
        ("model_response", r"found the keys\n  model_response \(row 0\)"),
        ("output", "row 0: instruction is missing"),
    ],
)
def test_one_row_that_lacks_something_is_told_as_a_row(tmp_path: Path, key: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_source(write(tmp_path, json.dumps({key: "b"})))


def test_only_the_first_twenty_bad_rows_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_source(write(tmp_path, json.dumps([{"instruction": "a"}] * 50)))
    text = str(caught.value)
    assert "none of its 50 rows can be used" in text
    assert "skip_bad" not in text
    assert "  rows 0, 1, 2, 3," in text
    assert ", 19 and 30 more: output is missing" in text
    assert text.count("output is missing") == 1
    kinds = (1, [], {}, True, "", "\0")
    with pytest.raises(DataError) as caught:
        examples_from([{"instruction": one, "output": other} for one in kinds for other in kinds])
    assert "row 19: " in str(caught.value)
    assert "row 20: " not in str(caught.value)
    assert "... and 16 more" in str(caught.value)


def test_null_and_absent_inputs_are_empty(tmp_path: Path) -> None:
    source = read_source(write(tmp_path, json.dumps([{**GOOD[0], "input": None}, GOOD[1]])))
    assert [example.input for example in source.examples] == ["", ""]


def test_keys_that_are_not_used_are_mentioned(tmp_path: Path) -> None:
    source = read_source(write(tmp_path, json.dumps([{**GOOD[0], "label": 1}])))
    assert source.notes == ("key 'label' of 1 row is not used",)


def test_rows_to_be_answered_need_no_output(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps([{"instruction": "a"}]))
    assert read_source(path, need_output=False).examples[0].output == ""


def test_every_text_of_a_row_can_be_had_in_one_normal_form() -> None:
    """Of every field there is, those of earlier and later turns included."""
    apart = "cafe\u0301"

    def filled(kind: type[Any], **turns: Any) -> Any:
        return kind(**{one.name: apart for one in fields(kind) if one.type == "str"}, **turns)

    turn = replace(filled(Turn, role="user"), name="", tool_call_id="")
    row = replace(filled(Example, history=(turn,), steps=(turn,)), task="")
    assert "cafe" in repr(row)
    assert apart not in repr(in_nfc(row))
    assert in_nfc(row) == eval(repr(row).replace(apart, "caf\u00e9"))


def test_numbers_of_rows_are_a_part_of_the_hash_where_some_are_left_out() -> None:
    good, bad = [{"instruction": f"Say {n}.", "output": f"{n}."} for n in range(4)], {"instruction": "No answer."}
    first, last, none = ([bad, *good], [*good, bad], good)
    hashes = [examples_from(some, skip_bad=True).sha256 for some in (first, last, none)]
    assert hashes[1] == hashes[2] != hashes[0]


def test_rows_in_memory_are_known_by_all_that_is_in_them() -> None:
    rows = [{"instruction": f"Say {n}.", "output": f"{n}."} for n in range(3)]
    others = [[*rows, {"instruction": "x"}], [{**rows[0], "task": "a"}, *rows[1:]], [{"instruction": "x"}, *rows]]
    keys = [open_source(some, skip_bad=True).key() for some in (rows, [dict(row) for row in rows], *others)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4
