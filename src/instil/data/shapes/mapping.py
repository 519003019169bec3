"""``--map FOUND=WANTED``: keys of rows under the names that are wanted, and a guess at what could be typed there.

A dot leads into objects and lists (``data.question=instruction``, ``turns.0.text=prompt``); a key that has the dot in
its name comes first. ``FOUND=`` leaves a key out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instil.data.shapes.names import CONVERSATIONS, KNOWN, SIDES, Need
from instil.data.shapes.texts import ABSENT
from instil.errors import DataError, SettingsError, did_you_mean
from instil.settings.options import map_parts

ASKS = (  # words that names of questions are made of, the surest first
    *("instruction", "instructions", "question", "query", "prompt", "problem", "ask", "request", "user", "human"),
    *("q", "input", "inputs", "source", "src", "task", "message", "text"),
)
SAYS = (
    *("output", "answer", "response", "completion", "reply", "solution", "assistant", "gpt", "bot", "a"),
    *("target", "tgt", "outputs", "answers", "result", "label", "summary"),
)
BETTER = ("chosen", "preferred", "accepted", "winner", "win", "better", "good", "positive", "pos", "j")
WORSE = ("rejected", "dispreferred", "loser", "lose", "worse", "bad", "negative", "neg", "k")


@dataclass(frozen=True, slots=True)
class Renamed:
    """One ``FOUND=WANTED``."""

    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.found}={self.wanted}"


class Renames:
    """The keys that are read under another name.

    >>> Renames(["question=instruction"]).row({"question": "Why?", "id": 3})
    {'id': 3, 'instruction': 'Why?'}
    """

    def __init__(self, given: Sequence[str] | Mapping[str, str] = ()) -> None:
        """From texts such as ``question=instruction``, or a table.

        Raises:
            SettingsError: one is not of that form, names what no row can have, or gives a name twice.
        """
        self._given = [_parsed(one) for one in map_parts(given)]
        self.wanted = frozenset(one.wanted for one in self._given if one.wanted)
        for one in self._given:
            twice = [str(other) for other in self._given if other.wanted == one.wanted and one.wanted]
            if len(twice) > 1:
                raise SettingsError(f"--map {','.join(twice)}: {one.wanted} is named twice; leave one out")
        self.replaced: Counter[str] = Counter()  # how often another key had the name that was wanted
        self._found = {one.found for one in self._given}
        self.missed = {one.found for one in self._given}  # those that no row had so far

    def __bool__(self) -> bool:
        return bool(self._given)

    @property
    def parents(self) -> frozenset[str]:
        """Keys of rows that are used in part."""
        return frozenset(one.found.split(".")[0] for one in self._given if "." in one.found)

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row under the names that are wanted; a key that is there already under such a name gives way."""
        values = {one: _at(row, one.found) for one in self._given}
        left = {key: value for key, value in row.items() if key.strip() not in self._found}
        for one, value in values.items():
            if value is not ABSENT:
                self.missed.discard(one.found)
                if one.wanted:
                    self.replaced[str(one)] += one.wanted in left
                    left[one.wanted] = value
        return left

    def check(self, keys: Collection[str], name: str) -> None:
        """Whether every key that is named was in some row.

        Raises:
            DataError: one was in none.
        """
        for one in self._given:
            if one.found not in self.missed:
                continue
            turned = f"; --map has the key that was found first, so try --map {one.wanted}={one.found}"
            hint = turned if one.wanted in keys and one.found in KNOWN else did_you_mean(one.found, keys)
            shown = ", ".join(sorted(keys)[:20])
            raise DataError(f"{name}: --map {one}: no row has the key {one.found!r}{hint}; the keys are {shown}")


def _parsed(text: str) -> Renamed:
    found, equals, wanted = (part.strip() for part in text.rpartition("="))
    if not equals or not found:
        raise SettingsError(f"--map {text}: wanted FOUND=WANTED, such as --map question=instruction,reply=output")
    if wanted and wanted not in KNOWN:
        turned = f"; the key that was found comes first: --map {wanted}={found}" if found in KNOWN else ""
        hint = turned or did_you_mean(wanted, KNOWN)
        raise SettingsError(f"--map {text}: {wanted!r} is no name that rows are read by{hint}; known: {_known()}")
    return Renamed(found, wanted)


def _known() -> str:
    return ", ".join(sorted(KNOWN))


def _at(row: Mapping[str, Any], path: str) -> Any:
    if path in row:
        return row[path]
    if (spaced := next((key for key in row if key.strip() == path), None)) is not None:
        return row[spaced]
    value: Any = row
    for part in path.split(".") if "." in path else ():
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return ABSENT
    return ABSENT if value is row else value


def guess(row: Mapping[str, Any], need: Need) -> str:
    """What could be given to ``--map`` for such a row, or nothing; it is for the user to say so.

    >>> guess({"ask": "Why?", "reply": "Because."}, "answers")
    'ask=instruction,reply=output'
    >>> guess({"Question": "Why?", "Chosen": "So.", "Rejected": "No."}, "pairs")
    'Question=instruction,Chosen=chosen,Rejected=rejected'
    """
    texts = dict(_texts(row))
    taken: list[tuple[str, str]] = []
    if need == "pairs":
        for wanted, words in zip(SIDES, (BETTER, WORSE), strict=True):
            if wanted in row:
                texts.pop(wanted, None)
                continue
            key = _nearest(row.keys(), words)
            if key is None:
                return ""
            taken.append((key, wanted))
            texts.pop(key, None)
        question = _nearest(texts, ASKS)
        first = [(question, "instruction")] if question else []
        return _said([*first, *taken])
    if lists := [key for key, value in row.items() if _is_conversation(value) and key not in CONVERSATIONS]:
        return f"{lists[0]}=messages" if len(lists) == 1 else ""
    answer = _nearest(texts, SAYS)
    question = _nearest([key for key in texts if key != answer], ASKS)
    if question is None or (answer is None and need == "answers"):
        return ""
    return _said([(question, "instruction"), *([(answer, "output")] if answer else [])])


def _said(pairs: Iterable[tuple[str, str]]) -> str:
    return ",".join(f"{found}={wanted}" for found, wanted in pairs if found != wanted)


def _texts(row: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Texts of a row with the keys that lead to them."""
    for key, value in row.items():
        if isinstance(value, str) and value.strip():
            yield key, value
        elif isinstance(value, Mapping):
            yield from ((f"{key}.{name}", text) for name, text in value.items() if isinstance(text, str))


def _nearest(keys: Iterable[str], words: Sequence[str]) -> str | None:
    """The key that is made of the surest of the words; nothing where two are as sure."""
    ranked: list[tuple[int, int, str]] = []
    for key in keys:
        parts = [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", key.rpartition(".")[2])]
        ranks = [(words.index(part), len(parts)) for part in parts if part in words]
        if ranks:
            ranked.append((*min(ranks), key))
    ranked.sort()
    if not ranked or (len(ranked) > 1 and ranked[0][:2] == ranked[1][:2]):
        return None
    return ranked[0][2]


def _is_conversation(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and bool({"role", "from"} & first.keys())
