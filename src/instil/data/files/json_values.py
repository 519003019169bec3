"""Values of JSON out of text that comes in pieces, and what in them is no JSON after all."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from instil.data.files import text

NEAR_THE_END = 64  # characters: a word or an escape that is cut apart is complained of so near to the cut
SPACE = " \t\n\r"


class NoJson(str):
    """A number that Python reads and JSON does not have."""


class Twice(dict[str, Any]):
    """An object that has a key twice."""

    key = ""


class Decoder:
    """JSON to values; ``unclean`` says whether one since `clean` may hold what is no JSON."""

    def __init__(self) -> None:
        self.unclean = False
        self._json = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float
        )

    def value(self, given: str) -> Any:
        """The one value of a text.

        Raises:
            json.JSONDecodeError, ValueError, RecursionError: it has none, or more.
        """
        self.unclean = False
        return self._json.decode(given)

    def value_at(self, given: str, at: int) -> tuple[Any, int]:
        """The value that begins at a place, and where it ends; raises as `value`."""
        self.unclean = False
        try:
            return self._json.raw_decode(given, at)
        except StopIteration as error:  # pragma: no cover  # raw_decode translates it
            raise json.JSONDecodeError("Expecting value", given, at) from error

    def faults(self, value: Any) -> list[str]:
        """What is no JSON in the value that was just read, by the keys that lead to it."""
        return _faults(value) if self.unclean else []

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) == len(pairs):
            return row
        self.unclean = True
        found = Twice(row)
        found.key = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        return found

    def _constant(self, word: str) -> NoJson:
        self.unclean = True
        return NoJson(word)

    def _float(self, digits: str) -> float | NoJson:
        number = float(digits)
        return self._constant(digits) if math.isinf(number) else number


def _faults(value: Any, key: str = "") -> list[str]:
    found = []
    todo = [(value, key)]
    while todo:
        part, key = todo.pop()
        if isinstance(part, NoJson):
            what = "is too large a number" if part[-1].isdigit() else "is not JSON"
            found.append(f"{key}: {part} {what}" if key else f"{part} {what}")
        if isinstance(part, Twice):
            found.append(f"{key or 'it'} has the key {part.key!r} twice")
        if isinstance(part, dict):
            todo += [(each, f"{key}.{name}" if key else name) for name, each in reversed(part.items())]
        elif isinstance(part, list):
            todo += [(each, f"{key}[{at}]") for at, each in reversed([*enumerate(part)])]
    return found


class Values:
    """The values of a text one after another, with no more of the text in memory than the largest of them needs."""

    def __init__(self, decoder: Decoder, pieces: Iterator[str]) -> None:
        self._decoder, self._pieces = decoder, pieces
        self._text, self._at, self._ended = "", 0, False
        self._line, self._column = 1, 1  # of the first character in memory

    def peek(self) -> str:
        """The next character that is no space, which stays where it is; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self) -> None:
        """Go past the character that `peek` saw."""
        self._at += 1

    def value(self, largest: int = 0) -> Any:
        """The next value, of at most so many characters (0: as many as a row may have).

        Raises:
            ValueError: there is none; the message names line and column.
        """
        self.peek()
        largest = largest or text.LARGEST_ROW
        while True:
            try:
                value, end = self._decoder.value_at(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or len(self._text) - error.pos < NEAR_THE_END
                if cut and len(self._text) - self._at > largest:
                    raise self.fault(f"{error.msg}, or a value of more than {largest:,} characters") from error
                if cut and self._more():
                    continue
                raise self.fault(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.fault("nested too deeply") from error
            except ValueError as error:  # a whole number of thousands of digits
                raise self.fault(str(error).split(";")[0]) from error
            if end == len(self._text) and self._more():
                continue  # a number may go on
            self._at = end
            return value

    def fault(self, what: str, at: int = -1) -> ValueError:
        """A complaint about a place, which is the next character if it is not given."""
        at = self._at if at < 0 else at
        newlines = self._text.count("\n", 0, at)
        column = at - self._text.rfind("\n", 0, at) if newlines else at + self._column
        ended = what.startswith("Unterminated string") or not self._text[at:].strip()
        cut = "; is the file cut off?" if ended and self._ended else ""
        return ValueError(f"{what} at line {self._line + newlines}, column {column}{cut}")

    def _more(self) -> bool:
        """Let go of what was read and get at least as much again as is left; whether there was any."""
        newlines = self._text.count("\n", 0, self._at)
        past = self._text.rfind("\n", 0, self._at) + 1 if newlines else 0
        self._line += newlines
        self._column = (1 if newlines else self._column) + self._at - past
        left = self._text[self._at :]
        self._at, pieces, length = 0, [left], 0
        for piece in self._pieces:
            pieces.append(piece)
            length += len(piece)
            if length >= len(left):
                break
        else:
            self._ended = True
        self._text = "".join(pieces)
        return length > 0
