"""Rows of a data set in two passes: the first looks at the keys of all of them, the second reads them one by one.

Nothing is held but counts, so rows may be as many as a file has. A data set has one shape; rows of another are
rejected by number, and so is whatever else cannot be used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple, NoReturn, Protocol

from instil.data.files.faults import Unreadable
from instil.data.shapes.mapping import Renames, guess
from instil.data.shapes.names import ANSWERS, FINDERS, QUESTIONS, SIDES, WANTED, Need, Shape
from instil.data.shapes.origins import Origins
from instil.data.shapes.rows import Labelled, Read, read_answer, read_labelled, read_pair
from instil.data.shapes.texts import Unusable
from instil.errors import SHOWN, DataError, counted, listed
from instil.files import json_kind
from instil.records import Example, Pair

Offer = Literal["map", "skip_bad"]
KINDS_KEPT = 1000  # different sets of keys that are told apart; the rest counts as one
KINDS_SHOWN = 5
KEYS_SHOWN = 12


class Raw(Protocol):
    """A row as it was parsed, and where it stands, such as ``rows.jsonl line 13``; empty where nobody knows."""

    @property
    def value(self) -> Any: ...
    @property
    def where(self) -> str: ...


class InMemory(NamedTuple):
    """A row of a list."""

    value: Any
    where: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was left out: its number from 0, why, and where it stands."""

    row: int
    reason: str
    where: str = ""

    @property
    def tells_where(self) -> bool:
        """Whether the place says more than the number: a line, or one of several files."""
        return bool(self.where) and not self.where.endswith(f" row {self.row}")

    def line(self) -> str:
        """For people.

        >>> Rejected(3, "output is empty").line()
        'row 3: output is empty'
        """
        return f"row {self.row}: {self.reason}"


Keys = tuple[str, ...]


@dataclass(slots=True)
class _Kind:
    """Rows with the same keys, or that are no objects."""

    keys: Keys
    shape: Shape | None
    first: int
    sample: Mapping[str, Any]
    count: int = 0


@dataclass(slots=True)
class _Notes:
    """What is to be said of rows that were read, counted."""

    unused: Counter[str] = field(default_factory=Counter)
    as_json: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    cut_rows: list[int] = field(default_factory=list)

    def add(self, row: int, read: Read, parents: Collection[str]) -> None:
        for key in read.unused - {repr(one) for one in parents}:
            self.unused[key] += 1
        self.as_json.update(read.as_json)
        if read.dropped:
            self.cut += 1
            if len(self.cut_rows) < SHOWN:
                self.cut_rows.append(row)

    def lines(self) -> list[str]:
        said = [f"key {key} of {counted(count, 'row')} is not used" for key, count in sorted(self.unused.items())]
        for key, count in sorted(self.as_json.items()):
            said.append(f"{key!r} of {counted(count, 'row')} holds messages as JSON text; they are read as messages")
        if self.cut:
            rows = ", ".join(map(str, self.cut_rows)) + (", ..." if self.cut > len(self.cut_rows) else "")
            said.append(f"{counted(self.cut, 'row')} went on after the last answer, which is left out: {rows}")
        return said


class ShapedRows:
    """The rows of a data set, looked at once for their shape, and then read as often as it is iterated over.

    >>> rows = [InMemory({"question": "Why?", "answer": "Because."}), InMemory({"question": "How?"})]
    >>> shaped = ShapedRows(rows, "rows.json", "answers")
    >>> [made.output if isinstance(made, Example) else made.line() for made in shaped]
    ['Because.', 'row 1: answer is missing']
    >>> shaped.notes
    ('rows have the shape question/answer: question is the instruction, answer is the output',)
    """

    def __init__(
        self,
        rows: Iterable[Raw],
        name: str,
        need: Need,
        renames: Renames | None = None,
        offers: Collection[Offer] = ("map", "skip_bad"),
    ) -> None:
        """Look at the keys of all rows.

        Args:
            rows: what can be iterated over twice.
            name: of the data set, for messages.
            need: ``answers``, ``prompts`` (to be answered) or ``pairs``.
            renames: keys that are read under another name.
            offers: what whoever reads the messages can set: ``--map``, and ``data.skip_bad``.

        Raises:
            DataError: there are no rows, or they have no shape that is known.
        """
        self._rows, self._name, self._need = rows, name, need
        self._renames = renames or Renames()
        self._find, self._offers = FINDERS[need], offers
        self._shapes: dict[Keys, Shape | None] = {}
        self.count = 0
        self.origins = Origins()
        self.shapes: Counter[str] = Counter()
        self._kinds: dict[tuple[Keys, bool], _Kind] = {}
        self._odd = 0  # rows that are no objects
        self._unread = 0  # rows that cannot be read
        self._look()
        self.shape = self._chosen()
        self._notes = _Notes()

    def _look(self) -> None:
        every: set[str] = set()
        for raw in self._rows:
            self.origins.add(self.count, raw.where)
            row, self.count = raw.value, self.count + 1
            if not isinstance(row, Mapping):
                self._odd += not isinstance(row, Unreadable)
                self._unread += isinstance(row, Unreadable)
                continue
            if self._renames:
                every.update(row)
                row = self._renames.row(row)
            keys = _keys(row)
            shape = self._shape(row, keys)
            key = (keys, shape is None)
            if key not in self._kinds and len(self._kinds) >= KINDS_KEPT:
                keys = (shape.name,) if shape else ()
                key = (keys, shape is None)
            kind = self._kinds.setdefault(key, _Kind(keys, shape, self.count - 1, row))
            kind.count += 1
            if kind.shape is not None:
                self.shapes[kind.shape.name] += 1
        if not self.count:
            raise DataError(f"{self._name}: no rows in it; wanted a list of objects with {WANTED[self._need]}")
        self._renames.check(every, self._name)

    def _shape(self, row: Mapping[str, Any], keys: Keys) -> Shape | None:
        if keys not in self._shapes:
            if len(self._shapes) > KINDS_KEPT:
                self._shapes.clear()
            self._shapes[keys] = self._find(keys, self._renames.wanted)
        shape = self._shapes[keys]
        if shape is not None and shape.name == "chosen, rejected":
            chosen = row["chosen"]
            if isinstance(chosen, str) and not chosen.lstrip().startswith("["):  # with which JSON of messages begins
                return None  # two texts say nothing of what they are answers to
        return shape

    def _chosen(self) -> Shape:
        """The shape that most rows have; of rows that have none, what they come nearest to."""
        if self.shapes:
            (name, _), *_ = self.shapes.most_common(1)
            return next(kind.shape for kind in self._kinds.values() if kind.shape and kind.shape.name == name)
        if not self._kinds:
            raise DataError(
                f"{self._name}: none of its {counted(self.count, 'row')} can be used:\n{listed(self._odd_lines())}\n"
                f"wanted objects with {WANTED[self._need]}"
            )
        biggest = max(self._kinds.values(), key=lambda kind: kind.count)
        usual = _usual(biggest.keys, self._need)
        if usual is None or self._other_need():
            self._refuse_shapeless()
        return usual

    def __iter__(self) -> Iterator[Example | Pair | Labelled | Rejected]:
        """Each row as what it came to, or why it cannot be used; `notes` are whole when all were read."""
        self._notes = _Notes()
        self._renames.replaced.clear()
        for number, raw in enumerate(self._rows):
            try:
                read = self._read(raw.value, number)
            except Unusable as error:
                yield Rejected(number, str(error), raw.where)
                continue
            self._notes.add(number, read, self._renames.parents)
            yield read.made

    def _read(self, value: Any, number: int) -> Read:
        if not isinstance(value, Mapping):
            raise Unusable(_odd(value))
        row = self._renames.row(value) if self._renames else value
        keys = _keys(row)
        shape = self._shape(row, keys)
        if shape is not None and shape.name != self.shape.name:
            raise Unusable(f"has the shape {shape.name}; wanted {self.shape.name}, as most rows have it")
        if shape is None and not self._resembles(row):
            raise Unusable(f"has the keys {_shown(keys)}; wanted {' and '.join(_needed(self.shape, self._need))}")
        shape = shape or self.shape
        if self._need != "pairs":
            return read_answer(row, number, shape, need_output=self._need == "answers")
        return read_labelled(row, number, shape) if "label" in shape.keys else read_pair(row, number, shape)

    def _resembles(self, row: Mapping[str, Any]) -> bool:
        """Whether a row without a shape has something of the others', so that it can be said what it lacks."""
        needed = _needed(self.shape, self._need)
        return any(key in row for key in needed) and self.shape.kind != "conversation"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user may want to know of the rows."""
        replaced = [
            f"--map {one} takes the place of a key of {counted(count, 'row')}"
            for one, count in self._renames.replaced.items()
            if count
        ]
        return (*filter(None, [self.shape.said]), *replaced, *self._notes.lines())

    def refuse(self, rejected: Sequence[Rejected], good: int) -> NoReturn:
        """Say which rows cannot be used, and what to do about it.

        Raises:
            DataError: always.
        """
        told = told_of(rejected)
        what = " as preference pairs" if self._need == "pairs" else ""
        hint = self._hint()
        if not good:
            head = (
                f"{self._name}: none of its {counted(self.count, 'row')} can be used{what} (rows are counted from 0):"
            )
            raise DataError(f"{head}\n{told}{hint}")
        mixed = ""
        if len(self.shapes) > 1:
            mixed = f"; they have {len(self.shapes)} shapes: " + ", ".join(
                f"{counted(count, 'row')} {name}" for name, count in self.shapes.most_common(KINDS_SHOWN)
            )
        leave = ", or leave them out with --set data.skip_bad=true" if "skip_bad" in self._offers else ""
        raise DataError(
            f"{self._name}: {len(rejected):,} of {counted(self.count, 'row')} cannot be used{what} "
            f"(rows are counted from 0){mixed}:\n{told}{hint}\nmend them{leave}"
        )

    def _hint(self) -> str:
        """What could be typed to have rows of no shape read, if one can guess."""
        if "map" not in self._offers:
            return ""
        for kind in sorted(self._kinds.values(), key=lambda kind: -kind.count):
            if kind.shape is None and not self._renames and (words := guess(kind.sample, self._need)):
                return f"\nif that is what they mean, add --map {_quoted(words)}"
        return ""

    def _refuse_shapeless(self) -> NoReturn:
        by_count = sorted(self._kinds.values(), key=lambda kind: -kind.count)
        lines = [f"  {_shown(kind.keys)} ({_rows(kind)})" for kind in by_count[:KINDS_SHOWN]]
        if more := len(by_count) - KINDS_SHOWN:
            lines += [f"  ... and {more} more"] * (more > 0)
        lines += [f"  no keys ({counted(self._odd, 'row')} that are no objects)"] * bool(self._odd)
        lines += [f"  no keys ({counted(self._unread, 'row')} that cannot be read)"] * bool(self._unread)
        found = "\n".join(lines)
        advice = self._other_need() or self._hint() or (_MAP if "map" in self._offers else "")
        raise DataError(
            f"{self._name}: no shape that is known; found the keys\n{found}\nwanted {WANTED[self._need]}{advice}"
        )

    def _other_need(self) -> str:
        keys = [kind.keys for kind in self._kinds.values()]
        if self._need != "pairs" and all(set(SIDES) <= set(one) for one in keys):
            return "\nthese are preference pairs; add --method dpo to tune on them"
        if self._need == "pairs" and all(FINDERS["answers"](one, ()) for one in keys):
            return "\nthese rows have one answer each; instil prefer makes pairs of them"
        return ""

    def _odd_lines(self) -> list[str]:
        first = enumerate(islice(self._rows, KINDS_KEPT))
        return [f"row {at}: {_odd(raw.value)}" for at, raw in first]


_MAP = "\nsay which key is what, such as --map question=instruction,reply=output"


def told_of(rejected: Sequence[Rejected]) -> str:
    """Rejected rows under one another, equal reasons in one line, with the place of the first of each."""
    by_reason: dict[str, list[Rejected]] = {}
    for one in rejected:
        by_reason.setdefault(one.reason, []).append(one)
    places = {
        reason: f" ({'the first is ' * (len(rows) > 1)}{rows[0].where})" if rows[0].tells_where else ""
        for reason, rows in by_reason.items()
    }
    return listed([f"{one.line()}{places[one.reason]}" for one in rejected])


def _odd(value: Any) -> str:
    """What is wrong with a row that is no object."""
    return value.reason if isinstance(value, Unreadable) else f"is a {json_kind(value)}; wanted an object"


def _keys(row: Mapping[str, Any]) -> Keys:
    return tuple(key for key, value in row.items() if value is not None)


def _usual(keys: Keys, need: Need) -> Shape | None:
    """What rows that lack something may have been meant to be: of the most usual keys, so that it can be said."""
    if need == "pairs":
        if not set(SIDES) & set(keys):
            return None
        question = next((key for key in QUESTIONS if key in keys), "instruction")
        sides = {side: side for side in SIDES}
        return Shape(f"{question}, chosen, rejected", "pair", {"instruction": question, **sides})
    question = next((key for key in QUESTIONS if key in keys), "")
    answers = [key for key in ANSWERS if key in keys]
    if question and not answers:
        usual = {"question": "answer", "prompt": "completion", "query": "response"}.get(question, "output")
        return Shape(f"{question}/{usual}", "flat", {"instruction": question, "output": usual})
    if len(answers) == 1 and not question:
        return Shape(f"instruction/{answers[0]}", "flat", {"instruction": "instruction", "output": answers[0]})
    return None


def _needed(shape: Shape, need: Need) -> list[str]:
    """The keys that a row of a shape must have."""
    if shape.kind == "pair":
        first = [shape.keys[part] for part in ("messages", "instruction") if part in shape.keys]
        return [*first, *SIDES]
    if shape.kind in ("conversation", "text"):
        return [*list(shape.keys.values())[:1]]
    return [shape.key("instruction"), *([shape.key("output")] if need != "prompts" else [])]


def _shown(keys: Keys) -> str:
    names = [key if key.isprintable() and len(key) <= 40 else f"{key[:40]!r}..." for key in sorted(map(str, keys))]
    more = f" and {len(names) - KEYS_SHOWN} more" if len(names) > KEYS_SHOWN else ""
    return (", ".join(names[:KEYS_SHOWN]) or "none") + more


def _rows(kind: _Kind) -> str:
    return f"row {kind.first}" if kind.count == 1 else f"{kind.count:,} rows, the first is row {kind.first}"


def _quoted(words: str) -> str:
    return words if all(char.isalnum() or char in "_=,.-" for char in words) else f"'{words}'"
