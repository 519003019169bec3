"""Rows of CSV and TSV, by the csv library; the first line names the columns, and every row has all of them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from instil.data.files.faults import Faults, Unreadable
from instil.data.files.json_rows import Rows
from instil.data.files.packing import Stream
from instil.data.files.text import Encoding, decoded, lines_with_ends, stray
from instil.errors import DataError, UnreadableRows, counted

LARGEST_CELL = 16 * 1024**2  # characters
LONGEST_NAME = 120  # characters of a column's name; what is longer is a row's text
LOOKED_AT = 200  # records, by which the separator is found
NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
HEADER = "wanted a first line with the names of the columns, such as instruction,input,output"


@dataclass(frozen=True, slots=True)
class Form:
    """How the cells of a file are told apart, and what is to be passed over."""

    delimiter: str = ","
    escape: str | None = None
    skip_space: bool = False
    said: bool = False  # the file's first line says which separator it has, as Excel writes it ("sep=;")
    index: bool = False  # its first column is pandas' index, which has no name
    header: tuple[str, ...] = ()
    same: bool = True  # whether all records looked at have as many cells as the header

    def records(self, lines: Iterator[str]) -> Any:
        """The csv library's reader, which counts lines."""
        if csv.field_size_limit() < LARGEST_CELL:
            csv.field_size_limit(LARGEST_CELL)
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            escapechar=self.escape,
            doublequote=self.escape is None,
            skipinitialspace=self.skip_space,
            strict=True,
        )


def form_of(head: str, *, whole: bool, prefer: str = ",") -> tuple[Form, int]:
    """The form in which the most records have as many cells as the header, and how many records there are.

    Args:
        head: the beginning of a text.
        whole: whether that is all of it.
        prefer: the separator that is tried first.

    >>> form_of("instruction;output\\nSay hi, please.;Hi.\\n", whole=True)[0].delimiter
    ';'
    """
    lines = list(lines_with_ends("", [head]))
    said = bool(lines) and lines[0].lower().startswith("sep=") and len(lines[0].strip("\r\n")) == 5
    delimiters = [lines[0][4]] if said else [prefer, *(one for one in NAMES if one != prefer)]
    if said:
        lines = lines[1:]
    if not whole and len(lines) > 1:
        lines.pop()  # it may be cut apart
    best, most, read = Form(prefer, said=said), (-1.0, False), 0
    for escape in (None, "\\") if '\\"' in head else (None,):
        for delimiter in delimiters:
            form = Form(delimiter, escape, bool(lines) and _spaced(lines[0], delimiter), said)
            records, broken = _looked_at(form, lines, whole)
            if not records or (len(records[0]) < 2 and len(delimiters) > 1):
                continue
            width = len(records[0])
            same = sum(len(record) == width for record in records) / (len(records) + broken)
            if (same, not broken) > most:
                index = len(records) > 1 and not records[0][0].strip() and _numbers(records[1:])
                header = tuple(cell.strip() for cell in records[0])
                best, most, read = (
                    Form(delimiter, escape, form.skip_space, said, index, header, same == 1),
                    (same, not broken),
                    len(records),
                )
    if not best.header:  # one column
        records, _ = _looked_at(best, lines, whole)
        read = len(records)
        best = Form(prefer, said=said, header=tuple(cell.strip() for cell in records[0]) if records else ())
    return best, read


def _looked_at(form: Form, lines: list[str], whole: bool) -> tuple[list[list[str]], bool]:
    """The first records, and whether the csv library refuses what comes after them."""
    records: list[list[str]] = []
    try:
        for record in islice(form.records(iter(lines)), LOOKED_AT):
            if record:
                records.append(record)
    except csv.Error as error:
        return records, whole or "unexpected end of data" not in str(error)
    return records, False


def _spaced(header: str, delimiter: str) -> bool:
    return delimiter in header and header.count(f"{delimiter} ") == header.count(delimiter)


def _numbers(records: list[list[str]]) -> bool:
    return all(record and record[0].strip().isdecimal() for record in records)


def header_problem(form: Form) -> str:
    """Why a first line cannot be that of the columns' names; "" if it can."""
    names = form.header[1:] if form.index else form.header
    if not names:
        return "it is empty"
    shown = [name if len(name) <= 40 else f"{name[:37]}..." for name in names]
    problems = [
        f"{name!r} {why}"
        for name, cell in zip(shown, names, strict=True)
        if (
            why := "is empty"
            if not cell
            else "is a number"
            if _is_number(cell)
            else "is a text, not a name"
            if len(cell) > LONGEST_NAME or "\n" in cell or (" " in cell and cell[-1] in ".!")
            else ""
        )
    ]
    twice = [f"{name!r} stands there twice" for name, times in Counter(names).items() if name and times > 1]
    return ", ".join([*problems, *twice][:5])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return cell.lower() not in ("nan", "inf", "infinity")


def csv_rows(open_: Callable[[], Stream], encoding: Encoding, form: Form, *, skip_bad: bool = False) -> Rows:
    """The rows of a file as objects of texts, and the lines on which they begin.

    With ``skip_bad`` rows that have too many or too few cells, or bytes that are no text, are passed on as
    `Unreadable`, and so is a last line that is cut off in a quoted cell. Where else quotes do not fit, nobody knows
    which line begins a row, and the file is refused.

    Raises:
        DataError: naming the line of what is wrong, or all rows that have too many or too few cells.
    """
    with open_() as stream:
        name = stream.name
        lines = lines_with_ends(name, decoded(stream, encoding, skip_bad=skip_bad))
        if form.said:
            next(lines, None)
        if problem := header_problem(form):
            raise DataError(f"{name}: its first line is no header: {problem}; {HEADER}")
        faults = Faults(name, f"rows that do not have {counted(len(form.header), 'cell')}, as the header has")
        wanted = f"wanted {len(form.header)}, as the header has"
        records = form.records(lines)
        skipped = 1 if form.said else 0
        row, begins, started = -1, skipped + 1, False
        while True:
            try:
                cells = next(records, None)
            except csv.Error as error:
                last = records.line_num + skipped
                said = _problem(str(error), begins, last)
                alone = "unexpected end of data" in str(error) and begins == last and started
                if skip_bad and alone:
                    yield Unreadable("a quote opened in it is never closed; is the file cut off?"), f"line {begins}"
                    break
                raise (UnreadableRows if alone and row >= 0 else DataError)(f"{name}: {said}") from error
            if cells is None:
                break
            line, begins = begins, records.line_num + skipped + 1
            if not cells:
                continue
            if not started:
                started = True
                if skip_bad and (odd := stray("".join(cells), encoding)):
                    raise DataError(f"{name}: its first line is no header: a {odd}; {HEADER}")
                continue
            row += 1
            if skip_bad:
                what = f"has {counted(len(cells), 'cell')}; {wanted}" if len(cells) != len(form.header) else ""
                if not what and stray("".join(cells), encoding):
                    told = ((name, stray(cell, encoding)) for name, cell in zip(form.header, cells, strict=True))
                    what = ", ".join(f"{name}: {odd}" for name, odd in told if odd)
                if what:
                    yield Unreadable(what), f"line {line}"
                    continue
            elif len(cells) != len(form.header):
                faults.row(row, cells, [f"has {len(cells)} (line {line})"])
            if not faults:
                pairs = zip(form.header, cells, strict=True)
                yield dict(islice(pairs, 1, None) if form.index else pairs), f"line {line}"
    faults.check(row + 1)


def _problem(error: str, begins: int, line: int) -> str:
    """What the csv library found wrong, with the line on which the record begins and the one it came to."""
    if "unexpected end of data" in error:
        return f"a quote opened in the row that begins in line {begins} is never closed; is the file cut off?"
    if "field limit" in error:
        return (
            f"a cell of more than {LARGEST_CELL:,} characters in the row that begins in line {begins}; "
            "is a quote not closed?"
        )
    if "expected after" in error:
        return (
            f'line {line}: text after a closing quote; a quote within a quoted cell is written twice (""), '
            "as the csv library and pandas write it"
        )
    return f"line {line}: {error}"


def form_notes(name: str, form: Form, prefer: str) -> list[str]:
    """What was concluded of a file's form and is not what its name says."""
    notes = []
    if form.delimiter != prefer and not form.said:
        notes.append(f"{name}: its cells are separated by {NAMES[form.delimiter]}")
    if form.escape:
        notes.append(f"{name}: quotes in its cells are written with a backslash")
    if form.index:
        notes.append(f"{name}: its first column has no name and only numbers (pandas' index); it is not used")
    return notes
