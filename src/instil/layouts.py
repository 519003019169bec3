"""How the rows of a batch lie in its tokens: side by side, or as a tree of what they have in common.

A layout says how many tokens it computes, and by which attention pattern they see one another: causally, each within
its own row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

Pattern = Literal["grid", "tree"]  # which attention a layout wants


@dataclass(frozen=True, slots=True)
class Grid:
    """A layout: ``rows`` sequences side by side, each padded on the right to ``length`` tokens."""

    rows: int
    length: int
    pattern: ClassVar[Pattern] = "grid"

    @property
    def tokens(self) -> int:
        """How many tokens are computed, padding included."""
        return self.rows * self.length

    @property
    def tokens_of_rows(self) -> int:
        """How many tokens the sequences have in all, a shared one in every sequence that it belongs to."""
        return self.tokens


@dataclass(frozen=True, slots=True)
class Tree:
    """A layout without padding, in which what rows have in common from their beginning on is there once.

    The tokens lie in segments, one after another. Each goes on from the end of its parent (-1: it is a beginning),
    which stands before it, and the last ``rows`` of them are the rows' own ends, at least one token each; every other
    one is shared by all rows that come after it in the tree. A row is to be understood as the segments from its
    beginning to its own, in one sequence.

    >>> Tree((-1, 0, 0), (5, 2, 3), rows=2).tokens_of_rows
    15
    """

    parents: tuple[int, ...]
    lengths: tuple[int, ...]
    rows: int
    pattern: ClassVar[Pattern] = "tree"

    @staticmethod
    def of(lengths: Sequence[int], prefix: int = 0) -> Tree:
        """Rows of so many tokens each after those that all of them begin with.

        >>> Tree.of([2, 3], prefix=5) == Tree((-1, 0, 0), (5, 2, 3), rows=2)
        True
        """
        if prefix:
            return Tree((-1, *(0,) * len(lengths)), (prefix, *lengths), len(lengths))
        return Tree((-1,) * len(lengths), tuple(lengths), len(lengths))

    @property
    def tokens(self) -> int:
        """As `Grid.tokens`."""
        return sum(self.lengths)

    @property
    def tokens_of_rows(self) -> int:
        """As `Grid.tokens_of_rows`."""
        ends = list[int]()
        for parent, length in zip(self.parents, self.lengths, strict=True):
            ends.append(length + (ends[parent] if parent >= 0 else 0))
        return sum(ends[len(ends) - self.rows :])

    def path(self, segment: int) -> list[int]:
        """The segments from the beginning to this one.

        >>> Tree((-1, 0, 1, 1, 0), (5, 2, 3, 1, 1), rows=3).path(3)
        [0, 1, 3]
        """
        found = [segment]
        while self.parents[found[0]] >= 0:
            found.insert(0, self.parents[found[0]])
        return found


Layout = Grid | Tree
