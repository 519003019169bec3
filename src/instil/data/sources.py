"""Rows from a file or an address: JSON or JSONL, told apart by content, validated row by row.

What comes from the network is fetched once into ``$INSTIL_HOME/data`` and read from there ever after;
remove the file to fetch it anew. ``$INSTIL_DATA_URL`` stands in for GitHub's raw files (a mirror).

Nothing is lost in silence: rows that cannot be used are refused with their numbers, or, when the
user asks for it, left out and listed. Chapter 7.2 (listing 7.1) reads one JSON list without checks.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from instil.data.words import normal
from instil.downloads import Wanted, cache_folder, download
from instil.errors import DataError, did_you_mean, listed
from instil.files import json_kind
from instil.records import Example
from instil.settings.options import Normalise

IN_MEMORY = "(rows in memory)"
NAMED = {"starter": "starter.json"}
GITHUB = "https://raw.githubusercontent.com"
FETCHED = {  # the chapter's 1,100 rows; Alpaca's 52,002, of which 28 have an empty output (exercise 7.3)
    "book": "rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/instruction-data.json",
    "book-preference": "rasbt/LLMs-from-scratch/main/ch07/04_preference-tuning-with-dpo/"
    "instruction-data-with-preference.json",
    "alpaca": "tatsu-lab/stanford_alpaca/main/alpaca_data.json",
}
LARGEST_FILE = 2 * 1024**3  # bytes; JSON is parsed in memory
LARGEST_TEXT = 4_000_000  # characters of one field
ROW_KEYS = {"instruction", "output", "chosen", "rejected", "model_response"}  # an object with one of them is a row
KNOWN_KEYS = {"instruction", "input", "output", "task", "provenance"}  # the last: how a made row came about
CODECS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one file, and where they came from.

    ``sha256`` is of the parsed rows, so a BOM or CRLF does not change it. ``skipped`` holds one line
    for each row left out (only with ``skip_bad``), ``notes`` what the user may want to know.
    """

    name: str
    examples: Sequence[Example]
    sha256: str
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def normalised(self, form: Normalise) -> Source:
        """The same with texts in a normal form (``data.normalise``); the hash stays that of the rows as read."""
        return self if form == "none" else replace(self, examples=tuple(map(in_nfc, self.examples)))


def in_nfc(example: Example) -> Example:
    """A row with all its texts in Unicode's NFC."""
    return replace(
        example,
        instruction=normal(example.instruction),
        output=normal(example.output),
        input=normal(example.input),
        history=tuple(
            replace(turn, content=normal(turn.content), input=normal(turn.input)) for turn in example.history
        ),
    )


def read_source(data: str | Path, *, skip_bad: bool = False, need_output: bool = True) -> Source:
    """Read a data set by name (``starter``, ``book``, ``alpaca``), path or URL.

    Args:
        data: a name, or the path or the http(s) address of a JSON or JSONL file.
        skip_bad: leave unusable rows out, and list them in ``Source.skipped``.
        need_output: whether rows must carry the wanted answer (not so for rows only to be answered).

    Raises:
        DataError: the file is missing, cannot be fetched, is empty, not JSON, not a list, or has unusable rows.
    """
    return examples_from(read_rows(data), str(data), skip_bad=skip_bad, need_output=need_output)


def read_rows(data: str | Path) -> list[Any]:
    """The parsed rows of a data set by name, path or URL, as they are.

    Raises:
        DataError: the file is missing, cannot be fetched, is empty, not JSON, or not a list.
    """
    name = str(data)
    if name in NAMED:
        raw = (resources.files("instil.data") / NAMED[name]).read_bytes()
    else:
        raw = _read_bytes(fetch_data(name) if comes_from_afar(name) else Path(data))
    return parse_rows(raw, name)


def comes_from_afar(data: str) -> bool:
    """Whether a data set is fetched: by its name, or because it is an http(s) address.

    >>> comes_from_afar("book"), comes_from_afar("https://example.org/rows.json"), comes_from_afar("rows.json")
    (True, True, False)
    """
    return data in FETCHED or data.lower().startswith(("http://", "https://"))


def fetch_data(data: str) -> Path:
    """The local copy of a named data set or of an address, fetched if it is not there yet.

    Raises:
        DataError: it cannot be had, or what came is no list of rows.
    """
    folder = cache_folder() / "data"
    if data in FETCHED:
        url = f"{os.environ.get('INSTIL_DATA_URL', GITHUB).rstrip('/')}/{FETCHED[data]}"
        path = folder / f"{data}.json"
    else:
        url = data
        last = re.sub(r"[^A-Za-z0-9._-]", "_", urlsplit(url).path.rpartition("/")[2]).lstrip(".")
        path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{last[-80:] or 'rows'}"
    if path.is_file():
        return path
    wanted = Wanted(
        url=url,
        path=path,
        error=DataError,
        advice="Fetch it by other means and give the path of the file instead.",
        largest=LARGEST_FILE,
        check=lambda part: parse_rows(part.read_bytes(), str(part)),  # a page or half a file is not kept
    )
    return download(wanted)


def examples_from(
    rows: list[Any], name: str = IN_MEMORY, *, skip_bad: bool = False, need_output: bool = True
) -> Source:
    """Validate parsed rows (Alpaca form) and make them examples.

    >>> examples_from([{"instruction": "Say hi.", "output": "Hi."}]).examples[0].output
    'Hi.'
    """
    if not rows:
        raise DataError(f"{name}: no rows in it; wanted a list of objects with instruction and output")
    good: list[Example] = []
    bad: list[str] = []
    unused: dict[str, int] = {}
    for index, row in enumerate(rows):
        problem = row_problem(row, need_output=need_output)
        if problem:
            bad.append(f"row {index}: {problem}")
            continue
        for key in row.keys() - KNOWN_KEYS:
            unused[key] = unused.get(key, 0) + 1
        good.append(
            Example(
                instruction=row["instruction"],
                output=row.get("output") or "",
                input=row.get("input") or "",
                task=row.get("task") or "",
                row=index,
            )
        )
    if bad and not skip_bad:
        if need_output and all(isinstance(row, dict) and row.keys() >= {"chosen", "rejected"} for row in rows):
            raise DataError(f"{name}: these are preference pairs ({bad[0]}); add --method dpo to tune on them")
        raise DataError(
            f"{name}: {len(bad)} of {len(rows)} rows cannot be used (rows are counted from 0):\n{listed(bad)}\n"
            "mend them, or leave them out with --set data.skip_bad=true"
        )
    if not good:
        raise DataError(f"{name}: none of its {len(rows)} rows can be used:\n{listed(bad)}")
    notes = [f"key {key!r} of {count} rows is not used" for key, count in sorted(unused.items())]
    digest = hashlib.sha256()
    for example in good:
        digest.update(json.dumps(example.as_json(), sort_keys=True).encode())
    return Source(name, tuple(good), digest.hexdigest(), tuple(bad), tuple(notes))


def parse_rows(raw: bytes, name: str) -> list[Any]:
    """Parse bytes as a JSON list, as ``{"data": [...]}``, or as JSONL, whichever they are.

    Raises:
        DataError: naming the line, or the byte offset, of what is wrong.
    """
    text = _decode(raw, name)
    if not text.strip():
        raise DataError(f"{name}: the file is empty; wanted a JSON list (or one JSON object a line)")
    parsed, whole_error = _loads(text)
    if whole_error is None:
        if isinstance(parsed, dict) and parsed.keys() & ROW_KEYS:
            parsed = [parsed]  # JSONL of a single line
        elif isinstance(parsed, dict) and isinstance(parsed.get("data"), list):
            parsed = parsed["data"]
        if faults := [f"row {row}: {fault}" for row, value in enumerate(_rows_of(parsed)) for fault in _faults(value)]:
            raise DataError(f"{name}: not valid JSON (rows are counted from 0):\n{listed(faults)}")
        if not isinstance(parsed, list):
            raise DataError(
                f"{name}: found a JSON {json_kind(parsed)}; wanted a list of objects with instruction and output"
            )
        return parsed
    if text.lstrip().startswith("["):
        raise DataError(f"{name}: not valid JSON: {whole_error}")
    return _parse_lines(text, name, whole_error)


def _parse_lines(text: str, name: str, whole_error: str) -> list[Any]:
    rows: list[Any] = []
    faults: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row, error = _loads(line)
        if error is not None:
            if not rows:
                raise DataError(f"{name}: neither JSON nor JSONL: {whole_error}")
            raise DataError(f"{name}: line {number} is not a JSON object: {error}")
        if isinstance(row, list):
            raise DataError(f"{name}: line {number} is a list; in JSONL every line is one object")
        faults += [f"row {len(rows)}: {fault} (line {number})" for fault in _faults(row)]
        rows.append(row)
    if faults:
        raise DataError(f"{name}: not valid JSON (rows are counted from 0):\n{listed(faults)}")
    return rows


def _loads(text: str) -> tuple[Any, str | None]:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_NoJson), None
    except json.JSONDecodeError as error:
        ended = error.msg.startswith("Unterminated string") or not text[error.pos :].strip()
        cut = "; is the file cut off?" if ended else ""
        return None, f"{error.msg} at line {error.lineno}, column {error.colno}{cut}"
    except RecursionError:
        return None, "nested too deeply"
    except ValueError as error:
        return None, str(error).split(";")[0]


class _NoJson(str):
    """A word that Python takes for a number and JSON does not have."""


class _Twice(dict[str, Any]):
    """An object that has a key twice."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    found = _Twice(row)
    found.key = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
    return found


def _rows_of(parsed: Any) -> list[Any]:
    return parsed if isinstance(parsed, list) else [parsed]


def _faults(value: Any, key: str = "") -> list[str]:
    """What is no JSON in a parsed value, by the keys that lead to it: NaN, and keys that stand there twice."""
    found = []
    todo = [(value, key)]
    while todo:
        part, key = todo.pop()
        if isinstance(part, _NoJson):
            found.append(f"{key}: {part} is not JSON" if key else f"{part} is not JSON")
        if isinstance(part, _Twice):
            found.append(f"{key or 'it'} has the key {part.key!r} twice")
        if isinstance(part, dict):
            todo += [(each, f"{key}.{name}" if key else name) for name, each in reversed(part.items())]
        elif isinstance(part, list):
            todo += [(each, f"{key}[{at}]") for at, each in reversed([*enumerate(part)])]
    return found


def _read_bytes(path: Path) -> bytes:
    if not path.exists():
        raise DataError(
            f"{path}: no such file, and no data set of that name; known names: {', '.join(NAMED | FETCHED)}"
            + did_you_mean(str(path), NAMED | FETCHED)
        )
    if path.is_dir():
        raise DataError(f"{path} is a folder; wanted a JSON or JSONL file")
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise DataError(f"{path}: {size / 1024**3:.1f} GiB; at most {LARGEST_FILE / 1024**3:.0f} GiB is read at once")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _decode(raw: bytes, name: str) -> str:
    codec = next((codec for mark, codec in CODECS if raw.startswith(mark)), "utf-8")
    try:
        return raw.decode(codec)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: byte {error.start} (0x{raw[error.start]:02x}) is not {codec.upper()}; "
            "save the file as UTF-8 and try again"
        ) from error


def row_problem(row: Any, *, need_output: bool) -> str | None:
    """Why a row cannot be used, or None."""
    if not isinstance(row, dict):
        return f"is a {json_kind(row)}; wanted an object"
    checks: list[tuple[str, Callable[[Any], str | None]]] = [
        ("instruction", text_problem),
        ("input", optional_text_problem),
        ("output", text_problem if need_output else optional_text_problem),
        ("task", optional_text_problem),
    ]
    problems = [f"{key} {problem}" for key, check in checks if (problem := check(row.get(key, ABSENT)))]
    return ", ".join(problems) or None


ABSENT = object()  # for `text_problem`: the row has no such key


def text_problem(value: Any) -> str | None:
    """Why a field that must hold text cannot be used, or None."""
    if value is ABSENT:
        return "is missing"
    if not isinstance(value, str):
        return f"is {json_kind(value)}; wanted text"
    if not value.strip():
        return "is empty"
    if len(value) > LARGEST_TEXT:
        return f"has {len(value):,} characters; at most {LARGEST_TEXT:,} are read"
    if "\x00" in value:
        return "holds a NUL character"
    if any("\ud800" <= char <= "\udfff" for char in value):
        return "holds half of a surrogate pair (broken Unicode)"
    return None


def optional_text_problem(value: Any) -> str | None:
    """The same for a field that may be absent or empty."""
    if value is ABSENT or value is None or value == "":
        return None
    problem = text_problem(value)
    return None if problem == "is empty" else problem
