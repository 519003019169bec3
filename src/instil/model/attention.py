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
from instil.records import Batch, Shared


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


class SharedPrefix:
    """A prefix that all rows continue: it sees itself alone, and each row sees it and its own tokens.

    The keys and values of the prefix stand before those of every row; autograd's sum over these copies is the
    gradient of the one prefix. The rows' own tokens are set side by side for this one operation, padded on the
    right, under a mask that is the same for all rows and layers.
    """

    def __init__(self, layout: Shared, device: torch.device) -> None:
        self.prefix, self.rows, self.length = layout.prefix, layout.rows, max(layout.lengths)
        lengths_B = torch.tensor(layout.lengths, device=device)
        own_BL = torch.arange(self.length, device=device) < lengths_B[:, None]
        self.slots_N = own_BL.flatten().nonzero()[:, 0]
        self.masks: dict[int | None, tuple[Tensor | None, Tensor | None]] = {}

    def __call__(
        self, layer: int, q_NHW: Tensor, k_NKW: Tensor, v_NKW: Tensor, window: int | None, scale: float | None
    ) -> Tensor:
        del layer
        if window not in self.masks:
            self.masks[window] = self._masks(window, q_NHW.device)
        in_prefix, in_rows = self.masks[window]
        q, k, v = (self._own(x) for x in (q_NHW, k_NKW, v_NKW))
        if not self.prefix:
            return self._back(_attend(q, k, v, in_rows, scale))
        prefix = slice(None, self.prefix)
        before_q, before_k, before_v = (x[prefix].transpose(0, 1)[None] for x in (q_NHW, k_NKW, v_NKW))
        k, v = (
            torch.cat([before.expand(self.rows, -1, -1, -1), own], 2) for before, own in ((before_k, k), (before_v, v))
        )
        own_NHW = self._back(_attend(q, k, v, in_rows, scale))
        return torch.cat([_flat(_attend(before_q, before_k, before_v, in_prefix, scale)), own_NHW])

    def _own(self, x_NHW: Tensor) -> Tensor:
        """The rows' own tokens side by side, [B, H, L, W]."""
        grid = x_NHW.new_zeros(self.rows * self.length, *x_NHW.shape[1:])
        return _rows_first(grid.index_copy(0, self.slots_N, x_NHW[self.prefix :]), self.rows, self.length)

    def _back(self, x_BHLW: Tensor) -> Tensor:
        return _flat(x_BHLW).index_select(0, self.slots_N)

    def _masks(self, window: int | None, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Which keys the prefix's queries see, [P, P], and which the rows' see, [L, P + L]; None is causal."""
        all_S = torch.arange(self.prefix + self.length, device=device)
        before_P = all_S[: self.prefix]
        cut = window is not None and window < self.prefix
        if not self.prefix and (window is None or window >= self.length):
            return None, None
        return (
            _visible(before_P, before_P, window) if cut else None,
            _visible(all_S[self.prefix :], all_S, window),
        )


def pattern_for(batch: Batch, cache: Cache | None) -> Pattern:
    """The pattern of a batch's layout."""
    if isinstance(batch.layout, Shared):
        if cache is not None:
            raise TypeError("a cache holds rows side by side; a batch that shares its prefix cannot fill it")
        return SharedPrefix(batch.layout, batch.ids_N.device)
    rows, length = batch.layout.rows, batch.layout.length
    if cache is None:
        return PaddedGrid(rows, length)
    return CachedGrid(rows, length, cache, batch.positions_N)


def _visible(at_T: Tensor, slots_S: Tensor, window: int | None) -> Tensor:
    """Whether a token at each of the positions [..., T] sees each of the slots, [..., T, S]."""
    distance = at_T[..., None] - slots_S
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _rows_first(x_NKW: Tensor, rows: int, length: int) -> Tensor:
    return x_NKW.view(rows, length, *x_NKW.shape[1:]).transpose(1, 2)


def _flat(x_BHTW: Tensor) -> Tensor:
    return x_BHTW.transpose(1, 2).flatten(0, 1)
