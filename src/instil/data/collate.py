"""Rows of ids as one batch: the book's collate (chapter 7.3, listing 7.5), by position, and one without waste.

Shape suffixes: B rows · T positions · N = B*T tokens, flat · S supervised predictions ·
M targets of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instil.batches import Batch
from instil.data.lengths import lengths_of
from instil.data.tree import flat_tree, tree_of
from instil.layouts import Grid
from instil.records import Encoded

GPT2_END = 50256


def collate(rows: Sequence[Encoded | Sequence[int]], pad_id: int = GPT2_END, max_length: int | None = None) -> Batch:
    """Pad to the longest row, shift the targets by one, cut at ``max_length``.

    A row given as plain ids is one in the book's sense: the end token (``pad_id``) is appended and all
    of it is trained on. In the result ``inputs`` and ``targets`` are the chapter's two tensors: of the
    padding only the first id is a target, because it is the end of the text, and the rest is -100.

    Args:
        rows: encoded rows, or plain lists of ids.
        pad_id: the id that fills short rows.
        max_length: at most so many positions of each row.

    >>> batch = collate([[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]])
    >>> batch.inputs.tolist()
    [[0, 1, 2, 3, 4], [5, 6, 50256, 50256, 50256], [7, 8, 9, 50256, 50256]]
    >>> batch.targets.tolist()
    [[1, 2, 3, 4, 50256], [6, 50256, -100, -100, -100], [8, 9, 50256, -100, -100]]

    Raises:
        ValueError: there are no rows, or one of them is shorter than one id.
    """
    encoded = [row if isinstance(row, Encoded) else _whole(row, pad_id) for row in rows]
    kept = _kept(encoded, max_length)
    length = max(kept)
    ids: list[int] = []
    row_of: list[int] = []
    at: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for index, (row, count) in enumerate(zip(encoded, kept, strict=True)):
        counts = row.counts
        padding = length - count
        ids.extend((*row.ids[:count], *(pad_id,) * padding))
        row_of.extend((*(index,) * count, *(-1,) * padding))
        for position in range(count):
            if counts[position + 1]:
                for target, weight in row.targets_at(position + 1):
                    at.append(index * length + position)
                    targets.append(target)
                    weights.append(weight)
    return Batch(
        ids_N=torch.tensor(ids),
        positions_N=torch.arange(length).repeat(len(encoded)),
        rows_N=torch.tensor(row_of),
        at_S=torch.tensor(at, dtype=torch.long),
        targets_S=torch.tensor(targets, dtype=torch.long),
        weights_S=torch.tensor(weights, dtype=torch.get_default_dtype()),
        layout=Grid(len(encoded), length),
        examples=tuple(row.row for row in encoded),
    )


def collate_shared(rows: Sequence[Encoded], max_length: int | None = None) -> Batch:
    """The same predictions as `collate`, without padding and with what rows begin with in common computed once.

    Such tokens have the same hidden states in every row, so one copy serves all (`instil.data.tree`): its predictions
    count once for each row that is trained on them, and its last position predicts how each row goes on. Losses and
    gradients are those of the padded batch (E1).

    Args:
        rows: encoded rows; those that share nothing are only laid out without padding.
        max_length: at most so many positions of each row.

    >>> first, second = Encoded((1, 2, 3, 4), (True,) * 4), Encoded((1, 2, 5), (True,) * 3)
    >>> batch = collate_shared([first, second])
    >>> batch.ids_N.tolist(), batch.layout
    ([1, 2, 3, 2], Tree(parents=(-1, 0, 0), lengths=(1, 2, 1), rows=2))

    Raises:
        ValueError: as `collate`.
    """
    return collate_each(rows, max_length)[0]


def collate_each(rows: Sequence[Encoded], max_length: int | None = None) -> tuple[Batch, Tensor, Tensor]:
    """As `collate_shared`, and which of its predictions each target of each row is, [M], and of which row, [M].

    >>> first, second = Encoded((1, 2, 3), (False, True, True)), Encoded((1, 2, 4), (False, True, True))
    >>> batch, prediction_M, row_M = collate_each([first, second])
    >>> batch.targets_S.tolist(), prediction_M.tolist(), row_M.tolist()
    ([2, 3, 4], [0, 1, 0, 2], [0, 0, 1, 1])

    Raises:
        ValueError: as `collate`.
    """
    kept = _kept(rows, max_length)
    flat = flat_tree([row.ids for row in rows], kept)
    known: dict[tuple[int, int], int] = {}
    weights: list[float] = []
    predictions: list[int] = []
    owners: list[int] = []
    for number, (row, count, places) in enumerate(zip(rows, kept, flat.places, strict=True)):
        counts = row.counts
        for position in range(count):
            if counts[position + 1]:
                for target, weight in row.targets_at(position + 1):
                    found = known.setdefault((places[position], target), len(weights))
                    if found == len(weights):
                        weights.append(0)
                    weights[found] += weight
                    predictions.append(found)
        owners.extend([number] * (len(predictions) - len(owners)))
    batch = Batch(
        ids_N=torch.tensor(flat.ids),
        positions_N=torch.tensor(flat.positions),
        rows_N=torch.tensor(flat.rows),
        at_S=torch.tensor([place for place, _ in known], dtype=torch.long),
        targets_S=torch.tensor([target for _, target in known], dtype=torch.long),
        weights_S=torch.tensor(weights, dtype=torch.get_default_dtype()),
        layout=flat.layout,
        examples=tuple(row.row for row in rows),
    )
    return batch, torch.tensor(predictions, dtype=torch.long), torch.tensor(owners, dtype=torch.long)


def _kept(rows: Sequence[Encoded], max_length: int | None) -> list[int]:
    """How many positions of each row are computed: all but the last id, up to ``max_length``."""
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length is {max_length}; wanted at least one position")
    if not rows or any(len(row.ids) < 2 for row in rows):
        raise ValueError("a batch needs at least one row, and a row at least one id and its end")
    return [computed(row, max_length) for row in rows]


def computed(row: Encoded, max_length: int | None) -> int:
    """How many positions of a row are computed: all but the last id, which is only ever predicted."""
    count = len(row.ids) - 1
    return count if max_length is None else min(count, max_length)


def _whole(ids: Sequence[int], end: int) -> Encoded:
    return Encoded((*ids, end), (True,) * (len(ids) + 1))


@dataclass(frozen=True, slots=True)
class RowCollator:
    """Makes batches of rows (`instil.data.loader.Collator`)."""

    pad_id: int
    max_length: int | None = None
    layout: Literal["shared", "padded"] = "shared"

    def __call__(self, rows: Sequence[Encoded]) -> Batch:
        if self.layout == "shared":
            return collate_shared(rows, self.max_length)
        return collate(rows, self.pad_id, self.max_length)

    def positions(self, rows: Sequence[Encoded]) -> int:
        kept = [self.length(row) for row in rows]
        if self.layout == "padded":
            return Grid(len(kept), max(kept)).tokens
        return tree_of([row.ids for row in rows], kept).tokens

    def length(self, row: Encoded) -> int:
        return computed(row, self.max_length)

    def lengths(self, rows: Sequence[Encoded]) -> NDArray[np.int32]:
        lengths_R = lengths_of(rows).ids_R - 1
        return lengths_R if self.max_length is None else np.minimum(lengths_R, self.max_length)

    def ids(self, row: Encoded) -> set[int]:
        return set(row.ids)
