"""Batches of preference pairs, in the same orders as those of rows."""

from __future__ import annotations

from collections.abc import Sequence

from instil.data.collate import common_prefix
from instil.data.loader import BookLoader, Loader
from instil.data.pair_collate import collate_pairs, fork_points, scored_within
from instil.records import EncodedPair, PairBatch


class PairLoader(Loader):
    """As `Loader`, whose arguments it takes, with pairs for rows."""

    rows: tuple[EncodedPair, ...]

    def ids(self) -> list[int]:
        """Every token id that some batch may hold, in order."""
        pairs = [one for pair in self.rows for one in (pair, pair.other) if one is not None]
        sides = [side.ids for pair in pairs for side in (pair.chosen, pair.rejected)]
        return sorted({self._pad_id}.union(*sides))

    def _positions(self, chosen: Sequence[int]) -> int:
        rows = [row for index in chosen for row in (self.rows[index].chosen, self.rows[index].rejected)]
        kept = [self._within(len(row.ids) - 1) for row in rows]
        others = self._positions_of_others(chosen)
        if self.layout == "padded":
            return len(kept) * max(kept) + others
        shared = common_prefix([row.ids for row in rows], min(kept) - 1)
        stems = fork_points(rows, kept, shared)
        return sum(kept) - (len(kept) - 1) * shared - sum(stems) + others

    def _positions_of_others(self, chosen: Sequence[int]) -> int:
        """Rows that are only looked at cost a third of those that are trained on."""
        others = [other for index in chosen if (other := self.rows[index].other)]
        kept = [self._within(len(row.ids) - 1) for pair in others for row in (pair.chosen, pair.rejected)]
        return sum(kept) // 3

    def _length(self, index: int) -> int:
        pair = self.rows[index]
        return sum(self._within(len(row.ids) - 1) for row in (pair.chosen, pair.rejected))

    def _within(self, count: int) -> int:
        return count if self._max_length is None else min(count, self._max_length)

    def _collate(self, chosen: Sequence[int]) -> PairBatch:
        return collate_pairs([self.rows[i] for i in chosen], self._pad_id, self._max_length, self.layout)


class BookPairLoader(PairLoader, BookLoader):
    """Pairs in the order in which torch's ``DataLoader`` draws them."""


def is_scored(pair: EncodedPair, max_length: int) -> bool:
    """Whether something is left to score of both answers within ``max_length`` positions."""
    return all(scored_within(pair, max_length))


def is_told_apart(pair: EncodedPair, max_length: int) -> bool:
    """Whether the two answers still differ in what is scored of them within ``max_length`` positions."""
    chosen, rejected = pair.chosen_scored, pair.rejected_scored
    first, second = (min(span.stop, max_length + 1) for span in (chosen, rejected))
    return pair.chosen.ids[chosen.start : first] != pair.rejected.ids[rejected.start : second]
