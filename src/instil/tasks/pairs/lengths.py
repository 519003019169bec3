"""How much of very many pairs is scored, and whether their answers differ, as columns; `encoding` asks it of one pair.

Shape suffix: R pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instil.data.store.pairs import EncodedPairs, ids_alike
from instil.data.subset import Subset
from instil.records import EncodedPair
from instil.tasks.pairs.views import WithOthers, Wrapped

Columns = NDArray[Any]


@dataclass(frozen=True, slots=True)
class PairLengths:
    """Of each pair its number, the ids of both rows, the spans of what is scored of them, and what these have alike.

    ``first_R`` is where both spans begin, ``alike_R`` how many ids from there on are the same. ``other`` is the same of
    each pair's prompt with the answers of another one, where those are looked at.
    """

    row_R: Columns
    chosen_R: Columns
    rejected_R: Columns
    first_R: Columns
    chosen_end_R: Columns
    rejected_end_R: Columns
    alike_R: Columns
    other: PairLengths | None = None

    def some(self, at_R: slice | NDArray[np.int64]) -> PairLengths:
        """Those of some of the pairs."""
        columns = {one.name: getattr(self, one.name)[at_R] for one in fields(self) if one.name != "other"}
        return replace(self, **columns, other=self.other and self.other.some(at_R))

    def scored_R(self, max_length: int) -> tuple[Columns, Columns]:
        """How many ids of each answer are scored within ``max_length`` positions of a row."""
        chosen_R, rejected_R = (
            np.maximum(np.minimum(end_R, max_length + 1) - self.first_R, 0)
            for end_R in (self.chosen_end_R, self.rejected_end_R)
        )
        return chosen_R, rejected_R

    def within_R(self, max_length: int) -> NDArray[np.bool_]:
        """As `instil.tasks.pairs.encoding.is_within`."""
        chosen_R, rejected_R = self.scored_R(max_length)
        within_R: NDArray[np.bool_] = (chosen_R > 0) & (rejected_R > 0)
        return within_R if self.other is None else within_R & self.other.within_R(max_length)

    def told_apart_R(self, max_length: int) -> NDArray[np.bool_]:
        """As `instil.tasks.pairs.encoding.is_told_apart`."""
        chosen_R, rejected_R = self.scored_R(max_length)
        apart_R: NDArray[np.bool_] = (chosen_R != rejected_R) | (self.alike_R < chosen_R)
        return apart_R

    @property
    def differ_R(self) -> NDArray[np.bool_]:
        """Whether the answers differ anywhere, at whatever length."""
        differ_R: NDArray[np.bool_] = (self.chosen_R != self.rejected_R) | (self.alike_R < self.chosen_R - self.first_R)
        return differ_R

    @property
    def longest_R(self) -> Columns:
        """The ids of the longer row."""
        return np.maximum(self.chosen_R, self.rejected_R)

    def computed_R(self, max_length: int | None) -> Columns:
        """How many positions both rows have, of each at most ``max_length``."""
        most = np.iinfo(np.int32).max if max_length is None else max_length
        both_R: Columns = np.minimum(self.chosen_R - 1, most) + np.minimum(self.rejected_R - 1, most)
        return both_R


def pair_lengths(pairs: Sequence[EncodedPair]) -> PairLengths:
    """The columns of pairs; of those in a store they are there already."""
    if isinstance(pairs, EncodedPairs):
        return _in_store(pairs)
    if isinstance(pairs, Subset) and isinstance(pairs.rows, EncodedPairs | Wrapped):
        numbers = pairs.numbers
        if isinstance(numbers, range) and numbers.step == 1:
            return pair_lengths(pairs.rows).some(slice(numbers.start, numbers.stop))
        return pair_lengths(pairs.rows).some(np.asarray(numbers, dtype=np.int64))
    if isinstance(pairs, WithOthers):
        return _with_others(pair_lengths(pairs.pairs), _prompts_R(pairs.pairs))
    return pair_lengths(pairs.pairs) if isinstance(pairs, Wrapped) else _in_memory(pairs)


def _in_store(pairs: EncodedPairs) -> PairLengths:
    chosen, rejected = pairs.chosen.lengths, pairs.rejected.lengths
    return PairLengths(
        chosen.row_R,
        chosen.ids_R,
        rejected.ids_R,
        first_R=pairs.scored_from_R,
        chosen_end_R=chosen.ids_R - pairs.unscored,
        rejected_end_R=rejected.ids_R - pairs.unscored,
        alike_R=pairs.alike_R,
    )


def _in_memory(pairs: Sequence[EncodedPair]) -> PairLengths:
    def column(values: Sequence[int]) -> Columns:
        return np.array(values, np.int64)

    sides = [(pair.chosen.ids, pair.rejected.ids, pair.chosen_scored.start) for pair in pairs]
    others = [pair.other for pair in pairs if pair.other is not None]
    return PairLengths(
        column([pair.row for pair in pairs]),
        column([len(chosen) for chosen, _, _ in sides]),
        column([len(rejected) for _, rejected, _ in sides]),
        column([first for _, _, first in sides]),
        column([pair.chosen_scored.stop for pair in pairs]),
        column([pair.rejected_scored.stop for pair in pairs]),
        column([ids_alike(*side) for side in sides]),
        _in_memory(others) if others else None,
    )


def _prompts_R(pairs: Sequence[EncodedPair]) -> Columns:
    """How many ids come before the answers of pairs in a store."""
    if isinstance(pairs, Subset):
        prompts_R: Columns = _prompts_R(pairs.rows)[pairs.numbers]
        return prompts_R
    assert isinstance(pairs, EncodedPairs), "others are in memory with the pairs"
    return pairs.prompt_length_R


def _with_others(own: PairLengths, prompts_R: Columns) -> PairLengths:
    """With the answers of the next pair of each behind its own prompt, all of which are scored."""
    chosen_R, rejected_R = (prompts_R + np.roll(ids_R - prompts_R, -1) for ids_R in (own.chosen_R, own.rejected_R))
    alike_R = np.zeros_like(prompts_R)  # which nobody asks for
    return replace(own, other=PairLengths(own.row_R, chosen_R, rejected_R, prompts_R, chosen_R, rejected_R, alike_R))
