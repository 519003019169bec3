"""Which row goes where: training, test and validation.

Chapter 7.2 cuts the file in order, 85 % for training, the next 10 % for testing and the rest for
validation; `split_in_order` does exactly that.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from instil.data.subset import Lazy, Subset, chosen
from instil.data.words import normal, words
from instil.records import Example
from instil.settings.options import DataOptions

TRAIN_SHARE = 0.85
TEST_SHARE = 0.10
COMPACT_FROM = 100_000  # rows from which on `split.json` has ranges
Part = Literal["train", "test", "validation"]
PARTS: tuple[Part, ...] = ("train", "test", "validation")


@dataclass(frozen=True, slots=True)
class Split:
    """The examples of each part."""

    kind: str
    train: Sequence[Example]
    test: Sequence[Example]
    validation: Sequence[Example]

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

    >>> rows_in([3, 1]), rows_in({"ranges": [[0, 3], [7, 8]]}), rows_in({"ranges": [[0]]})
    ([3, 1], [0, 1, 2, 7], None)
    """
    if isinstance(part, list):
        return part if all(type(row) is int for row in part) else None
    ranges = part.get("ranges") if isinstance(part, dict) else None
    if not isinstance(ranges, list):
        return None
    pairs = [pair for pair in ranges if isinstance(pair, list) and [type(end) for end in pair] == [int, int]]
    return [row for first, end in pairs for row in range(first, end)] if len(pairs) == len(ranges) else None


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


def split_examples(examples: Sequence[Example], options: DataOptions) -> Split:
    """Split as ``data.split`` says."""
    if options.split == "book":
        return split_in_order(examples)
    return split_grouped(examples, seed=options.split_seed)


def split_in_order(examples: Sequence[Example]) -> Split:
    """The book's split: in file order, 85/10/5 %."""
    train, test, _ = sizes(len(examples))
    rows = examples if isinstance(examples, Lazy) else tuple(examples)
    return Split("book", rows[:train], rows[train : train + test], rows[train + test :])


def split_grouped(examples: Sequence[Example], seed: int) -> Split:
    """A seeded split of the same sizes in which rows with an equal prompt stay on one side.

    Groups are dealt out in shuffled order to validation and test while they fit, then to training, so
    the two small parts never exceed their share. A function of the examples and the seed alone.
    """
    groups: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        groups.setdefault(_plain(f"{example.instruction} {example.about}"), []).append(number)
    dealt = list(groups.values())
    random.Random(seed).shuffle(dealt)
    _, test_size, validation_size = sizes(len(examples))
    train: list[int] = []
    test: list[int] = []
    validation: list[int] = []
    for group in dealt:
        if len(validation) + len(group) <= validation_size:
            validation.extend(group)
        elif len(test) + len(group) <= test_size:
            test.extend(group)
        else:
            train.extend(group)
    if not train:  # every row has the same prompt, or there is only one
        train, test, validation = [*validation, *test], [], []
    return Split("grouped", *(chosen(examples, np.array(part, np.int64)) for part in (train, test, validation)))


def _plain(text: str) -> str:
    return " ".join(words(text)) or normal(text).strip()
