"""How the rows of a batch lie in its tokens: side by side, or after a beginning that they share.

A layout says how many tokens it computes, and by which attention pattern they see one another: causally, each within
its own row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Pattern = Literal["grid", "shared_prefix", "forks"]  # which attention a layout wants


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
class Shared:
    """A layout without padding: the ``prefix`` first tokens that all rows have in common, once, then each row's own.

    ``lengths`` counts the tokens of each row after the prefix, at least one each. Every row is to be
    understood as prefix and own tokens in one sequence.
    """

    prefix: int
    lengths: tuple[int, ...]
    pattern: ClassVar[Pattern] = "shared_prefix"

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """As `Grid.tokens`."""
        return self.prefix + sum(self.lengths)

    @property
    def tokens_of_rows(self) -> int:
        """As `Grid.tokens_of_rows`."""
        return self.prefix * self.rows + sum(self.lengths)


@dataclass(frozen=True, slots=True)
class Forked:
    """A layout of pairs: the ``prefix`` of all, then for each pair the stem that its two rows share, then branches.

    ``stems`` counts the tokens of each pair after the prefix that both rows have in common (none is possible), and
    ``branches`` the tokens after these of each row: of the first pair's two, of the second's, and so on, at least
    one each.
    """

    prefix: int
    stems: tuple[int, ...]
    branches: tuple[int, ...]
    pattern: ClassVar[Pattern] = "forks"

    @property
    def rows(self) -> int:
        """Number of sequences: two for each pair."""
        return len(self.branches)

    @property
    def tokens(self) -> int:
        """As `Grid.tokens`."""
        return self.prefix + sum(self.stems) + sum(self.branches)

    @property
    def tokens_of_rows(self) -> int:
        """As `Grid.tokens_of_rows`."""
        return self.prefix * self.rows + 2 * sum(self.stems) + sum(self.branches)


Layout = Grid | Shared | Forked
