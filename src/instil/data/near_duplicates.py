"""Rows that say nearly the same: held-out rows that were as good as seen in training.

Two texts are as near as the cosine of their TF-IDF vectors of single characters, pairs and triples (see
`instil.data.duplicates.grams`): the book's bonus material (chapter 7, dataset utilities) finds duplicates so, from 0.9
on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import overload

import numpy as np
from numpy.typing import NDArray

from instil.data.duplicates.grams import Grams, Numbers, Rarity, in_chunks, unit_weights
from instil.data.duplicates.search import NEAR, relatives
from instil.data.subset import Lazy, some
from instil.data.subset import Numbers as Places
from instil.errors import counted
from instil.records import Example

AT_ONCE = 1 << 16  # numbers looked at together


@dataclass(frozen=True, slots=True)
class Near:
    """A held-out row, the training row nearest to it, and their cosine."""

    row: int
    train_row: int
    cosine: float


def leaked(train: Sequence[Example], held_out: Sequence[Example], threshold: float = NEAR) -> list[Near]:
    """Held-out rows whose prompt (instruction and input) has a training prompt at least as near as ``threshold``.

    >>> train = [Example("Add 2 and 3.", "5", row=0), Example("Name a colour.", "Red.", row=1)]
    >>> leaked(train, [Example("Name a color!", "Blue.", row=7), Example("Say hello.", "Hello.", row=8)], 0.8)
    [Near(row=7, train_row=1, cosine=0.8198)]
    """
    texts = Prompts(train, held_out)
    found = relatives(texts, np.arange(len(texts)) >= len(train), threshold)
    return [
        Near(row.row, train[int(at)].row, round(float(cosine), 4))
        for row, at, cosine in zip(held_out, found.nearest_N[len(train) :], found.cosine_N[len(train) :], strict=True)
        if at >= 0
    ]


def prompt_text(row: Example) -> str:
    """What is compared: instruction and input; of a conversation all that was said before the answer.

    Of a text without a question it is the text. A system message is left out, which tells the rows of a file from those
    of another, and not from one another.

    >>> prompt_text(Example("Add them.", "5", "2 and 3"))
    'Add them. 2 and 3'
    """
    asked = f"{row.instruction or row.output} {row.about}"
    if row.plain:
        return asked
    before = (f"{turn.content} {turn.about}" for turn in row.history if turn.role != "system")
    return "\n".join([*before, asked, *(turn.content for turn in row.steps)])


class Prompts(Lazy[str]):
    """The prompts of rows, of one part after the other; each is read when it is asked for."""

    def __init__(self, *parts: Sequence[Example]) -> None:
        self._parts = parts
        self._ends = [*accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[number] for number in range(len(self))[at]]
        return prompt_text(self.row(range(len(self))[at]))

    def __iter__(self) -> Iterator[str]:
        return map(prompt_text, chain.from_iterable(self._parts))

    def some(self, numbers: Places) -> Iterator[str]:
        """Those of these numbers, one after another."""
        for first in range(0, len(numbers), AT_ONCE):
            window = np.asarray(numbers[first : first + AT_ONCE], dtype=np.int64)
            part = np.searchsorted(self._ends, window, side="right")
            for own in np.split(np.arange(len(window)), np.flatnonzero(part[1:] != part[:-1]) + 1):
                if len(own):
                    at = int(part[own[0]])
                    yield from map(prompt_text, some(self._parts[at], window[own] - (self._ends[at - 1] if at else 0)))

    def row(self, at: int) -> Example:
        """The row of that place."""
        part = bisect_right(self._ends, at)
        return self._parts[part][at - (self._ends[part - 1] if part else 0)]


def nearest_of(known: Sequence[str], asked: Sequence[str]) -> tuple[list[float], list[int]]:
    """For each text asked about the cosine of the nearest known one, however far, and its index."""
    found = Seen(known, common=asked).nearest_of_each(asked)
    return [cosine for cosine, _ in found], [at for _, at in found]


class Seen:
    """Texts seen so far, to tell whether a further one is near to one of them; texts can be added.

    How rare an n-gram is stays as it was in the first texts, so that a cosine does not depend on what came later.

    Args:
        texts: what has been seen.
        common: further texts, from which rarity is taken as well; few texts alone do not tell what is rare.

    >>> seen = Seen(["Name a colour."], ["Add 2 and 3.", "Say hello.", "Sort these words."])
    >>> seen.nearest("Name a color!")[0] > 0.8 > seen.nearest("Sort these numbers.")[0]
    True
    """

    def __init__(self, texts: Sequence[str], common: Sequence[str] = ()) -> None:
        self._rarity = Rarity((chunk, np.ones(len(chunk), np.int64)) for chunk in in_chunks([*texts, *common]))
        self._new: dict[int, int] = {}  # columns of n-grams that the first texts do not have
        self._counts, self._columns, self._weights = (np.zeros(0, kind) for kind in (np.int64, np.int32, np.float64))
        self._add(texts)

    def __len__(self) -> int:
        return len(self._counts)

    def nearest(self, text: str) -> tuple[float, int]:
        """The cosine of the nearest text, and its number in the order of arrival; 0 and -1 if there is none."""
        return self.nearest_of_each([text])[0]

    def nearest_of_each(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """The same for many texts at once."""
        if not len(self):
            return [(0.0, -1)] * len(texts)
        nearest = ((cosines, int(cosines.argmax())) for cosines in self._cosines(texts))
        return [(min(float(cosines[at]), 1.0), at) for cosines, at in nearest]

    def nearest_few(self, texts: Sequence[str], count: int) -> list[list[int]]:
        """The numbers of so many nearest texts for each, the nearest first; of equally near ones the earlier.

        >>> seen = Seen(["Name a colour.", "Add 2 and 3.", "Name a color, please."])
        >>> seen.nearest_few(["Name a color!"], 2)
        [[0, 2]]
        """
        if not len(self):
            return [[] for _ in texts]
        return [np.argsort(-cosines, kind="stable")[:count].tolist() for cosines in self._cosines(texts)]

    def _cosines(self, texts: Sequence[str]) -> Iterator[NDArray[np.float64]]:
        """Of each text with all that were seen."""
        ends = np.cumsum(self._counts)
        for chunk in in_chunks(texts):
            columns, weights = self._vectors(chunk)
            dense = np.zeros(len(self._rarity.codes) + len(self._new))
            for start, end in zip(chunk.starts[:-1], chunk.starts[1:], strict=True):
                dense[columns[start:end]] = weights[start:end]
                sums = np.append(0.0, np.cumsum(dense[self._columns] * self._weights))
                yield sums[ends] - sums[ends - self._counts]
                dense[columns[start:end]] = 0.0

    def add(self, text: str) -> None:
        """One more text."""
        self._add([text])

    def _add(self, texts: Sequence[str]) -> None:
        chunks = list(in_chunks(texts))
        vectors = [self._vectors(chunk) for chunk in chunks]
        self._counts = np.concatenate([self._counts, *(np.diff(chunk.starts) for chunk in chunks)])
        self._columns = np.concatenate([self._columns, *(columns for columns, _ in vectors)])
        self._weights = np.concatenate([self._weights, *(weights for _, weights in vectors)])

    def _vectors(self, chunk: Grams) -> tuple[Numbers, Numbers]:
        columns, rarity = self._rarity.places(chunk.codes_G)
        known = len(self._rarity.codes)
        for at in np.flatnonzero(columns >= known).tolist():
            columns[at] = known + self._new.setdefault(int(chunk.codes_G[at]), len(self._new))
        return columns.astype(np.int32), unit_weights(chunk.starts, chunk.times_G * rarity)


def leak_line(leaks: Sequence[Near], part: str) -> str:
    """Which held-out rows were as good as seen in training.

    >>> leak_line([Near(936, 12, 0.97)], "test")
    '1 test row is nearly the same as a training row: 936 (like 12)'
    """
    shown = ", ".join(f"{near.row} (like {near.train_row})" for near in leaks[:10])
    more = f" and {len(leaks) - 10} more" if len(leaks) > 10 else ""
    same = "is nearly the same as a training row" if len(leaks) == 1 else "are nearly the same as training rows"
    return f"{counted(len(leaks), f'{part} row')} {same}: {shown}{more}"
