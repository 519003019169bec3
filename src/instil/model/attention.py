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

    def __call__(
        self, layer: int, q_NHW: Tensor, k_NKW: Tensor, v_NKW: Tensor, window: int | None, scale: float | None
    ) -> Tensor:
        """Output of the heads, [N, H, W].

        A token sees the last ``window`` tokens of its sequence, itself included (None: all of them), and
        scores are multiplied by ``scale`` (None: one over the root of the head width).
        """


class PaddedGrid:
    """Rows side by side, padded on the right.

    No mask is needed beyond the causal one: padding comes after every real token of its row, and what
    the padding itself computes is never used. A window shorter than the rows makes the mask a band
    (Beltagy et al., 2020), built once for all layers that share it.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.rows, self.length = rows, length
        self.bands_TT: dict[int, Tensor] = {}

    def __call__(
        self, layer: int, q_NHW: Tensor, k_NKW: Tensor, v_NKW: Tensor, window: int | None, scale: float | None
    ) -> Tensor:
        del layer
        q, k, v = (_rows_first(x, self.rows, self.length) for x in (q_NHW, k_NKW, v_NKW))
        if window is None or window >= self.length:
            return _flat(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True))
        if window not in self.bands_TT:
            at_T = torch.arange(self.length, device=q.device)
            self.bands_TT[window] = _visible(at_T, at_T, window)
        mask_TT = self.bands_TT[window]
        return _flat(F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TT, scale=scale, enable_gqa=True))


class CachedGrid:
    """The same grid going on from a cache: each new token sees its row's past and itself.

    A layer with a window reads only those slots of the cache that some token of the grid still sees.
    """

    def __init__(self, rows: int, length: int, cache: Cache, positions_N: Tensor) -> None:
        self.rows, self.length, self.cache = rows, length, cache
        self.slots_BT = positions_N.view(rows, length)
        self.slots_S = torch.arange(int(self.slots_BT.max().item()) + 1, device=positions_N.device)
        self.masks: dict[int | None, tuple[int, Tensor]] = {}

    def __call__(
        self, layer: int, q_NHW: Tensor, k_NKW: Tensor, v_NKW: Tensor, window: int | None, scale: float | None
    ) -> Tensor:
        q, k, v = (_rows_first(x, self.rows, self.length) for x in (q_NHW, k_NKW, v_NKW))
        k, v = self.cache.extend(layer, k, v, self.slots_BT)
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        first, mask_B1TS = self.masks[window]
        k, v = (k, v) if first == 0 else (k[:, :, first:], v[:, :, first:])
        return _flat(F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B1TS, scale=scale, enable_gqa=True))

    def _mask(self, window: int | None) -> tuple[int, Tensor]:
        """The first slot that any token sees, and which token sees which from there on, [B, 1, T, S]."""
        first = 0 if window is None else max(0, int(self.slots_BT.min().item()) - window + 1)
        return first, _visible(self.slots_BT, self.slots_S[first:], window)[:, None]


def pattern_for(batch: Batch, cache: Cache | None) -> Pattern:
    """The pattern of a batch's layout."""
    rows, length = batch.layout.rows, batch.layout.length
    if cache is None:
        return PaddedGrid(rows, length)
    return CachedGrid(rows, length, cache, batch.positions_N)


def _visible(at_T: Tensor, slots_S: Tensor, window: int | None) -> Tensor:
    """Whether a token at each of the positions [..., T] sees each of the slots, [..., T, S]."""
    distance = at_T[..., None] - slots_S
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _rows_first(x_NKW: Tensor, rows: int, length: int) -> Tensor:
    return x_NKW.view(rows, length, *x_NKW.shape[1:]).transpose(1, 2)


def _flat(x_BHTW: Tensor) -> Tensor:
    return x_BHTW.transpose(1, 2).flatten(0, 1)
