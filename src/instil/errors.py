"""The tree of what can go wrong.

::

    InstilError                   exit code 1: the work failed
    ├── UserError                 exit code 2: the user's input or settings; nothing was written
    │   ├── SettingsError         a setting is unknown, of the wrong type or contradicts another
    │   ├── DataError             the file or its rows cannot be used
    │   │   └── UnreadableRows    some of its rows cannot be read, and others can
    │   ├── ModelError            the model named is absent, damaged or of a kind not read here
    │   ├── JudgeError            the judge is not there, or does not take what it is asked
    │   └── TemplateMismatch      the prompt form at hand is not the one the model was tuned with
    ├── RunFolderTaken            exit code 3: the run folder holds something already, or another process is at work
    ├── StoppedEarly              exit code 4: not finished, but what was done is kept and the same command goes on
    │   └── TrainingStopped       between two steps, as somebody who watches wanted
    ├── OutOfMemory               exit code 1: a step does not fit into memory, not even row by row
    └── TrainingDiverged          exit code 1: the loss is no longer a number

Every message says what was found, what was wanted and what to do next. The command line prints it
as one line (or one short list) and never a traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

SHOWN = 20  # rows named in a message before "and N more"


class InstilError(Exception):
    """The work failed for a reason that the message names."""

    exit_code = 1


class UserError(InstilError):
    """The user's input or settings cannot be used; nothing was written."""

    exit_code = 2


class SettingsError(UserError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class DataError(UserError):
    """A data file, or some of its rows, cannot be used."""


class UnreadableRows(DataError):
    """Some rows of a file cannot be read, and could be left out of it."""


class ModelError(UserError):
    """A model is absent, damaged, or of a kind that is not read here."""


class JudgeError(UserError):
    """A judge is not there, or does not take what it is asked."""


class TemplateMismatch(UserError):
    """The prompt form at hand is not the one the model was tuned with."""


class RunFolderTaken(InstilError):
    """The run folder holds something already, or another process is at work in it."""

    exit_code = 3


class StoppedEarly(InstilError):
    """The work is not finished; what was done is kept, and the same command goes on from there."""

    exit_code = 4


class TrainingStopped(StoppedEarly):
    """Training has stopped between two steps, because somebody who watches it wanted it to."""


class RankLost(StoppedEarly):
    """A process of those that train together is gone."""


class OutOfMemory(InstilError):
    """A step of a training does not fit into memory."""


class TrainingDiverged(InstilError):
    """The loss is no longer a finite number."""


def parsing_problem(error: ValueError | RecursionError) -> str:
    """What a parser of JSON or TOML found wrong, in words for an error message.

    >>> parsing_problem(RecursionError("maximum recursion depth exceeded"))
    'nested too deeply'
    >>> parsing_problem(ValueError("Exceeds the limit (4300 digits) for integer string conversion; use sys..."))
    'a whole number in it has more than 4,300 digits'
    """
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not {error.encoding.upper()}"
    if str(error).startswith("Exceeds the limit"):  # which Python sets (`sys.set_int_max_str_digits`)
        return "a whole number in it has more than 4,300 digits"
    return str(error)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word as a clause for an error message, or nothing.

    >>> did_you_mean("train.epoch", ["train.epochs", "data.template"])
    '; did you mean train.epochs?'
    >>> did_you_mean("xyz", ["train.epochs"])
    ''
    """
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def counted(count: int, noun: str, many: str = "") -> str:
    """A number with its noun, and with what else hangs on the number if that is given for both.

    >>> counted(1, "run"), counted(1200, "run")
    ('1 run', '1,200 runs')
    >>> counted(1, "row is", "rows are"), counted(2, "row is", "rows are")
    ('1 row is', '2 rows are')
    """
    return f"{count:,} {noun if count == 1 else many or f'{noun}s'}"


def verb(count: int, one: str, many: str) -> str:
    """The form of a verb that goes with a number: "1 of 3 rows has", "2 of 3 rows have"."""
    return one if count == 1 else many


def without_numbers(text: str) -> str:
    """A sentence by which others that differ in numbers only are told to be the same.

    >>> without_numbers("read 1,024 of 3.5 tokens") == without_numbers("read 7 of 12 tokens")
    True
    """
    return re.sub(r"[0-9]+(?:[.,][0-9]+)*", "#", text)


def folded(lines: Iterable[str]) -> list[str]:
    """Complaints of rows, those that are equal in one line.

    >>> folded(["row 0: no output", "row 3: no output", "row 4: is a list", "row 9: no output"])
    ['rows 0, 3, 9: no output', 'row 4: is a list']
    """
    rows: dict[str, list[str]] = {}
    for line in lines:
        name, colon, complaint = line.partition(": ")
        number = name.removeprefix("row ")
        if colon and number.isdecimal() and name != number:
            rows.setdefault(complaint, []).append(number)
        else:
            rows.setdefault(line, [])
    said = []
    for complaint, numbers in rows.items():
        more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
        named = f"row{'s' if len(numbers) > 1 else ''} {', '.join(numbers[:SHOWN])}{more}: " if numbers else ""
        said.append(named + complaint)
    return said


def listed_names(names: Sequence[str]) -> str:
    """Names as people list them.

    >>> listed_names(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def listed(lines: list[str]) -> str:
    """Lines under one another, the first twenty in full and the rest counted; equal complaints of rows are one line.

    >>> print(listed(["row 0: no output"]))
      row 0: no output
    """
    lines = folded(lines)
    shown = [f"  {line}" for line in lines[:SHOWN]]
    if len(lines) > SHOWN:
        shown.append(f"  ... and {len(lines) - SHOWN} more")
    return "\n".join(shown)
