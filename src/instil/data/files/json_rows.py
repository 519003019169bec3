"""Rows of JSON, in whichever way a file holds them: a list, lines, objects one after another, or one object.

Lists and lines are read piece by piece and may be of any size; one object that holds all rows is held whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from instil.data.files.faults import Faults
from instil.data.files.json_documents import rows_of_document
from instil.data.files.json_values import Decoder, Values
from instil.data.files.packing import LARGEST_FILE, Stream
from instil.data.files.text import Encoding, decoded, lines_in
from instil.errors import DataError

EMPTY = "the file is empty; wanted rows as JSON, JSONL, CSV, Parquet or Arrow"
NEITHER = "neither JSON nor JSONL"
PRINTED = re.compile(r"\s*\[?\s*\{\s*'")  # rows as Python shows them
BEGINS = frozenset('{["-0123456789tfn')  # of a value
LONGEST_ODD_LINE = 1 << 16  # characters of a first line that is a list and no row
Rows = Iterator[tuple[Any, str]]  # each with its place in the file


def json_rows(open_: Callable[[], Stream], encoding: Encoding) -> Rows:
    """The rows of a file and their places in it.

    Args:
        open_: opens the file from its start; it may have to be opened more than once.
        encoding: that of its text.

    Raises:
        DataError: naming the line of what is wrong, or the rows that hold what is no JSON.
    """
    with open_() as stream:
        first = Values(Decoder(), decoded(stream, encoding)).peek()
    if not first:
        raise DataError(f"{stream.name}: {EMPTY}")
    if first == "[":
        return _list(open_, encoding)
    return _lines(open_, encoding) if _is_lines(open_, encoding) else _objects(open_, encoding)


def _list(open_: Callable[[], Stream], encoding: Encoding) -> Rows:
    """One list that is the whole file; or lines, of which the first is a list and no row."""
    decoder = Decoder()
    with open_() as stream:
        pieces = decoded(stream, encoding)
        first = [*_beginning(pieces)]
        pieces = chain(first, pieces)
        if _begins_with_a_line(stream.name, first):
            yield from _lines_of(stream, pieces)
            return
        faults = _faults_of(stream)
        values = Values(decoder, pieces)
        try:
            values.peek()
            values.take()
            row = 0
            while not (row == 0 and values.peek() == "]"):
                value = values.value()
                for fault in decoder.faults(value):
                    faults.add(row, fault)
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
    faults.check()


def _beginning(pieces: Iterator[str]) -> Iterator[str]:
    """The first pieces of a text, as many as a line and the beginning of another may need."""
    length, ended = 0, False
    for piece in pieces:
        yield piece
        length += len(piece)
        if length > LONGEST_ODD_LINE or (ended and not piece.isspace()):
            return
        ended = ended or "\n" in piece


def _is_lines(open_: Callable[[], Stream], encoding: Encoding) -> bool:
    with open_() as stream:
        return _begins_with_a_line(stream.name, decoded(stream, encoding))


def _begins_with_a_line(name: str, pieces: Iterable[str]) -> bool:
    """Whether the first line is a value of its own, and another line follows."""
    lines = (line for line in lines_in(name, pieces) if line.strip())
    try:
        Decoder().value(next(lines, ""))
    except (ValueError, RecursionError, DataError):
        return False
    return next(lines, None) is not None


def _lines(open_: Callable[[], Stream], encoding: Encoding) -> Rows:
    with open_() as stream:
        yield from _lines_of(stream, decoded(stream, encoding))


def _lines_of(stream: Stream, pieces: Iterable[str]) -> Rows:
    decoder = Decoder()
    faults = _faults_of(stream)
    row = 0
    for number, line in enumerate(lines_in(stream.name, pieces), start=1):
        if not line or line.isspace():
            continue
        try:
            value = decoder.value(line)
        except (ValueError, RecursionError) as error:
            problem = _line_problem(error, line)
            raise DataError(f"{stream.name}: line {number} is not a JSON object: {problem}") from error
        if decoder.unclean:
            for fault in decoder.faults(value):
                faults.add(row, fault if number == row + 1 else f"{fault} (line {number})")
        if not faults:
            yield value, f"line {number}"
        row += 1
    faults.check()


def _line_problem(error: ValueError | RecursionError, line: str) -> str:
    if isinstance(error, json.JSONDecodeError):
        ended = error.msg.startswith("Unterminated string") or not line[error.pos :].strip()
        return f"{error.msg} at column {error.colno}{'; is the file cut off?' if ended else ''}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]


def _objects(open_: Callable[[], Stream], encoding: Encoding) -> Rows:
    """One value that is the whole file, or several over more than one line each."""
    decoder = Decoder()
    with open_() as stream:
        faults = _faults_of(stream)
        values = Values(decoder, decoded(stream, encoding))
        try:
            value = values.value(LARGEST_FILE)
            if more := values.peek():
                if more not in BEGINS or not isinstance(value, dict):
                    raise values.fault("Extra data")
                yield from _one_after_another(value, values, decoder, faults)
        except ValueError as error:
            raise DataError(f"{stream.name}: {NEITHER}: {error}{_hint(open_, encoding)}") from error
        if not more:
            unclean = decoder.faults(value)
            rows = rows_of_document(value, stream.name)
            for row, one in enumerate(rows if unclean else ()):
                decoder.unclean = True
                for fault in decoder.faults(one):
                    faults.add(row, fault)
            if unclean and not faults:  # it stands beside the rows
                for fault in unclean:
                    faults.add(0, fault)
            faults.check()
            yield from ((one, f"row {row}") for row, one in enumerate(rows))
    faults.check()


def _one_after_another(value: Any, values: Values, decoder: Decoder, faults: Faults) -> Rows:
    row = 0
    while True:
        for fault in decoder.faults(value):
            faults.add(row, fault)
        if not faults:
            yield value, f"row {row}"
        if not values.peek():
            return
        value = values.value()
        row += 1


def _hint(open_: Callable[[], Stream], encoding: Encoding) -> str:
    with open_() as stream:
        start = next(decoded(stream, encoding), "")
    return " (Python's own print is not JSON; json.dumps writes it)" if PRINTED.match(start) else ""


def _faults_of(stream: Stream) -> Faults:
    return Faults(stream.name, "not valid JSON")
