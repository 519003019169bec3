"""Rows of JSON, in whichever way a file holds them: a list, lines, objects one after another, or one object.

Lists and lines are read piece by piece and may be of any size; one object that holds all rows is held whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Any

from instil.data.files.faults import Faults, Unreadable
from instil.data.files.json_documents import rows_of_document
from instil.data.files.json_values import Decoder, Values
from instil.data.files.packing import LARGEST_FILE, Stream
from instil.data.files.text import Encoding, decoded, lines_in, stray
from instil.errors import DataError, UnreadableRows

EMPTY = "the file is empty; wanted rows as JSON, JSONL, CSV, Parquet or Arrow"
NEITHER = "neither JSON nor JSONL"
PRINTED = re.compile(r"\s*\[?\s*\{\s*'")  # rows as Python shows them
BEGINS = frozenset('{["-0123456789tfn')  # of a value
JUDGED_BY = 100  # lines, of which half must be objects where the first cannot be read
LONGEST_ODD_LINE = 1 << 16  # characters of a first line that is a list and no row
Rows = Iterator[tuple[Any, str]]  # each with its place in the file


def json_rows(open_: Callable[[], Stream], encoding: Encoding, *, skip_bad: bool = False) -> Rows:
    """The rows of a file and their places in it.

    Args:
        open_: opens the file from its start; it may have to be opened more than once.
        encoding: that of its text.
        skip_bad: whether rows that cannot be read are passed on as `Unreadable`; only lines, and what is read as JSON
            and is none: where a list or an object ends too early, nobody knows where its next row begins.

    Raises:
        DataError: naming the line of what is wrong, or the rows that hold what is no JSON.
    """
    with open_() as stream:
        first = Values(Decoder(), decoded(stream, encoding, skip_bad=skip_bad)).peek()
    if not first:
        raise DataError(f"{stream.name}: {EMPTY}")
    if first == "[":
        return _list(open_, encoding, skip_bad)
    if _is_lines(open_, encoding, skip_bad):
        return _lines(open_, encoding, skip_bad)
    return _objects(open_, encoding, skip_bad)


def _list(open_: Callable[[], Stream], encoding: Encoding, skip_bad: bool) -> Rows:
    """One list that is the whole file; or lines, of which the first is a list and no row."""
    decoder = Decoder()
    with open_() as stream:
        pieces = decoded(stream, encoding)
        first = [*_beginning(pieces)]
        pieces = chain(first, pieces)
        if _begins_with_a_line(stream.name, first):
            yield from _lines_of(stream, pieces, encoding, skip_bad)
            return
        faults = _faults_of(stream, skip_bad)
        values = Values(decoder, pieces)
        try:
            values.peek()
            values.take()
            row = 0
            while not (row == 0 and values.peek() == "]"):
                value = values.value()
                if decoder.unclean:
                    value = faults.row(row, value, decoder.faults(value))
                if not faults:
                    yield value, f"row {row}"
                row += 1
                after = values.peek()
                if after == "]":
                    break
                if after != ",":
                    raise values.fault("Expecting ',' delimiter")
                values.take()
            values.take()
            if values.peek():
                raise values.fault("Extra data")
        except ValueError as error:
            raise DataError(f"{stream.name}: not valid JSON: {error}{_hint(open_, encoding)}") from error
    faults.check(row)


def _beginning(pieces: Iterator[str]) -> Iterator[str]:
    """The first pieces of a text, as many as a line and the beginning of another may need."""
    length, ended = 0, False
    for piece in pieces:
        yield piece
        length += len(piece)
        if length > LONGEST_ODD_LINE or (ended and not piece.isspace()):
            return
        ended = ended or "\n" in piece


def _is_lines(open_: Callable[[], Stream], encoding: Encoding, skip_bad: bool) -> bool:
    with open_() as stream:
        if _begins_with_a_line(stream.name, decoded(stream, encoding, skip_bad=skip_bad)):
            return True
    if not skip_bad:
        return False
    with open_() as stream:
        if not _mostly_lines(stream.name, decoded(stream, encoding, skip_bad=True)):
            return False
    with open_() as stream:
        return not _begins_with_objects(decoded(stream, encoding, skip_bad=True))


def _begins_with_a_line(name: str, pieces: Iterable[str]) -> bool:
    """Whether the first line is a value of its own, and another line follows."""
    lines = (line for line in lines_in(name, pieces) if line.strip())
    try:
        Decoder().value(next(lines, ""))
    except (ValueError, RecursionError, DataError):
        return False
    return next(lines, None) is not None


def _mostly_lines(name: str, pieces: Iterable[str]) -> bool:
    """Whether half of the first lines at least are objects of their own, as in no object that is a whole file."""
    decoder, lines, objects = Decoder(), 0, 0
    try:
        for line in islice((line for line in lines_in(name, pieces) if line.strip()), JUDGED_BY):
            lines += 1
            with suppress(ValueError, RecursionError):
                objects += isinstance(decoder.value(line), dict)
    except DataError:  # a line that is too long
        return False
    return lines > 1 and 2 * objects >= lines


def _begins_with_objects(pieces: Iterator[str]) -> bool:
    """Whether the first value can be read however many lines it has, and so can be what comes after it."""
    values = Values(Decoder(), pieces)
    try:
        return _goes_on(values.value(), values.peek())
    except ValueError:
        return False


def _goes_on(value: Any, more: str) -> bool:
    """Whether what begins after the first value may be another."""
    return not more or (more in BEGINS and isinstance(value, dict))


def _lines(open_: Callable[[], Stream], encoding: Encoding, skip_bad: bool) -> Rows:
    with open_() as stream:
        yield from _lines_of(stream, decoded(stream, encoding, skip_bad=skip_bad), encoding, skip_bad)


def _lines_of(stream: Stream, pieces: Iterable[str], encoding: Encoding, skip_bad: bool) -> Rows:
    decoder = Decoder()
    faults = _faults_of(stream, skip_bad)
    row = 0
    for number, line in enumerate(lines_in(stream.name, pieces), start=1):
        if not line or line.isspace():
            continue
        try:
            value = decoder.value(line)
        except (ValueError, RecursionError) as error:
            problem = _line_problem(error, line)
            if not skip_bad:
                said = f"{stream.name}: line {number} is not a JSON object: {problem}"
                raise (UnreadableRows(said) if row else DataError(said)) from error
            value = Unreadable(f"is not a JSON object: {problem}")
        else:
            if decoder.unclean:
                place = "" if number == row + 1 else f" (line {number})"
                value = faults.row(row, value, decoder.faults(value), place)
        if skip_bad and (odd := stray(line, encoding)):
            value = Unreadable(odd)
        if not faults:
            yield value, f"line {number}"
        row += 1
    faults.check(row)


def _line_problem(error: ValueError | RecursionError, line: str) -> str:
    if isinstance(error, json.JSONDecodeError):
        ended = error.msg.startswith("Unterminated string") or not line[error.pos :].strip()
        return f"{error.msg} at column {error.colno}{'; is the file cut off?' if ended else ''}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]


def _objects(open_: Callable[[], Stream], encoding: Encoding, skip_bad: bool) -> Rows:
    """One value that is the whole file, or several over more than one line each."""
    decoder = Decoder()
    with open_() as stream:
        faults = _faults_of(stream, skip_bad)
        values = Values(decoder, decoded(stream, encoding))
        try:
            value = values.value(LARGEST_FILE)
            if not _goes_on(value, more := values.peek()):
                raise values.fault("Extra data")
            if more:
                yield from _one_after_another(value, values, decoder, faults)
                return
        except ValueError as error:
            raise DataError(f"{stream.name}: {NEITHER}: {error}{_hint(open_, encoding)}") from error
    unclean = decoder.faults(value)
    rows = rows_of_document(value, stream.name)
    if unclean:
        wrong = [_faults_in(one, decoder) for one in rows]
        rows = [faults.row(row, one, found) for row, (one, found) in enumerate(zip(rows, wrong, strict=True))]
        if not any(wrong):
            for fault in unclean:  # it stands beside the rows
                faults.add(0, fault)
            faults.check(0)
    faults.check(len(rows))
    yield from ((one, f"row {row}") for row, one in enumerate(rows))


def _one_after_another(value: Any, values: Values, decoder: Decoder, faults: Faults) -> Rows:
    row = 0
    while True:
        value = faults.row(row, value, decoder.faults(value))
        if not faults:
            yield value, f"row {row}"
        row += 1
        if not values.peek():
            break
        value = values.value()
    faults.check(row)


def _hint(open_: Callable[[], Stream], encoding: Encoding) -> str:
    with open_() as stream:
        start = next(decoded(stream, encoding), "")
    return " (Python's own print is not JSON; json.dumps writes it)" if PRINTED.match(start) else ""


def _faults_in(value: Any, decoder: Decoder) -> list[str]:
    """Those of a part of what was read."""
    decoder.unclean = True
    return decoder.faults(value)


def _faults_of(stream: Stream, skip_bad: bool) -> Faults:
    return Faults(stream.name, "not valid JSON", skip_bad=skip_bad)
