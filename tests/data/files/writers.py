"""Rows written in every form that is read, by those who write them elsewhere: pandas, pyarrow, json, csv, packers."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from typing import Any

import pandas
import pyarrow
import pyarrow.feather
import pyarrow.parquet

Rows = list[dict[str, str]]


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def one_list(rows: list[Any]) -> bytes:
    return json.dumps(rows, ensure_ascii=False).encode()


def by_pandas(orient: Any) -> Callable[[Rows], bytes]:
    def write(rows: Rows) -> bytes:
        frame = pandas.DataFrame(rows, dtype="object")
        return str(frame.to_json(orient=orient, force_ascii=False)).encode()

    return write


def table(delimiter: str = ",", end: str = "\r\n", encoding: str = "utf-8") -> Callable[[Rows], bytes]:
    def write(rows: Rows) -> bytes:
        text = io.StringIO(newline="")
        returns = any(
            set("\r\n") & set(str(cell)) for row in rows for cell in row.values()
        )  # which Python 3.11 does not quote
        quoting = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end, quoting=quoting)
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode(encoding)

    return write


def parquet(rows: Rows) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def feather(rows: Rows) -> bytes:
    file = io.BytesIO()
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def arrow_stream(rows: Rows) -> bytes:
    file, found = io.BytesIO(), pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(file, found.schema) as writer:
        writer.write_table(found, max_chunksize=2)
    return file.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def zstd(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


def columns(rows: Rows) -> bytes:
    return json.dumps({key: [row[key] for row in rows] for key in rows[0]}).encode()


FORMS: dict[str, Callable[[Rows], bytes]] = {  # by a file's name
    "list.json": one_list,
    "indented.json": lambda rows: json.dumps(rows, indent=2).encode(),
    "object.json": lambda rows: json.dumps({"version": 1, "anything": rows}).encode(),
    "columns.json": by_pandas("columns"),
    "index.json": by_pandas("index"),
    "split.json": by_pandas("split"),
    "table.json": by_pandas("table"),
    "records.json": by_pandas("records"),
    "lists.json": columns,
    "lines.json": lines,
    "lines.jsonl": lines,
    "list.jsonl": one_list,
    "blank.ndjson": lambda rows: b"\n\r\n" + lines(rows).replace(b"\n", b"\n\n"),
    "crlf.jsonl": lambda rows: lines(rows).replace(b"\n", b"\r\n"),
    "one-after-another.json": lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows).encode(),
    "utf16.json": lambda rows: one_list(rows).decode().encode("utf-16"),
    "utf16-unmarked.jsonl": lambda rows: lines(rows).decode().encode("utf-16-be"),
    "utf32.jsonl": lambda rows: lines(rows).decode().encode("utf-32"),
    "commas.csv": table(),
    "line-feeds.csv": table(end="\n"),
    "marked.csv": table(encoding="utf-8-sig"),
    "semicolons.csv": table(";"),
    "excel.csv": lambda rows: b"sep=;\n" + table(";")(rows),
    "utf16.csv": table(encoding="utf-16"),
    "tabs.tsv": table("\t"),
    "table.dat": table(),
    "table.parquet": parquet,
    "table.feather": feather,
    "table.arrow": feather,
    "stream.arrow": arrow_stream,
    "lines.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "commas.csv.gz": lambda rows: gzip.compress(table()(rows)),
    "unnamed-gzip.json": lambda rows: gzip.compress(one_list(rows)),
    "lines.jsonl.bz2": lambda rows: bz2.compress(lines(rows)),
    "list.json.xz": lambda rows: lzma.compress(one_list(rows)),
    "lines.jsonl.zst": lambda rows: zstd(lines(rows)),
    "two-frames.jsonl.zst": lambda rows: zstd(lines(rows[:1])) + zstd(lines(rows[1:])),
    "table.parquet.gz": lambda rows: gzip.compress(parquet(rows)),
    "lines.zip": lambda rows: zipped({"inside/lines.jsonl": lines(rows)}),
    "table.zip": lambda rows: zipped({"table.parquet": parquet(rows), "README.md": b"rows"}),
    "both.zip": lambda rows: zipped({"a.json": one_list(rows[:1]), "b.jsonl.gz": gzip.compress(lines(rows[1:]))}),
}  # fmt: skip
