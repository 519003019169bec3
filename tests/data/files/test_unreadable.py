"""Rows that cannot be read are left out by number, place and reason where that is asked for; else they are refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.data.files import text
from instil.data.files.rows import open_rows, parse_rows, read_rows
from instil.data.sources import Source, read_source
from instil.errors import DataError
from instil.tasks.pairs.source import read_pairs
from tests.data.files.writers import lines, one_list, parquet

ROWS = [{"instruction": f"Say {number}, caf\u00e9.", "output": f"It is {number}."} for number in range(5)]
LINES = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
ASKED = "leave it out with --set data.skip_bad=true"


def written(tmp_path: Path, content: bytes, name: str = "rows.jsonl") -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def with_line(at: int, line: bytes) -> bytes:
    return b"\n".join([*LINES[:at], line, *LINES[at:]])


def left_out(source: Source) -> list[tuple[int, str, str]]:
    return [(one.row, one.where, one.reason) for one in source.rejected]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            b'{"instruction": "Say hi.", "output"',
            "is not a JSON object: Expecting ':' delimiter at column 36; is the file",
        ),
        (b'{"instruction": "Say hi', "Unterminated string starting at at column 17; is the file cut off?"),
        (b"oops", "is not a JSON object: Expecting value at column 1"),
        (b'{"instruction": "a", "output": "b"}, {}', "Extra data at column 36"),
        (b"\0" * 40, "is not a JSON object"),
        (b'{"instruction": "a", "output": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"instruction": "a", "output": "b", "n": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
        (b'{"instruction": "a", "output": NaN}', "output: NaN is not JSON"),
        (b'{"output": "a", "output": "b", "n": Infinity}', "it has the key 'output' twice; n: Infinity is not JSON"),
        (b'{"instruction": "caf\xe9 au lait", "output": "b"}', "byte 21 of it (0xe9) is not UTF-8"),
        (b'{"instruction": "caf\xc3\xa9 \xc3", "output": "b"}', "byte 24 of it (0xc3) is not UTF-8"),
        (b"\xff\xfe", "byte 1 of it (0xff) is not UTF-8"),
    ],
    ids="cut-before-colon cut-in-text words two-objects nul deep digits nan twice latin-1 half-letter mark".split(),
)
@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_line_that_cannot_be_read_is_left_out(tmp_path: Path, line: bytes, says: str, at: int) -> None:
    if at == 0 and line[:1] in (b"\xff", b"\0"):
        pytest.skip("at a file's beginning they say how it is encoded")
    path = written(tmp_path, with_line(at, line))
    source = read_source(path, skip_bad=True)
    assert [(row.row, row.output) for row in source.examples] == [
        (number + (number >= at), row["output"]) for number, row in enumerate(ROWS)
    ]
    ((row, where, reason),) = left_out(source)
    assert (row, where) == (at, f"rows.jsonl line {at + 1}")
    assert says in reason
    assert source.origins.of(at) == where
    with pytest.raises(DataError):
        read_source(path)


def test_without_being_asked_for_it_is_refused_and_the_setting_named(tmp_path: Path) -> None:
    path = written(tmp_path, with_line(3, b'{"instruction": "Say'))
    with pytest.raises(DataError, match=rf"line 4 is not a JSON object: Unterminated .* off\? Mend it, or {ASKED}$"):
        read_source(path)
    with pytest.raises(DataError, match=rf"line 4 is not .*Extra data at column 4; mend it, or {ASKED}$"):
        read_source(written(tmp_path, with_line(3, b"{} {}")))
    path = written(tmp_path, with_line(3, b'{"instruction": "Say'))
    with pytest.raises(DataError, match=r"cut off\?$"):
        read_source(path, need_output=False, offers=())
    with pytest.raises(DataError, match=r"row 1: .*NaN is not JSON\nmend them, or leave them out with --set data.skip"):
        read_source(written(tmp_path, with_line(1, b'{"instruction": NaN}')))
    with pytest.raises(DataError, match=r"not JSON$"):  # no row would be left
        read_source(written(tmp_path, b'{"instruction": NaN}\n{"instruction": NaN}'))
    at = sum(len(line) + 1 for line in LINES) + 17
    with pytest.raises(DataError, match=rf"byte {at} \(0xe9\) in line 6 is not UTF-8; .*save the file as UTF-8"):
        read_source(written(tmp_path, with_line(5, b'{"instruction": "\xe9"}')))


def test_many_lines_many_places_and_what_is_no_row_beside_them(tmp_path: Path) -> None:
    """Each is counted and named; blank lines are none, and rows of another kind are rejected as ever."""
    content = b"\n".join(
        [LINES[0], b"", b"{", LINES[1], b"[1, 2]", b'{"instruction": "No answer."}', b"\xff", LINES[2]]
    )
    source = read_source(written(tmp_path, content + b'\n{"instr'), skip_bad=True)
    assert [example.row for example in source.examples] == [0, 2, 6]
    assert [(row, where.split()[-1]) for row, where, _ in left_out(source)] == [
        (1, "3"), (3, "5"), (4, "6"), (5, "7"), (7, "9"),
    ]  # fmt: skip
    assert len(source.skipped) == 5


def test_where_no_line_can_be_read_the_file_is_refused(tmp_path: Path) -> None:
    for content in (b"{\n{\n{", b"\xff" * 9 + b"\n{", b'{"instruction": "a"'):
        with pytest.raises(DataError):
            read_source(written(tmp_path, content), skip_bad=True)
    path = written(tmp_path, b'{"a": NaN}\n{"a": NaN}')
    with pytest.raises(DataError, match="none of its 2 rows can be used:\n  rows 0, 1: a: NaN is not JSON"):
        read_source(path, skip_bad=True)
    path = written(tmp_path, b'{"a": 1, "b": 2}\noops\n{"a": 1, "b": 2}')
    with pytest.raises(
        DataError,
        match=r"found the keys\n  a, b \(2 rows, the first is row 0\)\n  no keys \(1 row that cannot be read\)",
    ):
        read_source(path, skip_bad=True)


@pytest.mark.parametrize("codec", ["utf-16", "utf-32", "utf-8-sig"])
def test_bytes_of_other_encodings(tmp_path: Path, codec: str) -> None:
    made = with_line(2, LINES[0]).decode().encode(codec)
    head = (
        len("\n".join(line.decode() for line in LINES[:2]).encode(codec))
        + len("\n".encode(codec))
        - len("".encode(codec))
    )
    width = {"utf-16": 2, "utf-32": 4, "utf-8-sig": 1}[codec]
    bad = b"\0\xd8\0\0"[:width] if width > 1 else b"\xff"
    at = head + 2 * width
    source = read_source(written(tmp_path, made[:at] + bad + made[at + width :]), skip_bad=True)
    ((row, where, reason),) = left_out(source)
    assert (row, where) == (2, "rows.jsonl line 3")
    assert reason.startswith(f"byte {2 * width + 1} of it (0x{bad[0]:02x}) is not UTF-")
    assert len(source) == 5


@given(st.binary(max_size=12), st.integers(0, 40), st.integers(1, 9))
def test_whatever_a_line_holds_the_others_are_read(odd: bytes, at: int, piece: int) -> None:
    """Bytes put anywhere into a line, which may cut a character; however the file is read in pieces."""
    odd = odd.replace(b"\n", b"").replace(b"\r", b"")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE", piece)
        middle = LINES[2][:at] + odd + LINES[2][at:]
        path = written(Path(folder), b"\n".join([*LINES[:2], middle, *LINES[3:]]))
        source = read_source(path, skip_bad=True)
    found = {example.row: example.output for example in source.examples}
    assert {row: found.pop(row, "") for row in (0, 1, 3, 4)} == {row: ROWS[row]["output"] for row in (0, 1, 3, 4)}
    assert set(found) | {row for row, _, _ in left_out(source)} == ({2} if middle.strip() else set())


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"rows": ROWS, "version": 1}, indent=1),
        '{"rows": [\n' + ",\n".join(map(json.dumps, ROWS)) + "\n]}",
        '{"version":\n{"a": 1}\n, "rows": ' + json.dumps(ROWS) + "}",
        json.dumps(ROWS, indent=1),
        "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]",
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        json.dumps({"instruction": {str(n): row["instruction"] for n, row in enumerate(ROWS)},
                    "output": {str(n): row["output"] for n, row in enumerate(ROWS)}}, indent=1),
    ],
)  # fmt: skip
def test_what_is_whole_is_read_as_ever_and_what_is_cut_off_is_refused(tmp_path: Path, content: str) -> None:
    path = written(tmp_path, content.encode(), "rows.json")
    whole = read_source(path, skip_bad=True)
    assert whole == read_source(path)
    assert len(whole) == 5
    for end in (-1, -3, len(content) // 2):
        with pytest.raises(DataError, match=r"(cut off|not valid JSON|neither JSON)"):
            read_source(written(tmp_path, content[:end].encode(), "rows.json"), skip_bad=True)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("form", ["list", "key", "objects"])
def test_rows_of_a_list_that_are_no_json(tmp_path: Path, form: str, indent: int | None) -> None:
    odd = [*ROWS[:2], {"instruction": "a", "output": math.nan}, *ROWS[2:]]
    content = {
        "list": json.dumps(odd, indent=indent),
        "key": json.dumps({"rows": odd}, indent=indent),
        "objects": "\n".join(json.dumps(row, indent=1) for row in odd),
    }[form]
    source = read_source(written(tmp_path, content.encode(), "rows.json"), skip_bad=True)
    assert left_out(source) == [(2, "rows.json row 2", "output: NaN is not JSON")]
    assert len(source) == 5
    if form == "key":  # what stands beside the rows is no row's
        beside = json.dumps({"rows": ROWS, "score": math.nan}, indent=indent)
        with pytest.raises(DataError, match=r"NaN is not JSON$"):
            read_source(written(tmp_path, beside.encode(), "rows.json"), skip_bad=True)


def table(*more: str) -> bytes:
    made = io.StringIO()
    writer = csv.DictWriter(made, ["instruction", "output"])
    writer.writeheader()
    writer.writerows(ROWS)
    return made.getvalue().encode() + "".join(more).encode("latin-1")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a,b,c\r\n", "has 3 cells; wanted 2, as the header has"),
        ("alone\r\n", "has 1 cell; wanted 2, as the header has"),
        ("a,b\xe9\r\n", "output: byte 2 of it (0xe9) is not UTF-8"),
        (
            '"\xff\xff",b\xe9\r\n',
            "instruction: byte 1 of it (0xff) is not UTF-8, output: byte 2 of it (0xe9) is not UTF-8",
        ),
        ('a,"never closed', "a quote opened in it is never closed; is the file cut off?"),
    ],
)
def test_rows_of_csv_that_cannot_be_read(tmp_path: Path, line: str, says: str) -> None:
    last = "" if "never" in line else '"Two\r\nlines",b\r\n'
    source = read_source(written(tmp_path, table(line, last), "rows.csv"), skip_bad=True)
    assert left_out(source) == [(5, "rows.csv line 7", says)]
    assert [example.row for example in source.examples] == [*range(5), *([6] if last else [])]
    assert source.origins.of(6) == ("rows.csv line 8" if last else "")
    how = r"save the file as UTF-8" if "UTF" in says else r"leave (it|them) out with --set data\.skip_bad=true$"
    with pytest.raises(DataError, match=how):
        read_source(tmp_path / "rows.csv")


def test_quotes_that_leave_it_open_where_a_row_begins_are_refused(tmp_path: Path) -> None:
    for line, says in [('a,"open\r\n' + "c,d\r\n" * 3, "row that begins in line 7 is never closed"),
                       ('a,"b"c\r\ne,f\r\n', "line 7: text after a closing quote")]:  # fmt: skip
        with pytest.raises(DataError, match=says):
            read_source(written(tmp_path, table(line), "rows.csv"), skip_bad=True)
    with pytest.raises(DataError, match=r"its first line is no header: a byte 12 of it \(0xe9\) is not UTF-8"):
        read_source(written(tmp_path, b"instruction\xe9,output\na,b\n", "rows.csv"), skip_bad=True)


def test_numbers_in_parquet_that_json_does_not_have(tmp_path: Path) -> None:
    odd = [{**row, "score": math.inf if at == 3 else 1.0} for at, row in enumerate(ROWS)]
    source = read_source(written(tmp_path, parquet(odd), "rows.parquet"), skip_bad=True)
    assert left_out(source) == [(3, "rows.parquet row 3", "score: inf is not JSON")]
    assert len(source) == 4


@pytest.mark.parametrize("skip_bad", [False, True])
def test_damaged_pages_of_parquet_are_refused_with_the_rows_before_them(tmp_path: Path, skip_bad: bool) -> None:
    many = [{"instruction": f"Say {at}.", "output": f"It is {at}."} for at in range(4000)]
    path = tmp_path / "rows.parquet"
    made = pyarrow.Table.from_pylist(many)
    pyarrow.parquet.write_table(made, path, row_group_size=1000, use_dictionary=False, compression="gzip")
    content = bytearray(path.read_bytes())
    start = pyarrow.parquet.ParquetFile(path).metadata.row_group(2).column(1).data_page_offset
    content[start + 60 : start + 160] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(DataError, match="a Parquet file that is damaged or cut off after 2,000 rows"):
        read_source(path, skip_bad=skip_bad)


def test_a_packed_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, gzip.compress(b"\n".join(LINES * 50))[:-20], "rows.jsonl.gz")
    with pytest.raises(DataError, match="cut off"):
        read_source(path, skip_bad=True)


def test_several_files_and_pairs(tmp_path: Path) -> None:
    written(tmp_path, one_list(ROWS), "a.json")
    written(tmp_path, with_line(1, b"{") + b"\n", "b.jsonl")
    source = read_source(f"{tmp_path / 'a.json'},{tmp_path / 'b.jsonl'}", skip_bad=True)
    assert [one[:2] for one in left_out(source)] == [(6, "b.jsonl line 2")]
    assert source.origins.of(7) == "b.jsonl line 3"
    pairs = [{"instruction": f"Go {n}.", "chosen": f"Yes {n}.", "rejected": f"No {n}."} for n in range(3)]
    path = written(tmp_path, lines(pairs).rstrip(b"\n") + b'\n{"instruction": ', "pairs.jsonl")
    found = read_pairs(path, skip_bad=True)
    assert [one[:2] for one in left_out(found)] == [(3, "pairs.jsonl line 4")]
    with pytest.raises(DataError, match=ASKED):
        read_pairs(path)


def test_nothing_is_held_and_rows_as_they_are_are_never_unreadable(tmp_path: Path) -> None:
    path = written(tmp_path, with_line(2, b"{"))
    assert next(iter(open_rows(path, skip_bad=True))).value == ROWS[0]
    with pytest.raises(DataError, match="line 3"):
        read_rows(path)


def test_what_can_be_read_is_never_left_out() -> None:
    """Objects that share lines are read one after another, though most lines are objects of their own."""
    one = b'{"instruction": "a", "output": "b"}'
    content = b"\n".join([one + one, one, one, one])
    assert parse_rows(content, "rows.jsonl", skip_bad=True) == parse_rows(content, "rows.jsonl")
    assert len(parse_rows(content, "rows.jsonl")) == 5
