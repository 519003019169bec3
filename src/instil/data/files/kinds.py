"""What a file is, by its content: its name is believed only where the content leaves it open, and is corrected else."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from instil.data.files.arrow_rows import Seekable, arrow_rows, schema_notes
from instil.data.files.csv_rows import Form, csv_rows, form_notes, form_of, header_problem
from instil.data.files.json_rows import EMPTY, Rows, json_rows
from instil.data.files.packing import (
    PACKED_SUFFIXES,
    Entry,
    Stream,
    Watch,
    members_of,
    packer_of,
    unpacked_file,
)
from instil.data.files.text import Encoding, encoding_of
from instil.errors import DataError, listed

HEAD = 1 << 16  # bytes that are looked at
DEEPEST = 2  # packings, one in the other
SUFFIXES = {
    ".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv", ".tab": "csv",
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
BESIDE_ROWS = frozenset(  # JSON files that lie in folders of data, models or programs and hold no rows
    "dataset_info.json dataset_infos.json dataset_dict.json state.json config.json tokenizer.json "
    "tokenizer_config.json generation_config.json special_tokens_map.json adapter_config.json vocab.json package.json "
    "package-lock.json model.safetensors.index.json".split()
)
NAMES = {"json": "JSON", "csv": "CSV", "parquet": "Parquet", "arrow": "Arrow", "arrow stream": "Arrow"}
AS_TABLE = "save its rows as CSV (UTF-8) or JSONL and give that"
FOREIGN: tuple[tuple[bytes, str], ...] = (  # what a file begins with, what it is, and what to do
    (b"%PDF-", "a PDF; make rows of its text first, such as with instil generate"),
    (b"SQLite format 3\0", "an SQLite database; write the table that is wanted as CSV or JSONL (sqlite3 -csv -header)"),
    (b"\x89PNG\r\n", "an image (PNG); rows are text"),
    (b"\xff\xd8\xff", "an image (JPEG); rows are text"),
    (b"GIF8", "an image (GIF); rows are text"),
    (b"II*\0", "an image (TIFF); rows are text"),
    (b"MM\0*", "an image (TIFF); rows are text"),
    (b"RIFF", "an image or a sound (RIFF); rows are text"),
    (b"OggS", "a sound (Ogg); rows are text"),
    (b"ID3", "a sound (MP3); rows are text"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", f"an old Excel or Word file; {AS_TABLE}"),
    (b"\x89HDF\r\n", f"an HDF5 file; {AS_TABLE}"),
    (b"\x93NUMPY", f"a NumPy array; {AS_TABLE}"),
    (b"Obj\x01", f"an Avro file; {AS_TABLE}"),
    (b"ORC", f"an ORC file; {AS_TABLE}"),
    (b"FEA1", "a Feather file of version 1; write it again with today's pandas or pyarrow, or as Parquet"),
    (b"GGUF", "a model (GGUF), not rows; give it with --model"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it and give the folder"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it and give the folder"),
    (b"\x04\x22\x4d\x18", "packed with lz4; unpack it, or pack it with gzip or zstd"),
    (b"\xff\x06\x00\x00sNaPpY", "packed with snappy; unpack it, or pack it with gzip or zstd"),
    (b"\x7fELF", "a program; wanted a file of rows"),
    (b"{\\rtf", "a text document (RTF); save it as plain text in one of the forms that docs/data.md lists"),
)
POINTER = b"version https://git-lfs.github.com/spec/"
MARKUP = ((b"<!doctype html", "a web page (HTML)"), (b"<html", "a web page (HTML)"), (b"<head", "a web page (HTML)"),
          (b"<?xml", "XML"), (b"<!doctype", "XML"), (b"<svg", "an image (SVG)"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file whose kind is known, ready to be read, from its start and as often as wanted."""

    entry: Entry
    packing: tuple[str, ...]
    kind: str
    encoding: Encoding
    form: Form
    notes: tuple[str, ...] = ()

    def rows(self, watch: Watch | None = None, *, skip_bad: bool = False) -> Rows:
        """Its rows and their places; ``watch`` is told how many of its bytes have been read.

        With ``skip_bad`` what cannot be read and can be left out comes as `instil.data.files.faults.Unreadable`.

        Raises:
            DataError: what is wrong, and where.
        """
        if self.kind in ("json", "csv"):

            def stream() -> Stream:
                return Stream(self.entry, self.packing, watch)

            if self.kind == "json":
                return json_rows(stream, self.encoding, skip_bad=skip_bad)
            return csv_rows(stream, self.encoding, self.form, skip_bad=skip_bad)
        show = (lambda part: watch(round(part * self.entry.length))) if watch is not None else None
        return arrow_rows(_seekable(self.entry, self.packing), self.entry.name, self.kind, show, skip_bad=skip_bad)


def data_files(entry: Entry) -> tuple[list[DataFile], list[str]]:
    """What is in a file: itself as a rule, several where it is a zip archive; and what is to be said of it.

    Raises:
        DataError: it is empty, damaged, or of a kind that holds no rows; the message names what it is.
    """
    packing, head, whole = _head(entry)
    if not head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return [_recognised(entry, packing, head, whole=whole)], []
    if packing:
        raise DataError(f"{entry.name}: a zip archive inside of {packing[-1]}; unpack it and give the zip archive")
    members = members_of(entry)
    named = [member for member in members if is_named_as_data(member.label)] or members
    left = [member.name for member in members if member not in named]
    if not members:
        raise DataError(f"{entry.name}: a zip archive with nothing in it")
    if not is_named_as_data(named[0].label) and len(named) > 1:
        raise DataError(
            f"{entry.name}: a zip archive without a data file; wanted {', '.join(SUFFIXES)}; it holds:\n"
            f"{listed([member.name.removeprefix(f'{entry.name}/') for member in members])}"
        )
    found = []
    for member in named:
        inner, inner_head, inner_whole = _head(member)
        if inner_head.startswith(b"PK\x03\x04"):
            raise DataError(f"{member.name}: a zip archive inside of another; unpack that first")
        found.append(_recognised(member, inner, inner_head, whole=inner_whole))
    notes = [f"{entry.name}: read from the archive: {_few([one.entry.name for one in found], entry.name)}"]
    if left:
        notes.append(f"{entry.name}: passed over: {_few(left, entry.name)}")
    return found, notes


def _few(names: list[str], inside: str) -> str:
    shown = [name.removeprefix(f"{inside}/") for name in names[:10]]
    return ", ".join(shown) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")


def _head(entry: Entry) -> tuple[tuple[str, ...], bytes, bool]:
    """How an entry is packed, the first bytes of what is in it, and whether that is all."""
    if not entry.size:
        raise DataError(f"{entry.name}: {EMPTY}")
    packing: tuple[str, ...] = ()
    while True:
        with Stream(entry, packing) as stream:
            head = b""
            while len(head) <= HEAD and (data := stream.read(HEAD + 1 - len(head))):
                head += data
        packer = packer_of(head)
        if not packer:
            return packing, head[:HEAD], len(head) <= HEAD
        packing += (packer,)
        if len(packing) > DEEPEST:
            raise DataError(f"{entry.name}: packed {len(packing)} times, one in the other; unpack it first")


def _expected(name: str) -> tuple[str, str, str]:
    """How a file is packed, of which kind it is, and its suffix, by its name; "" where that does not tell."""
    parts = [suffix.lower() for suffix in PurePosixPath(name.replace("\\", "/")).suffixes]
    packer = PACKED_SUFFIXES.get(parts[-1], "") if parts else ""
    while parts and parts[-1] in PACKED_SUFFIXES:
        parts.pop()
    return packer, SUFFIXES.get(parts[-1], "") if parts else "", parts[-1] if parts else ""


def is_named_as_data(name: str) -> bool:
    """Whether a file's name says that it holds rows.

    >>> is_named_as_data("rows.JSONL.gz"), is_named_as_data("README.md"), is_named_as_data("data/dataset_info.json")
    (True, False, False)
    """
    packer, kind, _ = _expected(name)
    return (bool(kind) or packer == "zip") and PurePosixPath(name).name not in BESIDE_ROWS


def kind_by_name(name: str) -> str:
    """The kind that a file's name says it is of: a key of `NAMES`, or "".

    >>> kind_by_name("data/train-00000.parquet"), kind_by_name("notes.txt")
    ('parquet', '')
    """
    return _expected(name)[1]


def _recognised(entry: Entry, packing: tuple[str, ...], head: bytes, *, whole: bool) -> DataFile:
    name = entry.name
    packer, expected, suffix = _expected(entry.label)
    _refuse_foreign(name, head)
    notes = []
    if packing and packer not in packing and packer != "zip":
        notes.append(f"{name}: is packed with {' and '.join(packing)}, whatever its name says; read as such")
    elif packer and not packing and packer != "zip":
        notes.append(f"{name}: is not packed with {packer}, whatever its name says; read as it is")
    encoding, form = encoding_of(head), Form()
    kind = _binary_kind(head)
    if kind:
        notes += schema_notes(_seekable(entry, packing), name, kind)
    else:
        text = head[encoding.mark :].decode(encoding.codec, errors="ignore")
        prefer = "\t" if suffix in (".tsv", ".tab") else ","
        kind, form = _text_kind(text, whole, expected, prefer)
        if "\0" in text[:4096] and not text.lstrip().startswith(("{", "[")) and expected != "csv":
            raise DataError(f"{name}: holds bytes that are no text, of a kind that is not read here; {_wanted()}")
        if encoding.concluded:
            notes.append(f"{name}: is {encoding.codec.upper()} without a byte order mark; read as such")
        if kind == "csv":
            notes += form_notes(name, form, prefer)
    if kind == "csv" and expected != "csv":
        notes.append(f"{name}: holds CSV with the columns {', '.join(form.header)}; read as such")
    elif expected and NAMES[kind] != NAMES[expected]:
        notes.append(f"{name}: holds {NAMES[kind]}, whatever its name says; read as such")
    return DataFile(entry, packing, kind, encoding, form, tuple(notes))


def _seekable(entry: Entry, packing: tuple[str, ...]) -> Seekable:
    def opened() -> IO[bytes]:
        return unpacked_file(entry, packing)

    return opened


def _binary_kind(head: bytes) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow"
    return "arrow stream" if head.startswith(b"\xff\xff\xff\xff") else ""


def _text_kind(text: str, whole: bool, expected: str, prefer: str) -> tuple[str, Form]:
    """JSON, or CSV and its form."""
    start = text.lstrip()
    if not start or (start.startswith(("{", "[")) and not (expected == "csv" and _is_odd_header(start))):
        return "json", Form()
    form, records = form_of(text, whole=whole, prefer=prefer)
    alike = len(form.header) > 1 and records > 1 and form.same and not header_problem(form)
    return ("csv", form) if expected == "csv" or alike else ("json", Form())


def _is_odd_header(start: str) -> bool:
    """Whether a first line that begins like JSON cannot be JSON, such as ``[id],text``."""
    try:
        json.JSONDecoder().raw_decode(start)
    except json.JSONDecodeError as error:
        return error.pos < len(start.splitlines()[0]) and not re.match(r'[\[{]\s*["\[{\d\]}]', start)
    except (RecursionError, ValueError):
        return False
    return False


def _refuse_foreign(name: str, head: bytes) -> None:
    """Name what is known and is no file of rows."""
    for magic, what in FOREIGN:
        if head.startswith(magic):
            raise DataError(f"{name}: is {what}")
    if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5" and len(head) > 2:
        raise DataError(
            f"{name}: is a pickle, which can run any code when it is opened, so it is not; write its rows as JSONL or "
            "Parquet where it was made (pandas: df.to_parquet)"
        )
    if head[257:262] == b"ustar":
        raise DataError(f"{name}: is a tar archive; unpack it and give the folder")
    if head[8:12] == b"DUCK":
        raise DataError(f"{name}: is a DuckDB database; write the table that is wanted as Parquet or CSV")
    if len(head) > 10 and head[8:10] in (b'{"', b"{}") and struct.unpack("<Q", head[:8])[0] < 1 << 32:
        raise DataError(f"{name}: is a model's weights (safetensors), not rows; give a model with --model")
    if head.startswith(POINTER):
        size = re.search(rb"^size (\d+)", head, re.MULTILINE)
        big = f" of {int(size[1]):,} bytes" if size else ""
        raise DataError(
            f"{name}: is a pointer of Git LFS, not the file{big} itself; git lfs pull in its repository fetches that"
        )
    start = encoding_of(head)
    text = head[start.mark :].decode(start.codec, errors="ignore").lstrip().lower().encode()
    for mark, what in MARKUP:
        if text.startswith(mark):
            raise DataError(
                f"{name}: is {what}, not a file of rows; a page about a file is not the file: fetch it by its raw or "
                "download address"
            )


def _wanted() -> str:
    return "wanted JSON, JSONL, CSV, TSV, Parquet or Arrow"
