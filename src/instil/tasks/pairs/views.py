"""Pairs seen as something else, one by one: with what is known of them besides, or one row of each.

Nothing of it is copied, so that of very many pairs in a store no more is held than of few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from instil.data.lengths import Lengths, lengths_of
from instil.data.store.pairs import EncodedPairs
from instil.data.subset import Lazy, Subset, chosen
from instil.records import Encoded, EncodedPair
from instil.tasks.pairs.encoding import with_other


class Wrapped(Lazy[EncodedPair]):
    """The same pairs in the same order, each with more.

    Attributes:
        pairs: what they are without it.
    """

    def __init__(self, pairs: Sequence[EncodedPair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, at: Any) -> Any:
        return self.subset(range(len(self))[at]) if isinstance(at, slice) else self.one(range(len(self))[at])

    def one(self, at: int) -> EncodedPair:
        """The pair of that number, from 0."""
        raise NotImplementedError

    @property
    def seen_ids(self) -> Sequence[int]:
        """Every id that some row has, in order."""
        known = self.pairs.rows if isinstance(self.pairs, Subset) else self.pairs
        assert isinstance(known, EncodedPairs | Wrapped), "only of pairs in a store"
        return known.seen_ids


class WithOthers(Wrapped):
    """Each with the answers of the next one (`instil.tasks.pairs.encoding.with_others`)."""

    def one(self, at: int) -> EncodedPair:
        return with_other(self.pairs[at], self.pairs[(at + 1) % len(self)])


class Longest(Lazy[Encoded]):
    """The longer row of each pair; where both are as long, the chosen one."""

    def __init__(self, pairs: Sequence[EncodedPair]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, at: Any) -> Any:
        return self.subset(range(len(self))[at]) if isinstance(at, slice) else longest(self._pairs[at])

    @property
    def lengths(self) -> Lengths:
        """As `instil.data.lengths.lengths_of` has them."""
        chosen, rejected = (lengths_of(rows) for rows in (chosen_rows(self._pairs), rejected_rows(self._pairs)))
        longer_R = rejected.ids_R > chosen.ids_R
        names = ("ids_R", "targets_R", "first_target_R", "row_R", "end_R")
        columns = (np.where(longer_R, getattr(rejected, name), getattr(chosen, name)) for name in names)
        return Lengths(self, *columns)


def longest(pair: EncodedPair) -> Encoded:
    """The longer row; where both are as long, the chosen one."""
    return max(pair.chosen, pair.rejected, key=lambda side: len(side.ids))


def chosen_rows(pairs: Sequence[EncodedPair]) -> Sequence[Encoded]:
    """The rows with the chosen answers."""
    if isinstance(pairs, EncodedPairs):
        return pairs.chosen
    if isinstance(pairs, Subset):
        return chosen(chosen_rows(pairs.rows), pairs.numbers)
    return chosen_rows(pairs.pairs) if isinstance(pairs, Wrapped) else [pair.chosen for pair in pairs]


def rejected_rows(pairs: Sequence[EncodedPair]) -> Sequence[Encoded]:
    """Those with the rejected ones."""
    if isinstance(pairs, EncodedPairs):
        return pairs.rejected
    if isinstance(pairs, Subset):
        return chosen(rejected_rows(pairs.rows), pairs.numbers)
    return rejected_rows(pairs.pairs) if isinstance(pairs, Wrapped) else [pair.rejected for pair in pairs]
