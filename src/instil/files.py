"""Files: written whole or not at all, and read with one set of excuses.

What was written as JSON comes back by `record_of`, which says what is wrong with another shape.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from instil.errors import DataError, InstilError, RunFolderTaken, UserError, parsing_problem

NO_JSON = "not valid JSON"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, a limit of a file's size
PROBE = ".instil-"  # what names begin with that are made to see whether something can be made
Parsed = TypeVar("Parsed")
Record = TypeVar("Record")


def unfinished_of(path: Path) -> Path:
    """Where a file or folder lies until it is complete and takes its name.

    >>> unfinished_of(Path("run/model")).name
    'model.unfinished'
    """
    return path.with_name(f"{path.name}.unfinished")


def is_file(path: Path) -> bool:
    """Whether there is a file that can be seen, whatever the path: one that another file names may be no path at all.

    >>> is_file(Path("a" * 5000))
    False
    """
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def plain_name(path: str | Path) -> str:
    """A path's last part without the ending of a kind of file, for names made of it; other dots are part of a name.

    >>> plain_name("data/rows.v2.json"), plain_name("Qwen/Qwen2.5-0.5B"), plain_name("one.gguf")
    ('rows.v2', 'Qwen2.5-0.5B', 'one')
    """
    path = Path(path)
    return path.name if path.is_dir() or not path.suffix[1:2].isalpha() else path.stem


def write_whole(
    path: Path,
    content: str | bytes | Callable[[Path], object],
    *,
    error: type[InstilError] | None = None,
    replace_surrogates: bool = False,
) -> None:
    """Write a file in one piece: a reader sees the old file or the new one.

    Args:
        path: the file.
        content: its text (UTF-8) or bytes, or a function that writes them to the path that it is given.
        error: raised in place of an OSError, with the file's name and the reason.
        replace_surrogates: write "?" for halves of surrogate pairs, which have no UTF-8.

    Raises:
        OSError: it cannot be written, and there is no ``error`` for that.
    """
    unfinished = unfinished_of(path)
    try:
        if isinstance(content, str):
            unfinished.write_text(content, encoding="utf-8", errors="replace" if replace_surrogates else "strict")
        elif isinstance(content, bytes):
            unfinished.write_bytes(content)
        else:
            content(unfinished)
        unfinished.replace(path)
    except OSError as problem:
        if error is None:
            if problem.filename is None:  # a write says none
                problem.filename = str(path)
            raise
        raise error(f"{path}: cannot be written: {problem.strerror or problem}") from problem


def json_text(value: object, *, ascii_only: bool = False) -> str:
    """A value as JSON that people can read; ``ascii_only`` writes other characters as numbers."""
    return json.dumps(value, indent=2, ensure_ascii=ascii_only) + "\n"


def write_json(path: Path, value: object, *, ascii_only: bool = False, error: type[InstilError] | None = None) -> None:
    """Write a value as JSON, in one piece; see `write_whole`."""
    write_whole(path, json_text(value, ascii_only=ascii_only), error=error)


def write_rows(path: Path, rows: Iterable[object], *, error: type[InstilError] | None = None) -> None:
    """Write rows in one piece: one a line where the name ends in ``.jsonl``, else as one list; see `write_whole`."""
    if path.suffix == ".jsonl":
        write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), error=error)
    else:
        write_json(path, list(rows), error=error)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path) -> None:
    """Make a folder for what is to be written.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # such as below /proc, whose own rights do not tell
        raise UserError(
            f"{path}: the folder cannot be made: {error.strerror or error}; choose another --out"
        ) from error


def check_folder(path: Path) -> None:
    """Make sure that a folder can be made and written to; nothing stays of the attempt.

    What rights say is not enough: below /proc, on a read-only medium, or where a drive is missing, they may allow what
    the system then refuses.

    Raises:
        RunFolderTaken: there is a file where the folder, or one above it, would be.
        UserError: it cannot be made, or not be written to.
    """
    made: list[Path] = []
    there = False
    try:
        above = [path, *path.absolute().parents]
        if nowhere := next((part for part in above if part.is_symlink() and not part.exists()), None):
            raise UserError(f"{nowhere} is a link that leads nowhere; choose another --out")
        missing = list(takewhile(lambda part: not part.exists(), above))
        existing = next((part for part in above if part.exists()), None)
        if existing is not None and not existing.is_dir():
            raise RunFolderTaken(f"{existing} is a file; choose another --out")
        there = not missing
        for part in reversed(missing):
            part.mkdir()
            made.append(part)
        with TemporaryDirectory(dir=path, prefix=PROBE):
            pass
    except OSError as error:
        what = "cannot be written to" if there else "the folder cannot be made"
        raise UserError(f"{path}: {what}: {error.strerror or error}; choose another --out") from error
    finally:
        for part in reversed(made):
            with suppress(OSError):  # another process has come to use it meanwhile
                part.rmdir()


def free_at(path: Path) -> tuple[Path, int]:
    """The last part of a path that is there, and the bytes that are free in it."""
    for part in (path, *path.absolute().parents):
        with suppress(OSError):  # it may go while one looks
            if part.exists():
                return part, shutil.disk_usage(part).free
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def check_new(path: Path) -> None:
    """Make sure that there is nothing at a path, and that a file or folder can be made there; nothing stays of it.

    The name must leave room for what it ends with until it is complete (`unfinished_of`).

    Raises:
        RunFolderTaken: there is a file where a folder above it would be.
        UserError: there is something, or its folder cannot be made, or not be written to.
    """
    check_folder(path.parent)
    existing = next(part for part in path.absolute().parents if part.exists())
    try:
        (existing / unfinished_of(path).name).lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; choose another --out") from error
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} is there already; choose another --out")


def check_file(path: Path) -> None:
    """Make sure that a file can be written, or written over; what is there stays, and nothing stays of the attempt.

    Raises:
        RunFolderTaken: there is a file where a folder above it would be.
        UserError: it is a folder, or cannot be written.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; wanted the name of a file for --out")
        there = path.exists()
        if not there and not path.is_symlink() and not path.parent.is_dir():
            check_new(path)
        elif not there or path.is_file():  # else it is such as /dev/stdout
            path.open("ab").close()
            if not there:
                path.resolve().unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; choose another --out") from error


def read_parsed(
    path: Path,
    parse: Callable[[str], Parsed],
    problem: str,
    *,
    error: type[InstilError] = DataError,
    encoding: str = "utf-8",
    advice: str = "",
) -> Parsed:
    """What a parser makes of a file's text.

    Args:
        path: the file.
        parse: the parser, which raises ValueError or RecursionError.
        problem: what is said of a file that it cannot parse, before its reason.
        error: what is raised.
        encoding: of the text.
        advice: the end of the message about a file that cannot be read at all.

    Raises:
        InstilError: of the class ``error``, in one line with the file's name.
    """
    try:
        return parse(path.read_text(encoding=encoding))
    except OSError as reason:
        raise error(f"{path}: cannot be read: {reason.strerror or reason}{advice}") from reason
    except (ValueError, RecursionError) as reason:
        raise error(f"{path}: {problem}: {parsing_problem(reason)}") from reason


def read_json(path: Path, *, error: type[InstilError] = DataError, problem: str = NO_JSON, advice: str = "") -> Any:
    """What a JSON file holds; see `read_parsed`.

    Raises:
        InstilError: of the class ``error``: it is absent, or no JSON.
    """
    return read_parsed(path, json.loads, problem, error=error, advice=advice)


def read_json_object(
    path: Path, *, error: type[InstilError] = DataError, problem: str = NO_JSON, advice: str = ""
) -> dict[str, Any]:
    """The object that a JSON file holds; see `read_parsed`.

    Raises:
        InstilError: of the class ``error``: it is absent, no JSON, or no object.
    """
    found = read_json(path, error=error, problem=problem, advice=advice)
    if not isinstance(found, dict):
        raise error(f"{path}: wanted a JSON object, found: {json_kind(found)}")
    return found


def others_than(folder: Path, hashes: Mapping[str, str], of: str) -> list[str]:
    """Files of a folder that do not have the SHA-256 that is given for their names, each with what is wrong.

    ``of`` is what the right ones belong to.
    """
    found = []
    for name, sha256 in hashes.items():
        file = folder / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif sha256_of(file) != sha256:
            found.append(f"{name} is not the file that {of} is of")
    return found


def json_object_or_empty(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; an empty one where there is none that can be read."""
    try:
        return read_json_object(path)
    except DataError:
        return {}


def record_of(kind: type[Record], found: Any, *, strict: bool = True) -> Record:
    """A record out of what was parsed from its JSON.

    Args:
        kind: its dataclass, of whole numbers, numbers, texts, truth values, and lists and objects of these; a field
            whose metadata has a ``key`` goes by that in the file.
        found: what the parser gave.
        strict: refuse keys that the record does not have, instead of leaving them out.

    Raises:
        ValueError: it has another shape; the message says what was found and what was wanted.

    >>> from instil.layouts import Grid
    >>> record_of(Grid, {"rows": 1, "length": "2"})
    Traceback (most recent call last):
        ...
    ValueError: 'length' is a string; wanted a whole number
    """
    if not isinstance(found, dict):
        raise ValueError(f"found {_named(found)}; wanted an object")
    hints = get_type_hints(kind)
    names: dict[str, str] = {}  # of the fields, by the keys that the file has for them
    for field in fields(kind):  # type: ignore[arg-type]  # a dataclass
        key = field.metadata.get("key", field.name)
        names[key] = field.name
        if key not in found:
            if field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"it has no {key!r}")
        elif not _fits(found[key], hints[field.name]):
            wanted = " or ".join(_words(hints[field.name]))
            raise ValueError(f"{key!r} is {_named(found[key])}; wanted {wanted}")
    unknown = [key for key in found if key not in names]
    if strict and unknown:
        raise ValueError(f"unknown key {unknown[0]!r}")
    return kind(**{names[key]: value for key, value in found.items() if key in names})


def records_in(path: Path, kind: type[Record], *, strict: bool = True, advice: str = "") -> list[Record]:
    """The records of a JSON Lines file; see `record_of`.

    Raises:
        DataError: the file is absent or damaged; the message names the line and ends with the advice.
    """
    records: list[Record] = []
    number = 0
    try:
        for line in path.read_text(encoding="utf-8").split("\n"):
            number += 1
            if line:
                records.append(record_of(kind, json.loads(line), strict=strict))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged: line {number}: {parsing_problem(error)}{advice}") from error
    return records


def _named(value: Any) -> str:
    kind = json_kind(value)
    return kind if kind in ("null", "true/false") else f"{'an' if kind == 'object' else 'a'} {kind}"


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(one, get_args(hint)[1]) for one in value.values())
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(one, get_args(hint)[0]) for one in value)
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    return type(value) in ((int, float) if hint is float else (hint,))  # true is no number


def _words(hint: Any) -> Iterator[str]:
    if isinstance(hint, UnionType):
        for one in get_args(hint):
            yield from _words(one)
    elif get_origin(hint) in (dict, list):
        inner = next(_words(get_args(hint)[-1])).removeprefix("a ").split()
        yield " ".join(["an object of" if get_origin(hint) is dict else "a list of", f"{inner[0]}s", *inner[1:]])
    elif get_origin(hint) is Literal:
        yield f"a word of {', '.join(get_args(hint))}"
    else:
        yield {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null"}[hint]


def json_kind(value: Any) -> str:
    """What people call a value of JSON.

    >>> json_kind([]), json_kind(1.5), json_kind(None)
    ('list', 'number', 'null')
    """
    if value is None:
        return "null"
    names = {bool: "true/false", int: "number", float: "number", str: "string", list: "list", dict: "object"}
    return names.get(type(value), type(value).__name__)
