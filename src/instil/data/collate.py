"""Rows of ids as one batch: the book's collate (chapter 7.3, listing 7.5), by position.

Shape suffixes: B rows · T positions · N = B*T tokens, flat · S supervised predictions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from instil.records import Batch, Encoded, Grid

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
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length is {max_length}; wanted at least one position")
    if not encoded or any(len(row.ids) < 2 for row in encoded):
        raise ValueError("a batch needs at least one row, and a row at least one id and its end")
    kept = [min(len(row.ids) - 1, len(row.ids) if max_length is None else max_length) for row in encoded]
    length = max(kept)
    ids: list[int] = []
    row_of: list[int] = []
    at: list[int] = []
    targets: list[int] = []
    for index, (row, count) in enumerate(zip(encoded, kept, strict=True)):
        padding = length - count
        ids.extend((*row.ids[:count], *(pad_id,) * padding))
        row_of.extend((*(index,) * count, *(-1,) * padding))
        for position in range(count):
            if row.trained[position + 1]:
                at.append(index * length + position)
                targets.append(row.ids[position + 1])
    return Batch(
        ids_N=torch.tensor(ids),
        positions_N=torch.arange(length).repeat(len(encoded)),
        rows_N=torch.tensor(row_of),
        at_S=torch.tensor(at, dtype=torch.long),
        targets_S=torch.tensor(targets, dtype=torch.long),
        weights_S=torch.ones(len(at)),
        layout=Grid(len(encoded), length),
        examples=tuple(row.row for row in encoded),
    )


def _whole(ids: Sequence[int], end: int) -> Encoded:
    return Encoded((*ids, end), (True,) * (len(ids) + 1))
