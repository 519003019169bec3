"""Rows written in every form come back equal, each with its place, as often as wanted, in bounded memory."""

from __future__ import annotations

import csv
import io
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instil.data.files import csv_rows, kinds, text
from instil.data.files.json_documents import ROW_KEYS, rows_of_document
from instil.data.files.rows import open_rows, parse_rows, read_rows
from instil.data.sources import read_source
from instil.errors import DataError
from tests.data.files.writers import FORMS, lines, one_list, parquet, table, zipped

ROWS = [
    {"instruction": 'Say "hi",\nplease; now', "input": "", "output": "Hi\tthere."},
    {"instruction": "Ünï\u2028cödé 你好", "input": " x ", "output": "back\\slash \\\" 'quoted'"},
    {"instruction": "1", "input": "null", "output": "a|b"},
]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
rows_of_text = st.lists(st.fixed_dictionaries({"instruction": texts, "output": texts}), min_size=2, max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def written(tmp_path: Path, name: str, content: bytes | str) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", FORMS)
def test_rows_come_back_from_every_form(tmp_path: Path, name: str) -> None:
    found = open_rows(written(tmp_path, name, FORMS[name](ROWS)))
    first = list(found)
    assert [row.value for row in first] == ROWS
    assert list(found) == first  # a second reading is the same
    assert all(row.where.startswith(name) for row in first)
    assert len({row.where for row in first}) == len(ROWS)
    assert read_source(tmp_path / name).sha256 == read_source(written(tmp_path, "plain.json", one_list(ROWS))).sha256


@given(rows=rows_of_text, name=st.sampled_from(sorted(FORMS)))
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back_from_every_form(rows: list[dict[str, str]], name: str) -> None:
    if name.endswith(".zip"):  # those are read from disk
        return
    assert parse_rows(FORMS[name](rows), name) == rows


@given(rows=st.lists(st.dictionaries(texts, values, max_size=4), max_size=5), piece=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_any_json_comes_back_however_it_is_cut_into_pieces(rows: list[dict[str, Any]], piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE", piece)
        assert parse_rows(one_list(rows), "rows.json") == rows
        assert parse_rows(json.dumps(rows, indent=1).encode(), "rows.json") == rows
        if len(rows) > 1:
            assert parse_rows(lines(rows), "rows.json") == rows
            assert parse_rows("".join(json.dumps(row, indent=1) for row in rows).encode(), "rows.json") == rows


@pytest.mark.parametrize("piece", [1, 2, 3])
def test_values_of_any_kind_are_not_cut_apart(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PIECE", piece)
    rows = [12345, -1.5e10, True, None, "abc", [], {}, [[1234]]]
    assert parse_rows(one_list(rows), "rows.json") == rows


@given(rows=rows_of_text, piece=st.integers(1, 9), end=st.sampled_from(["\n", "\r\n", "\r"]))
@settings(max_examples=60, deadline=None)
def test_any_table_comes_back_however_it_is_cut_into_pieces(rows: list[dict[str, str]], piece: int, end: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE", piece)
        assert parse_rows(table(end=end)(rows), "rows.csv") == rows


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("rows.json", '[{"a": "x"},\n {"a": "y"}]', ["rows.json row 0", "rows.json row 1"]),
        ("rows.jsonl", '\n{"a": "x"}\n\n{"a": "y"}', ["rows.jsonl line 2", "rows.jsonl line 4"]),
        ("rows.csv", 'a,b\n"x\nx",1\n\ny,2\n', ["rows.csv line 2", "rows.csv line 5"]),
        ("rows.csv", 'sep=,\r\na,b\r\n"x\r\nx",1\r\ny,2', ["rows.csv line 3", "rows.csv line 5"]),
    ],
)
def test_each_row_says_where_it_stands(tmp_path: Path, name: str, content: str, places: list[str]) -> None:
    assert [row.where for row in open_rows(written(tmp_path, name, content))] == places


def test_a_row_of_an_archive_says_where_it_stands(tmp_path: Path) -> None:
    archive = written(tmp_path, "a.zip", zipped({"in/rows.parquet": parquet(ROWS)}))
    assert [row.where for row in open_rows(archive)][-1] == "a.zip/in/rows.parquet row 2"


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, 1),
        ({"thread": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, 1),
        ({"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]}, 1),
        ({"instruction": "a", "output": "b", "data": [1]}, 1),
        ({"article": "a", "summary": "b", "length": 3}, 1),
        ({"messages": [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]}, 2),
        ({"text": ["a", "b", "c"]}, 3),
        ({"meta": {"n": 2}, "train": [{"instruction": "a"}, {"instruction": "b"}], "tags": ["x"]}, 2),
        ({"shown": [{"role": "user", "content": "a"}], "rows": [{"instruction": "a"}, {"instruction": "b"}]}, 2),
        ({"data": []}, 0),
        ({"instruction": {"3": "a", "5": "b"}}, 2),
        ({"7": {"instruction": "a"}, "9": {"instruction": "b"}}, 2),
    ],
)
def test_one_object_is_a_row_or_a_table_or_holds_one_list(tmp_path: Path, content: Any, rows: int) -> None:
    assert len(read_rows(written(tmp_path, "rows.json", json.dumps(content)))) == rows
    assert len(read_rows(written(tmp_path, "rows.json", json.dumps(content, indent=2)))) == rows


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("\ufeffa;b\n1,5;2\n3,5;4\n", [{"a": "1,5", "b": "2"}, {"a": "3,5", "b": "4"}]),
        ("a, b\nx, y\n", [{"a": "x", "b": "y"}]),
        ('a, b\n"x, 1", "y"\n', [{"a": "x, 1", "b": "y"}]),
        ("a|b\nx|y\n", [{"a": "x", "b": "y"}]),
        (",a,b\n0,x,y\n1,z,w\n", [{"a": "x", "b": "y"}, {"a": "z", "b": "w"}]),
        ("text\nHello\n\nyou\n", [{"text": "Hello"}, {"text": "you"}]),
        ('a,b\n"say \\"hi\\", you",y\n', [{"a": 'say "hi", you', "b": "y"}]),
        ("a,b\r1,2\r3,4", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
        ("[id],text\n1,x\n2,y\n", [{"[id]": "1", "text": "x"}, {"[id]": "2", "text": "y"}]),
    ],
)
def test_tables_as_others_write_them(tmp_path: Path, content: str, rows: list[dict[str, str]]) -> None:
    assert read_rows(written(tmp_path, "rows.csv", content)) == rows


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.csv", one_list(ROWS), "holds JSON, whatever its name says"),
        ("rows.parquet", lines(ROWS), "holds JSON, whatever its name says"),
        ("rows.json", parquet(ROWS), "holds Parquet, whatever its name says"),
        ("rows.jsonl", table()(ROWS), "holds CSV with the columns instruction, input, output"),
        ("rows.txt", table()(ROWS), "holds CSV with the columns instruction, input, output"),
        ("rows.json", FORMS["lines.jsonl.gz"](ROWS), "is packed with gzip, whatever its name says"),
        ("rows.json.gz", one_list(ROWS), "is not packed with gzip, whatever its name says"),
        ("rows.csv", table(";")(ROWS), "its cells are separated by semicolons"),
        ("rows.tsv", table()(ROWS), "its cells are separated by commas"),
        ("rows.csv", b",a\n0,x\n", "its first column has no name"),
        ("rows.csv", b'a,b\n"\\"",c\n', "with a backslash"),
        ("rows.jsonl", lines(ROWS).decode().encode("utf-16-le"), "is UTF-16-LE without a byte order mark"),
    ],
)
def test_what_a_name_does_not_say_is_said(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (note,) = open_rows(written(tmp_path, name, content)).notes
    assert says in note
    assert name in note


@pytest.mark.parametrize("name", ["list.json", "lines.json", "list.jsonl", "commas.csv", "tabs.tsv", "table.arrow"])
def test_nothing_is_said_where_the_name_is_right(tmp_path: Path, name: str) -> None:
    assert not open_rows(written(tmp_path, name, FORMS[name](ROWS))).notes


def test_what_is_in_an_archive_and_not_read_is_said(tmp_path: Path) -> None:
    files = {"b.jsonl": lines(ROWS), "README.md": b"rows", "dataset_info.json": b"{}", "__MACOSX/._b.jsonl": b"x"}
    path = written(tmp_path, "a.zip", zipped(files))
    assert open_rows(path).notes == (
        f"{path}: read from the archive: b.jsonl",
        f"{path}: passed over: README.md, dataset_info.json",
    )


def test_prose_is_not_taken_for_a_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither JSON nor JSONL"):
        read_rows(written(tmp_path, "a.txt", "It is late, my friend.\nGo home, if you please.\n"))


def test_the_csv_librarys_limit_does_not_hold(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", "a,b\n" + "x" * 200_000 + ",y\n")
    assert len(read_rows(path)[0]["a"]) == 200_000


@pytest.mark.parametrize("name", ["list.json", "lines.jsonl", "commas.csv", "lines.jsonl.gz", "table.parquet"])
def test_no_more_is_held_than_a_few_rows(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PIECE", 1 << 14)
    many = [{"instruction": f"{number} " + "word " * 20, "output": str(number)} for number in range(20_000)]
    content = FORMS[name](many)
    assert len(content) > 100_000
    found = open_rows(written(tmp_path, name, content))
    del content
    tracemalloc.start()
    count = sum(1 for _ in found)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == len(many)
    assert peak < 1_500_000  # all rows are ten times as much


def test_progress_goes_from_nothing_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PIECE", 16)
    for name in ("list.json", "lines.jsonl.gz", "table.parquet", "both.zip", "table.zip"):
        written(tmp_path, name, FORMS[name](ROWS))
    found = open_rows(tmp_path)
    shown: list[tuple[int, int | None]] = []
    assert len(list(found.watched(lambda have, total: shown.append((have, total))))) == 15
    assert [have for have, _ in shown] == sorted(have for have, _ in shown)
    assert shown[-1] == (found.size, found.size)


def test_long_reading_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("instil.data.files.rows.LONG", 10)
    monkeypatch.setattr("instil.downloads.QUIET_FOR", -1.0)
    assert len(read_rows(written(tmp_path, "rows.jsonl", lines(ROWS)))) == 3
    assert "reading" in capsys.readouterr().err


def test_the_first_bytes_decide_and_not_all_of_them(tmp_path: Path) -> None:
    text_ = io.StringIO()
    writer = csv.writer(text_)
    writer.writerow(["instruction", "output"])
    writer.writerows([["a b; c " * 50, "d"]] * 400)
    content = text_.getvalue()
    assert len(content) > kinds.HEAD > csv_rows.LOOKED_AT
    assert len(read_rows(written(tmp_path, "rows.csv", content))) == 400
    assert len(read_rows(written(tmp_path, "rows.dat", content))) == 400  # told by its content alone


PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("name", "content"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_the_examples_of_the_page_hold_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    assert read_rows(written(tmp_path, name, content)) == [
        {"instruction": "Spell it right.", "input": "freind", "output": "friend"},
        {"instruction": "Name a colour.", "input": "", "output": 'Blue, "of course".'},
    ]


def test_the_page_says_what_its_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(program, {})
    assert capsys.readouterr().out.strip() == program.rpartition("# ")[2].strip()


@pytest.mark.parametrize("suffix", sorted(kinds.SUFFIXES))
def test_the_page_or_the_message_names_every_suffix(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match=re.escape(suffix)):
        read_rows(tmp_path)


@pytest.mark.parametrize("key", sorted(ROW_KEYS))
def test_what_alone_makes_a_row_makes_one_of_a_file(key: str) -> None:
    """The keys are those of `instil.data.shapes.names`, whichever of them somebody adds there."""
    assert rows_of_document({key: "a", "n": 1}, "x.json") == [{key: "a", "n": 1}]
    held = [{"question": "a", "answer": "b"}]
    alone = key in ("text", "messages", "conversations")
    assert rows_of_document({key: "a", "rows": held}, "x.json") == ([{key: "a", "rows": held}] if alone else held)


@pytest.mark.parametrize(
    "row",
    [
        {"query": "a", "response": "b", "history": [{"role": "user", "content": "c"}]},
        {"prompt": "a", "completion": "b", "examples": [{"question": "c", "answer": "d"}]},
        {"QUERY": "a", "RESPONSE": "b", "SPANS": [{"TEXT": "c"}]},
        {"article": "a", "summary": "b", "parts": [{"name": "c"}]},
        {"prompt": "a", "chosen": "b", "rejected": "c", "scores": [{"of": "d"}]},
        {"instruction": "a", "tools": [{"type": "function"}]},
    ],
)
def test_one_row_of_any_shape_is_a_row(row: dict[str, Any]) -> None:
    assert rows_of_document(row, "x.json") == [row]
