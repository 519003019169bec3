"""Which row goes where: training, test and validation.

Chapter 7.2 cuts the file in order, 85 % for training, the next 10 % for testing and the rest for
validation; `split_in_order` does exactly that. `split_grouped` shuffles, and keeps together what is nearly the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from instil.data.duplicates.grams import Numbers
from instil.data.duplicates.groups import Groups
from instil.data.duplicates.search import NEAR, Relatives, Tick, first_of_equal, hashed, relatives
from instil.data.near_duplicates import Prompts
from instil.data.subset import Lazy, Subset, chosen
from instil.data.words import normal, words
from instil.errors import counted
from instil.records import Example
from instil.settings.options import DataOptions

TRAIN_SHARE = 0.85
TEST_SHARE = 0.10
SHOWN = 5  # groups that are told of
COMPACT_FROM = 100_000  # rows from which on `split.json` has ranges
MOST_ROWS = 10_000_000  # of a part; more are not held, as ranges of a damaged file may say anything
Part = Literal["train", "test", "validation"]
PARTS: tuple[Part, ...] = ("train", "test", "validation")


@dataclass(frozen=True, slots=True)
class Split:
    """The examples of each part.

    ``notes`` is what is to be said of the split. ``near`` holds the groups of near relatives, of the training
    rows first, then of test and validation, where the split was made by them, so that none is in two parts.
    """

    kind: str
    train: Sequence[Example]
    test: Sequence[Example]
    validation: Sequence[Example]
    notes: tuple[str, ...] = ()
    near: Relatives | None = field(default=None, compare=False, repr=False)

    def part(self, name: Part) -> Sequence[Example]:
        """The examples of one part by its name."""
        parts: dict[Part, Sequence[Example]] = {
            "train": self.train,
            "test": self.test,
            "validation": self.validation,
        }
        return parts[name]

    def as_json(self) -> dict[str, object]:
        """The row numbers of each part, for ``split.json``; of very many rows as ranges, see `rows_in`."""
        numbers = {name: row_numbers(self.part(name)) for name in PARTS}
        if sum(map(len, numbers.values())) < COMPACT_FROM:
            return {"kind": self.kind} | {name: rows.tolist() for name, rows in numbers.items()}
        return {"kind": self.kind} | {name: {"ranges": _ranges(rows)} for name, rows in numbers.items()}


def rows_in(part: Any) -> list[int] | None:
    """The row numbers of a part as ``split.json`` has them, a list or ranges with their ends; None for what is neither.

    Nor are ranges of more than `MOST_ROWS` rows.

    >>> rows_in([3, 1]), rows_in({"ranges": [[0, 3], [7, 8]]}), rows_in({"ranges": [[0]]})
    ([3, 1], [0, 1, 2, 7], None)
    """
    if isinstance(part, list):
        return part if all(type(row) is int for row in part) else None
    ranges = part.get("ranges") if isinstance(part, dict) else None
    if not isinstance(ranges, list):
        return None
    pairs = [pair for pair in ranges if isinstance(pair, list) and [type(end) for end in pair] == [int, int]]
    if len(pairs) < len(ranges) or sum(max(0, end - first) for first, end in pairs) > MOST_ROWS:
        return None
    return [row for first, end in pairs for row in range(first, end)]


def row_numbers(examples: Sequence[Example]) -> NDArray[np.int64]:
    """The numbers of rows in their file."""
    rows, numbers = (examples.rows, examples.numbers) if isinstance(examples, Subset) else (examples, None)
    if not isinstance(rows, Numbered):
        return np.fromiter((example.row for example in examples), np.int64, len(examples))
    if isinstance(numbers, range):
        return rows.row_numbers[numbers.start : numbers.stop : numbers.step]
    return rows.row_numbers if numbers is None else rows.row_numbers[numbers]


@runtime_checkable
class Numbered(Protocol):
    """Rows whose numbers are known without looking at them."""

    @property
    def row_numbers(self) -> NDArray[np.int64]:
        """Those of all of them."""


def _ranges(rows: NDArray[np.int64]) -> list[list[int]]:
    """Numbers as ranges of those that follow one another.

    >>> _ranges(np.array([0, 1, 2, 7]))
    [[0, 3], [7, 8]]
    """
    if not len(rows):
        return []
    breaks = np.flatnonzero(np.diff(rows) != 1)
    firsts, lasts = rows[np.concatenate([[0], breaks + 1])], rows[np.concatenate([breaks, [len(rows) - 1]])]
    found: list[list[int]] = np.stack([firsts, lasts + 1], axis=1).tolist()
    return found


def sizes(count: int) -> tuple[int, int, int]:
    """How many rows train, test and validate.

    >>> sizes(1100)
    (935, 110, 55)
    >>> sizes(5)
    (4, 0, 1)
    >>> sizes(1)
    (1, 0, 0)
    """
    train = max(1, int(count * TRAIN_SHARE))  # a single row trains rather than validates
    test = min(int(count * TEST_SHARE), count - train)
    return train, test, count - train - test


def fewer(split: Split, most: int, seed: int) -> Split:
    """A split of which at most so many training rows are trained on, drawn by a seed; 0 means all.

    Of one seed fewer rows are among more; rows stay in their order, and what is held out stays.

    >>> rows = tuple(Example(f"Say {n}.", f"{n}", row=n) for n in range(20))
    >>> few, more = (fewer(split_in_order(rows), most, seed=1).train for most in (4, 8))
    >>> len(few), len(more), {row.row for row in few} < {row.row for row in more}
    (4, 8, True)
    """
    count = len(split.train)
    if not most or most >= count:
        return split
    drawn = np.sort(np.random.default_rng(seed).permutation(count)[:most])
    note = f"{most:,} of {counted(count, 'training row')} are trained on (data.max_train_samples)"
    return replace(split, train=chosen(split.train, drawn), notes=(*split.notes, note), near=None)


def split_examples(examples: Sequence[Example], options: DataOptions, tick: Tick | None = None) -> Split:
    """Split as ``data.split`` says; ``tick`` is told of steps, as `instil.data.duplicates.search.relatives` tells."""
    if options.split == "book":
        return split_in_order(examples)
    return split_grouped(examples, options.split_seed, options.leak_threshold, tick)


def split_in_order(examples: Sequence[Example]) -> Split:
    """The book's split: in file order, 85/10/5 %."""
    train, test, _ = sizes(len(examples))
    rows = examples if isinstance(examples, Lazy) else tuple(examples)
    return Split("book", rows[:train], rows[train : train + test], rows[train + test :])


def split_grouped(examples: Sequence[Example], seed: int, threshold: float = NEAR, tick: Tick | None = None) -> Split:
    """A seeded split of the same sizes in which near relatives stay on one side.

    Relatives are rows whose prompts are equal but for case and punctuation or nearly the same, and relatives of
    relatives. Groups are dealt out in shuffled order to validation and test while they fit, then to training, so
    the two small parts never exceed their share. Where all rows are relatives, so that none would be held out, only
    those with equal prompts are kept together. A function of the examples, the seed and the threshold alone.
    """
    equal = first_of_equal(np.fromiter((hashed(_plain(text)) for text in Prompts(examples)), np.uint64, len(examples)))
    found = relatives(Prompts(examples), None, threshold, tick)
    groups = Groups(len(examples))
    groups.join(np.arange(len(examples)), found.group_N)
    groups.join(np.arange(len(examples)), equal)
    near = groups.every()
    _, test_size, validation_size = sizes(len(examples))
    parts, large = _dealt(near, seed, test_size, validation_size)
    divided = len(examples) > 1 and test_size + validation_size and not (len(parts[1]) or len(parts[2]))
    if divided:
        parts, _ = _dealt(equal, seed, test_size, validation_size)
    train, test, validation = (chosen(examples, part.astype(np.int64)) for part in parts)
    notes = _notes(examples, large, divided=bool(divided and (test or validation)))
    as_dealt = replace(found, group_N=near[np.concatenate(parts)])
    return Split("grouped", train, test, validation, notes, None if divided else as_dealt)


def _dealt(group_N: Numbers, seed: int, test_size: int, validation_size: int) -> tuple[list[Numbers], list[Numbers]]:
    """Row numbers of training, test and validation; and of each group that is larger than either small part."""
    order = np.argsort(group_N, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group_N[order])) + 1)  # by their first rows
    dealt = groups.copy()
    random.Random(seed).shuffle(dealt)
    train: list[Numbers] = []
    test: list[Numbers] = []
    validation: list[Numbers] = []
    tested = validated = 0
    for group in dealt:
        if validated + len(group) <= validation_size:
            validation.append(group)
            validated += len(group)
        elif tested + len(group) <= test_size:
            test.append(group)
            tested += len(group)
        else:
            train.append(group)
    if not train:  # every row has the same prompt, or there is only one
        train, test, validation = [*validation, *test], [], []
    none = np.zeros(0, np.int64)
    large = [group for group in groups if len(group) > max(1, test_size, validation_size)]
    return [np.concatenate([none, *part]) for part in (train, test, validation)], large


def _notes(examples: Sequence[Example], large: Sequence[Numbers], *, divided: bool) -> tuple[str, ...]:
    if not large:
        return ()
    largest = sorted(large, key=len, reverse=True)
    shown = ", ".join(f"{len(group):,} rows like row {examples[int(group[0])].row}" for group in largest[:SHOWN])
    more = f", and {len(large) - SHOWN} more" if len(large) > SHOWN else ""
    what = counted(len(large), "group") + " of nearly the same prompts"
    if divided:
        return (
            f"{what} ({shown}{more}) would leave no row to hold out, so only rows with equal prompts are kept "
            "together; a higher data.leak_threshold makes smaller groups",
        )
    are = (
        "is larger than a held-out part and is trained on as a whole"
        if len(large) == 1
        else ("are larger than a held-out part and are trained on as a whole")
    )
    return (f"{what} {are}: {shown}{more}; a higher data.leak_threshold makes smaller groups",)


def _plain(text: str) -> str:
    return " ".join(words(text)) or normal(text).strip()
