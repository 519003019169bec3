"""Preference pairs as ids, and pairs as one batch in which nothing is computed twice.

Both rows of a pair begin with the same prompt, often with the same words of the answer, and under one template all
prompts begin alike. In the layout ``shared`` each such token is computed once (`instil.data.tree`), for the pair
and for the batch; its log-probability counts in every row that has it. ``padded`` sets all rows side by side, as the
chapter does. Losses and gradients are the same (E1). Prefix sharing within a pair: Wang and Hegde, 2024
(arXiv 2410.20305).

Shape suffixes: N tokens · S predictions · M scored ids of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from instil.batches import PairBatch
from instil.data.collate import computed
from instil.data.tree import Flat, flat_tree, tree_of
from instil.layouts import Grid, Layout
from instil.records import Encoded, EncodedPair
from instil.tasks.pairs.encoding import scored_within
from instil.tasks.pairs.lengths import pair_lengths


def collate_pairs(
    pairs: Sequence[EncodedPair],
    pad_id: int = 0,
    max_length: int | None = None,
    layout: Literal["shared", "padded"] = "shared",
) -> PairBatch:
    """Pairs as one batch.

    Args:
        pairs: at least one, each with a scored id in both of its rows.
        pad_id: fills short rows of the padded layout.
        max_length: at most so many positions of each row.
        layout: ``shared`` or ``padded``.

    Raises:
        ValueError: there are no pairs, or an answer of one has nothing to score.
    """
    limit = max_length or 1 << 62
    if not pairs or not all(all(scored_within(pair, limit)) for pair in pairs):
        raise ValueError("a batch needs at least one pair, and each answer of a pair something to score")
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    kept = [min(len(row.ids) - 1, limit) for row in rows]
    flat: Flat[Layout] = (
        _padded(rows, kept, pad_id) if layout == "padded" else flat_tree([row.ids for row in rows], kept)
    )
    at: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    known: dict[tuple[int, int], int] = {}
    predictions: list[int] = []
    scored_row: list[int] = []
    reference: list[float] = []

    def prediction(row: int, position: int) -> int:
        """The prediction of a row's id at ``position``, which rows that share it share."""
        place, target = flat.places[row][position - 1], rows[row].ids[position]
        found = known.setdefault((place, target), len(at))
        if found == len(at):
            at.append(place)
            targets.append(target)
            weights.append(0)
        return found

    for number, row in enumerate(rows):
        pair, second = pairs[number // 2], number % 2
        span = pair.rejected_scored if second else pair.chosen_scored
        scored = range(span.start, min(span.stop, kept[number] + 1))
        predictions.extend(prediction(number, position) for position in scored)
        scored_row.extend([number] * len(scored))
        reference.extend(pair.reference[second][: len(scored)] if pair.reference else [0.0] * len(scored))
        if not second:
            counts = row.counts
            for position in range(1, kept[number] + 1):
                if counts[position]:
                    weights[prediction(number, position)] += counts[position]
    kind = torch.get_default_dtype()
    others = [pair.other for pair in pairs if pair.other]
    return PairBatch(
        ids_N=torch.tensor(flat.ids),
        positions_N=torch.tensor(flat.positions),
        rows_N=torch.tensor(flat.rows),
        at_S=torch.tensor(at),
        targets_S=torch.tensor(targets),
        weights_S=torch.tensor(weights, dtype=kind),
        layout=flat.layout,
        examples=tuple(pair.row for pair in pairs),
        prediction_M=torch.tensor(predictions),
        row_M=torch.tensor(scored_row),
        reference_M=torch.tensor(reference, dtype=kind),
        others=collate_pairs(others, pad_id, max_length, layout) if others else None,
    )


def _padded(rows: Sequence[Encoded], kept: Sequence[int], pad_id: int) -> Flat[Grid]:
    length = max(kept)
    flat = Flat([], [], [], [], Grid(len(rows), length))
    for number, (row, count) in enumerate(zip(rows, kept, strict=True)):
        flat.places.append(list(range(len(flat.ids), len(flat.ids) + count)))
        flat.ids.extend((*row.ids[:count], *(pad_id,) * (length - count)))
        flat.positions.extend(range(length))
        flat.rows.extend((*(number,) * count, *(-1,) * (length - count)))
    return flat


@dataclass(frozen=True, slots=True)
class PairCollator:
    """Makes batches of pairs (`instil.data.loader.Collator`)."""

    pad_id: int
    max_length: int | None = None
    layout: Literal["shared", "padded"] = "shared"

    def __call__(self, rows: Sequence[EncodedPair]) -> PairBatch:
        return collate_pairs(rows, self.pad_id, self.max_length, self.layout)

    def positions(self, rows: Sequence[EncodedPair]) -> int:
        """Rows of others (`EncodedPair.other`), which are only looked at, cost a third of those that are trained on."""
        both = [row for pair in rows for row in (pair.chosen, pair.rejected)]
        kept = [computed(row, self.max_length) for row in both]
        others = sum(self.length(pair.other) for pair in rows if pair.other) // 3
        if self.layout == "padded":
            return Grid(len(kept), max(kept)).tokens + others
        return tree_of([row.ids for row in both], kept).tokens + others

    def length(self, row: EncodedPair) -> int:
        return computed(row.chosen, self.max_length) + computed(row.rejected, self.max_length)

    def lengths(self, rows: Sequence[EncodedPair]) -> NDArray[np.int32]:
        return pair_lengths(rows).computed_R(self.max_length).astype(np.int32)

    def ids(self, row: EncodedPair) -> set[int]:
        pairs = (row, row.other) if row.other else (row,)
        return {id_ for pair in pairs for side in (pair.chosen, pair.rejected) for id_ in side.ids}
