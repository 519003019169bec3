"""What cannot be read is refused in one message that names the file, the place, what was found and what was wanted."""

from __future__ import annotations

import builtins
import datetime
import decimal
import gzip
import io
import json
import os
import pickle
import random
import sqlite3
import threading
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instil.data.files import arrow_rows, csv_rows, packing, text
from instil.data.files.rows import open_rows, parse_rows, read_rows
from instil.errors import DataError
from tests.data.files.writers import FORMS, feather, lines, one_list, parquet, zipped, zstd

ROWS = [{"instruction": "Say hi.", "output": f"Hi {number}."} for number in range(5)]


def refused(tmp_path: Path, name: str, content: bytes | str) -> str:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def database(tmp_path: Path) -> bytes:
    path = tmp_path / "made.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table rows (instruction text)")
    connection.close()
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234567\n", "1,234,567 bytes"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        ("a.json", b"\r\n <!DOCTYPE html>\n<html>", "a web page (HTML)"),
        ("a.csv", b"<html><body>404</body></html>", "a web page (HTML)"),
        ("a.json", "<HTML>".encode("utf-16"), "a web page (HTML)"),
        ("a.xml", b'<?xml version="1.0"?><rows/>', "is XML"),
        ("a.pdf", b"%PDF-1.7\n%\xe2\xe3", "a PDF"),
        ("a.json", b"\x89PNG\r\n\x1a\n\0\0", "an image (PNG)"),
        ("a.json", b"\xff\xd8\xff\xe0\0\x10JFIF", "an image (JPEG)"),
        ("a.pkl", pickle.dumps(ROWS), "a pickle, which can run any code"),
        ("a.json", pickle.dumps(ROWS, protocol=2), "a pickle, which can run any code"),
        ("a.xlsx", zipped({"[Content_Types].xml": b"", "xl/workbook.xml": b""}), "an Excel or Word file"),
        ("a.ods", zipped({"mimetype": b"", "content.xml": b""}), "an OpenDocument file"),
        ("a.pt", zipped({"archive/data.pkl": b"", "archive/version": b""}), "tensors or arrays"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0", "an old Excel or Word file"),
        ("a.gguf", b"GGUF\3\0\0\0", "--model"),
        ("a.safetensors", (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32"', "--model"),
        ("a.tar", b"rows.json".ljust(257, b"\0") + b"ustar\0", "a tar archive"),
        ("a.tar.gz", gzip.compress(b"rows.json".ljust(257, b"\0") + b"ustar\0"), "a tar archive"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive"),
        ("a.feather", b"FEA1\0\0\0\0", "Feather file of version 1"),
        ("a.json", bytes(range(1, 256)) * 4 + b"\0\0", "no text"),
        ("a.json", b"", "the file is empty"),
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"\xef\xbb\xbf\r\n", "the file is empty"),
        ("a.jsonl.gz", gzip.compress(b""), "the file is empty"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(gzip.compress(lines(ROWS)))), "packed 3 times"),
        ("a.json", str(ROWS), "Python's own print is not JSON"),
        ("a.jsonl", "\n".join(map(str, ROWS)), "Python's own print is not JSON"),
        ("a.rtf", r"{\rtf1\ansi hello}", "a text document (RTF)"),
    ],
)
def test_what_holds_no_rows_is_named(tmp_path: Path, name: str, content: bytes | str, says: str) -> None:
    assert says in refused(tmp_path, name, content)


def test_a_database_is_named(tmp_path: Path) -> None:
    assert "an SQLite database" in refused(tmp_path, "rows.json", database(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", one_list(ROWS)[:-9], "is the file cut off?"),
        ("a.json", one_list(ROWS)[:-1], "is the file cut off?"),
        ("a.jsonl", lines(ROWS)[:-9], "line 5 is not a JSON object"),
        ("a.jsonl", lines(ROWS)[:-9], "is the file cut off?"),
        ("a.csv", 'a,b\n"x,1\ny,2\n', "a quote opened in the row that begins in line 2 is never closed"),
        ("a.jsonl.gz", gzip.compress(lines(ROWS))[:-9], "its gzip data end too early"),
        ("a.jsonl.zst", zstd(lines(ROWS))[:-9], "its zstd data end too early"),
        ("a.parquet", parquet(ROWS)[:-9], "a Parquet file that is damaged or cut off"),
        ("a.feather", feather(ROWS)[:-9], "an Arrow file that is damaged or cut off"),
        ("a.zip", zipped({"a.jsonl": lines(ROWS)})[:-9], "a zip archive that is damaged or cut off"),
        ("a.jsonl", "é".encode()[:1], "is the file cut off?"),
    ],
)
def test_what_is_cut_off_is_said_to_be(tmp_path: Path, name: str, content: bytes | str, says: str) -> None:
    assert says in refused(tmp_path, name, content)


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 1 << 20])
@pytest.mark.parametrize(
    ("mark", "codec", "bad"),
    [(b"", "utf-8", b"\xe9 "), (b"\xef\xbb\xbf", "utf-8", b"\xff"), (b"\xff\xfe", "utf-16-le", b"\x00\xdc")],
)
def test_a_byte_that_is_no_text_is_named_wherever_it_stands(
    tmp_path: Path, piece: int, mark: bytes, codec: str, bad: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "PIECE", piece)
    before = mark + '{"a": "你好"}\n{"a": "Grüße"}\n{"a": "'.encode(codec)
    said = refused(tmp_path, "a.jsonl", before + bad + 'x"}\n'.encode(codec))
    wrong = next(at for at, byte in enumerate(bad) if byte > 127 or codec == "utf-16-le")
    assert f"byte {len(before) + wrong} (0x{bad[wrong]:02x}) in line 3 is not {codec.upper()}" in said


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"../a.jsonl": b"{}"}, "names files outside of itself"),
        ({"/etc/a.jsonl": b"{}"}, "names files outside of itself"),
        ({"C:\\a.jsonl": b"{}"}, "names files outside of itself"),
        ({"b/..\\..\\a.jsonl": b"{}"}, "names files outside of itself"),
        ({"a.zip": zipped({"a.jsonl": b"{}"})}, "a zip archive inside of another"),
        ({"a.zip": zipped({"a.jsonl": b"{}"}), "a.jsonl": lines(ROWS)}, "a zip archive inside of another"),
        ({"a.txt": b"a", "b.md": b"b"}, "without a data file"),
        ({"__MACOSX/._a.jsonl": b"x", ".DS_Store": b"y"}, "with nothing in it"),
        ({"a.jsonl": lines(ROWS), "b.csv": b"%PDF-1.7"}, "b.csv: is a PDF"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    assert says in refused(tmp_path, "a.zip", zipped(files))


def test_an_archive_with_a_password_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped({"a.jsonl": lines(ROWS)}))
    content[6] |= 1  # in the member's own head
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # and in the list at the end
    assert "a password" in refused(tmp_path, "a.zip", bytes(content))


def test_a_damaged_member_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped({"a.jsonl": lines(ROWS * 50)}))
    content[60:70] = b"\xff" * 10
    assert "damaged zip data" in refused(tmp_path, "a.zip", bytes(content))


@pytest.mark.parametrize("packed", ["gz", "zst", "zip"])
def test_a_bomb_is_not_unpacked(tmp_path: Path, packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "BOMB_SIZE", 1 << 20)
    content = b'{"instruction": "a"}\n' * 500_000
    bomb = {"gz": gzip.compress, "zst": zstd, "zip": lambda c: zipped({"a.jsonl": c})}[packed](content)
    assert "zip bomb" in refused(tmp_path, f"a.jsonl.{packed}", bomb)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Say hi.,Hi there.\nx,y\n", "'Say hi.' is a text, not a name"),
        ("1,2\n3,4\n", "'1' is a number"),
        ("a,,c\n1,2,3\n", "'' is empty"),
        ("a,b,a\n1,2,3\n", "'a' stands there twice"),
        ('"a\nb",c\n1,2\n', "is a text, not a name"),
        ("x" * 121 + ",b\n1,2\n", "is a text, not a name"),
    ],
)
def test_a_table_without_a_header_is_refused(tmp_path: Path, content: str, says: str) -> None:
    said = refused(tmp_path, "a.csv", content)
    assert says in said
    assert "wanted a first line with the names of the columns" in said


def test_all_rows_of_a_wrong_width_are_named_with_their_lines(tmp_path: Path) -> None:
    said = refused(tmp_path, "a.csv", 'a,b\n1,2\n3\n"x\ny",4\n5,6,7\n')
    assert "have 2 cells" in said
    assert "row 1: has 1 (line 3)" in said
    assert "row 3: has 3 (line 6)" in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('a,b\n1,2\n"x"y,3\n', "line 3: text after a closing quote"),
        ("a,b\n1," + "x" * 2000 + "\n", "a cell of more than 1,000 characters in the row that begins in line 2"),
    ],
)
def test_a_broken_table_is_named_by_its_line(
    tmp_path: Path, content: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_rows, "LARGEST_CELL", 1000)
    before = csv_rows.csv.field_size_limit(1000)
    try:
        assert says in refused(tmp_path, "a.csv", content)
    finally:
        csv_rows.csv.field_size_limit(before)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_row_without_end_is_not_held(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LARGEST_ROW", 1000)
    monkeypatch.setattr(text, "PIECE", 100)
    rows = [{"a": "x"}, {"a": "y" * 5000}]
    content = lines(rows) if name.endswith("l") else one_list(rows)
    assert "1,000 characters" in refused(tmp_path, name, content)


@pytest.mark.parametrize("form", ["list.json", "lines.jsonl", "object.json", "one-after-another.json"])
def test_numbers_that_json_does_not_have_are_named_in_every_form(tmp_path: Path, form: str) -> None:
    rows: list[Any] = [{"a": "x"}, {"a": float("nan")}, {"a": {"b": [1, float("-inf")]}}, {"a": "@"}]
    said = refused(tmp_path, form, FORMS[form](rows).replace(b'"@"', b"1e999"))
    assert "row 1: a: NaN is not JSON" in said
    assert "row 2: a.b[1]: -Infinity is not JSON" in said
    assert "row 3: a: 1e999 is too large a number" in said
    assert "row 0" not in said


@pytest.mark.parametrize("form", ["list.json", "lines.jsonl", "one-after-another.json", "commas.csv", "table.parquet"])
def test_no_row_is_given_once_a_fault_is_known(tmp_path: Path, form: str) -> None:
    rows: list[Any] = [{"a": 1.5, "b": "x"}, {"a": float("inf"), "b": "y"}, {"a": 2.5, "b": "z"}]
    content = FORMS[form](rows).replace(b"inf,y", b"y")
    (tmp_path / form).write_bytes(content)
    seen = []
    with pytest.raises(DataError, match="row 1: "):
        for row in open_rows(tmp_path / form):
            seen.append(row.value["b"])
    assert seen == ["x"]


@pytest.mark.parametrize("after", [b"x", b"]", b',{"a": 1}', b"[]"])
def test_what_follows_a_list_is_refused(tmp_path: Path, after: bytes) -> None:
    assert "Extra data at line 1, column " in refused(tmp_path, "a.json", one_list(ROWS) + after)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"train": [{"a": "b"}], "test": [{"a": "b"}, {"a": "c"}]}, "'test', with 2 entries"),
        ({"a": ["x", "y"], "b": ["z"]}, "columns of unequal length"),
        ({"instruction": {"0": "a", "1": "b"}, "output": {"0": "c"}}, "do not have the same rows"),
        ({"columns": ["a", "b"], "index": [0], "data": [["x"]]}, "row 0: has 1 cells"),
        ({"columns": ["a", "a"], "index": [0], "data": [["x", "y"]]}, "each one once"),
        ({}, "an empty JSON object"),
        ({"error": "gone"}, "no list in it (keys 'error')"),
        ("text", "found a JSON string"),
    ],
)
def test_an_object_that_is_no_table_is_refused(tmp_path: Path, content: Any, says: str) -> None:
    assert says in refused(tmp_path, "a.json", json.dumps(content))


def as_parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def test_values_of_parquet_become_those_of_json(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pairs = pyarrow.array([[("x", 1.5), ("y", None)], []], pyarrow.map_(pyarrow.string(), pyarrow.float64()))
    path.write_bytes(
        as_parquet(
            text=["a", None],
            when=[datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC), None],
            day=[datetime.date(2026, 1, 2), None],
            price=[decimal.Decimal("1.10"), None],
            score=[float("nan"), 0.5],
            old=[b"b\xc3\xbc", None],
            kind=pyarrow.array(["u", "v"]).dictionary_encode(),
            pairs=pairs,
            deep=[[{"n": float("nan"), "d": decimal.Decimal("2.0")}], None],
        )
    )
    found = open_rows(path)
    first, second = (row.value for row in found)
    assert first == {
        "text": "a", "when": "2026-01-02 03:00:00.000000Z", "day": "2026-01-02", "price": "1.10", "score": None,
        "old": "bü", "kind": "u", "pairs": {"x": 1.5, "y": None}, "deep": [{"n": None, "d": "2.0"}],
    }  # fmt: skip
    assert second == {
        "text": None, "when": None, "day": None, "price": None, "score": 0.5, "old": None, "kind": "v", "pairs": {},
        "deep": None,
    }  # fmt: skip
    json.dumps([first, second], allow_nan=False)
    (note,) = found.notes
    assert "read as text: 'when' (timestamp[us, tz=UTC]), 'day' (date32[day]), 'price' (decimal128(3, 2))" in note
    assert "'kind'" not in note
    assert "'text'" not in note


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"a": ["x"], "image": [b"\xff\xd8\xff"]}, "column 'image' holds bytes that are no text"),
        ({"a": ["x"], "image": [{"bytes": b"\xff\xd8\xff", "path": "p"}]}, "column 'image' holds bytes"),
        ({"a": ["x"], "took": [datetime.timedelta(1)]}, "column 'took' is of the type duration[us]"),
        ({"a": ["x", "y"], "n": [1.0, float("inf")]}, "row 1: n: inf is not JSON"),
        ({"a": ["x"], "n": [[1.0, float("-inf")]]}, "row 0: n[1]: -inf is not JSON"),
    ],
)
def test_columns_that_json_has_no_place_for_are_named(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    assert says in refused(tmp_path, "a.parquet", as_parquet(**columns))


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    file = io.BytesIO()
    found = pyarrow.Table.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["a", "a"])
    with pyarrow.ipc.new_stream(file, found.schema) as writer:
        writer.write_table(found)
    assert "the column 'a' twice" in refused(tmp_path, "a.arrow", file.getvalue())


@pytest.mark.parametrize("form", ["table.parquet", "table.arrow", "lines.jsonl.zst"])
def test_without_pyarrow_the_command_is_named_that_installs_it(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = FORMS[form](ROWS)
    real = builtins.__import__

    def without(name: str, *args: Any, **named: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'instil[data]'" in (said := refused(tmp_path, form, content))
    assert "\n" not in said


def test_only_the_bad_file_of_several_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "bad.jsonl").write_bytes(b"%PDF-1.7")
    with pytest.raises(DataError, match=r"bad\.jsonl: is a PDF") as caught:
        read_rows(tmp_path)
    assert "good.jsonl" not in str(caught.value)
    (tmp_path / "worse.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of its 3 files cannot be read:\n.*bad.jsonl: is a PDF.*\n.*worse.jsonl"):
        read_rows(tmp_path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read_rows("/dev/null")
    with pytest.raises(DataError, match="no such file"):
        read_rows("x" * 5000)
    with pytest.raises(DataError, match="no such file"):
        read_rows("a\0b")


def test_a_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(lines(ROWS)), daemon=True)
    writer.start()
    found = open_rows(pipe)
    writer.join()
    assert [row.value for row in found] == ROWS
    assert [row.value for row in found] == ROWS


@given(form=st.sampled_from(sorted(FORMS)), seed=st.integers(0, 10**6), way=st.sampled_from(["cut", "flip", "insert"]))
@settings(max_examples=250, deadline=None)
def test_damaged_bytes_are_read_or_refused_and_nothing_else(form: str, seed: int, way: str) -> None:
    chance = random.Random(seed)
    content = bytearray(FORMS[form](ROWS))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content))
        if way == "cut":
            del content[at:]
            break
        if way == "flip":
            content[at] = chance.randrange(256)
        else:
            content[at:at] = chance.choice(
                [b"\0", b'"', b"\n", b",", b"[", b"{", b"\xff", b"}", bytes([chance.randrange(256)])]
            )
    if not content:
        return
    whole = None
    try:
        whole = parse_rows(bytes(content), form)
    except DataError as error:
        assert form in str(error)
    try:
        left = parse_rows(bytes(content), form, skip_bad=True)
    except DataError as error:
        assert form in str(error)
        assert whole is None  # what leaves rows out refuses nothing that is read as it is
    else:
        assert whole is None or left == whole


def test_members_of_damaged_archives_are_read_or_refused(tmp_path: Path) -> None:
    whole = zipped({"a.jsonl": lines(ROWS), "b.csv": b"a,b\n1,2\n"})
    path = tmp_path / "a.zip"
    chance = random.Random(7)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            read_rows(path)
        except DataError as error:
            assert "a.zip" in str(error)


def test_a_member_may_be_stored_and_archives_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jsonl", lines(ROWS))
    assert read_rows(path) == ROWS
    assert "with nothing in it" in refused(tmp_path, "b.zip", zipped({}))


# What a fuzzer found.


def test_a_first_line_of_odd_spaces(tmp_path: Path) -> None:
    assert "neither JSON nor JSONL" in refused(tmp_path, "a.json", "\x1c\n\x1d")


def test_a_member_without_a_name(tmp_path: Path) -> None:
    content = bytearray(zipped({"a": lines(ROWS)}))
    listed = content.rindex(b"PK\x01\x02")
    content[listed + 28], content[listed + 32] = 0, 1  # its name becomes its comment
    assert "a file in it has no name" in refused(tmp_path, "a.zip", bytes(content))


def test_offsets_that_lead_outside_of_an_arrow_file(tmp_path: Path) -> None:
    file, found = io.BytesIO(), pyarrow.table({"a": ["ab", "cd"]})
    with pyarrow.ipc.new_stream(file, found.schema) as writer:
        writer.write_table(found)
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 2, 4))
    assert offsets in file.getvalue()
    for wrong in (b"\xff\xff\xff\x7f", b"\0\0\0\x80"):
        content = file.getvalue().replace(offsets, offsets[:4] + wrong + offsets[8:])
        assert "an Arrow stream that is damaged" in refused(tmp_path, "a.arrow", content)


def test_a_message_of_a_library_is_not_repeated_at_any_length(tmp_path: Path) -> None:
    content = zipped({"a" * 3000 + ".jsonl": lines(ROWS)})
    said = refused(tmp_path, "a.zip", content.replace(b"a" * 3000, b"b" + b"a" * 2999, 1))
    assert len(said.replace("a" * 3000, "").replace(str(tmp_path), "")) < 400


def nulls(count: int) -> Any:
    """So many nulls, which take no bytes in a file."""
    return pyarrow.Array.from_buffers(pyarrow.null(), count, [None])


@pytest.mark.parametrize(
    "column",
    [
        nulls(3_000_000),
        pyarrow.ListArray.from_arrays(pyarrow.array([0, 3_000_000], pyarrow.int32()), nulls(3_000_000)),
        pyarrow.MapArray.from_arrays(
            pyarrow.array([0, 1], pyarrow.int32()),
            pyarrow.array(["x"]),
            pyarrow.FixedSizeListArray.from_arrays(nulls(3_000_000), 3_000_000),
        ),
        pyarrow.StructArray.from_arrays([pyarrow.FixedSizeListArray.from_arrays(nulls(3_000_000), 3_000_000)], ["b"]),
    ],
    ids=["rows", "a list", "a map of lists", "an object with a list"],
)
def test_values_that_no_bytes_of_an_arrow_file_hold(tmp_path: Path, column: Any) -> None:
    file, batch = io.BytesIO(), pyarrow.RecordBatch.from_arrays([column], names=["a"])
    with pyarrow.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
    assert "values or more" in refused(tmp_path, "a.arrow", file.getvalue())


def test_nulls_beside_texts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_rows, "MANY", 10)
    columns = {"output": ["a"] * 30, "a": nulls(30), "b": [[None] * 9] * 30, "c": [{"d": None}, None] * 15}
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    assert len(parse_rows(file.getvalue(), "a.parquet")) == 30


def test_a_zip_archive_whose_inner_name_has_no_utf_8(tmp_path: Path) -> None:
    content = zipped({"rows-é.jsonl": lines(ROWS)})
    at = content.index("é".encode())
    assert "cannot be read: 'utf-8' codec" in refused(tmp_path, "a.zip", content[:at] + b"\xff" + content[at + 1 :])
