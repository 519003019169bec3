"""Which token sees which: the one place that knows how the flat tokens of a batch form sequences.

Everything else in the decoder works on flat [N, ...] tensors. A pattern takes the queries, keys and
values of one layer, flat, and returns the attention's output, flat; a new layout is a new pattern.
Where query heads share key/value heads (grouped-query attention, Ainslie et al. 2023) torch's kernel
reads the shared ones in place, which is far cheaper than repeating a long cache.

Shape suffixes: N tokens · H query heads · K key/value heads · W head width · B rows · T positions ·
S cached positions.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from instil.model.cache import Cache
from instil.records import Batch


class Pattern(Protocol):
    """Attention of one layer over all tokens of a batch."""

    def __call__(self, layer: int, q_NHW: Tensor, k_NKW: Tensor, v_NKW: Tensor) -> Tensor:
        """Output of the heads, [N, H, W]."""


class PaddedGrid:
    """Rows side by side, padded on the right.

    No mask is needed beyond the causal one: padding comes after every real token of its row, and what
    the padding itself computes is never used.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.rows, self.length = rows, length

    def __call__(self, layer: int, q_NHW: Tensor, k_NKW: Tensor, v_NKW: Tensor) -> Tensor:
        del layer
        q, k, v = (_rows_first(x, self.rows, self.length) for x in (q_NHW, k_NKW, v_NKW))
        return _flat(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))


class CachedGrid:
    """The same grid going on from a cache: each new token sees its row's past and itself."""

    def __init__(self, rows: int, length: int, cache: Cache, positions_N: Tensor) -> None:
        self.rows, self.length, self.cache = rows, length, cache
        self.slots_BT = positions_N.view(rows, length)
        seen = torch.arange(int(self.slots_BT.max().item()) + 1, device=positions_N.device)
        self.mask_B1TS = (seen[None, None, :] <= self.slots_BT[:, :, None])[:, None]

    def __call__(self, layer: int, q_NHW: Tensor, k_NKW: Tensor, v_NKW: Tensor) -> Tensor:
        q, k, v = (_rows_first(x, self.rows, self.length) for x in (q_NHW, k_NKW, v_NKW))
        k, v = self.cache.extend(layer, k, v, self.slots_BT)
        return _flat(F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask_B1TS, enable_gqa=True))


def pattern_for(batch: Batch, cache: Cache | None) -> Pattern:
    """The pattern of a batch's layout."""
    rows, length = batch.layout.rows, batch.layout.length
    if cache is None:
        return PaddedGrid(rows, length)
    return CachedGrid(rows, length, cache, batch.positions_N)


def _rows_first(x_NKW: Tensor, rows: int, length: int) -> Tensor:
    return x_NKW.view(rows, length, *x_NKW.shape[1:]).transpose(1, 2)


def _flat(x_BHTW: Tensor) -> Tensor:
    return x_BHTW.transpose(1, 2).flatten(0, 1)
