"""Which row goes where: training, test and validation.

Chapter 7.2 cuts the file in order, 85 % for training, the next 10 % for testing and the rest for
validation; `split_in_order` does exactly that.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from instil.data.subset import Lazy
from instil.data.words import normal, words
from instil.records import Example
from instil.settings.options import DataOptions

TRAIN_SHARE = 0.85
TEST_SHARE = 0.10
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
        """The row numbers of each part, for ``split.json``."""
        return {"kind": self.kind} | {name: [example.row for example in self.part(name)] for name in PARTS}


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
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(_plain(f"{example.instruction} {example.about}"), []).append(example)
    dealt = list(groups.values())
    random.Random(seed).shuffle(dealt)
    _, test_size, validation_size = sizes(len(examples))
    train: list[Example] = []
    test: list[Example] = []
    validation: list[Example] = []
    for group in dealt:
        if len(validation) + len(group) <= validation_size:
            validation.extend(group)
        elif len(test) + len(group) <= test_size:
            test.extend(group)
        else:
            train.extend(group)
    if not train:  # every row has the same prompt, or there is only one
        train, test, validation = [*validation, *test], [], []
    return Split("grouped", tuple(train), tuple(test), tuple(validation))


def _plain(text: str) -> str:
    return " ".join(words(text)) or normal(text).strip()
