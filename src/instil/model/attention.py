"""Which token sees which: the one place that knows how the flat tokens of a batch form sequences.

Everything else in the decoder works on flat [N, ...] tensors. A pattern takes the queries, keys and
values of one layer, flat, and returns the attention's output, flat; a new layout is a new pattern. To a layer that
convolves instead it says which tokens come right before which (`instil.model.preceding`).
Where query heads share key/value heads (grouped-query attention, Ainslie et al. 2023) torch's kernel
reads the shared ones in place, which is far cheaper than repeating a long cache.

Shape suffixes: N tokens · H query heads · K key/value heads · W head width · B, R rows · T positions ·
S cached positions · P prefix · L own positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from instil.layouts import Forked, Grid, Shared
from instil.model.cache import Part
from instil.model.fast.capped import capped_attention
from instil.model.preceding import NOTHING, Runs, Steps, last
from instil.records import Batch


class Scores(NamedTuple):
    """What becomes of a query's product with a key: times ``scale`` (None: one over the root of the head width),
    then kept below ``cap`` in magnitude by a tanh (None: it is not)."""

    scale: float | None = None
    cap: float | None = None


class Pattern(Protocol):
    """Attention of one layer over all tokens of a batch."""

    def __call__(
        self, layer: int, q_NHW: Tensor, k_NKW: Tensor, v_NKW: Tensor, window: int | None, scores: Scores
    ) -> Tensor:
        """Output of the heads, [N, H, W].

        A token sees the last ``window`` tokens of its sequence, itself included (None: all of them).
        """

    def preceding(self, layer: int, x_ND: Tensor, reach: int) -> tuple[Tensor, Steps]:
        """Where a layer that convolves finds its inputs of the tokens before each (`instil.model.preceding`)."""


class PaddedGrid(Runs):
    """Rows side by side, padded on the right.

    No mask is needed beyond the causal one: padding comes after every real token of its row, and what
    the padding itself computes is never used. A window shorter than the rows makes the mask a band
    (Beltagy et al., 2020), built once for all layers that share it.
    """

    def __init__(self, layout: Grid, device: torch.device) -> None:
        del device
        super().__init__()
        self.rows, self.length = layout.rows, layout.length
        self.bands_TT: dict[int, Tensor] = {}

    def __call__(
        self, layer: int, q_NHW: Tensor, k_NKW: Tensor, v_NKW: Tensor, window: int | None, scores: Scores
    ) -> Tensor:
        del layer
        q, k, v = (_rows_first(x, self.rows, self.length) for x in (q_NHW, k_NKW, v_NKW))
        if window is None or window >= self.length:
            return _flat(_attend(q, k, v, None, scores))
        if window not in self.bands_TT:
            at_T = torch.arange(self.length, device=q.device)
            self.bands_TT[window] = _visible(at_T, at_T, window)
        return _flat(_attend(q, k, v, self.bands_TT[window], scores))

    def runs(self, reach: int) -> tuple[list[int], list[list[int]]]:
        return [self.length] * self.rows, [last(reach)] * self.rows


class Continued(Runs):
    """Rows that go on from what a cache holds of them: each new token sees its row's past and itself.

    The tokens lie row after row without padding, part after part; the linear layers never see any. Within a part
    queries are set side by side for this one operation, which is free where every row has as many: in decoding.
    A layer with a window reads only those positions that some token still sees.
    """

    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        super().__init__()
        self.parts = [_Continued(part, device) for part in parts]
        self.sizes = [part.tokens for part in parts]

    def __call__(
        self, layer: int, q_NHW: Tensor, k_NKW: Tensor, v_NKW: Tensor, window: int | None, scores: Scores
    ) -> Tensor:
        pieces = zip(self.parts, *(torch.split(x, self.sizes) for x in (q_NHW, k_NKW, v_NKW)), strict=True)
        done = [part(layer, q, k, v, window, scores) for part, q, k, v in pieces]
        return done[0] if len(done) == 1 else torch.cat(done)

    def runs(self, reach: int) -> tuple[list[int], list[list[int]]]:
        """What comes before a row's new tokens lies behind all of these, ``reach`` inputs a row (see `preceding`)."""
        lengths = [length for part in self.parts for length in part.lengths]
        starts = [start for part in self.parts for start in part.starts]
        behind = range(sum(lengths), sum(lengths) + reach * len(starts))
        return lengths, [
            [behind[row * reach + step] if step < start else NOTHING for step in range(reach)]
            for row, start in enumerate(starts)
        ]

    def preceding(self, layer: int, x_ND: Tensor, reach: int) -> tuple[Tensor, Steps]:
        """As elsewhere; the caches keep the inputs, and give the last of those that their rows had before."""
        pieces = zip(self.parts, torch.split(x_ND, self.sizes), strict=True)
        held = [part.preceding(layer, x_ND, reach) for part, x_ND in pieces]
        return torch.cat([x_ND, *held]), self.steps(reach, x_ND.device)


class _Continued:
    """One part: rows of one cache."""

    def __init__(self, part: Part, device: torch.device) -> None:
        self.cache, self.rows, self.longest = part.cache, part.rows, max(part.lengths)
        self.lengths, self.starts = part.lengths, [part.cache.lengths[row] for row in part.rows]
        starts = self.starts
        self.used = max(start + length for start, length in zip(starts, part.lengths, strict=True))
        lengths_R, starts_R = torch.tensor(part.lengths), torch.tensor(starts)
        own_RT = torch.arange(self.longest) < lengths_R[:, None]
        self.even = bool(own_RT.all())
        at_RT = starts_R[:, None] + torch.arange(self.longest)
        self.rows_N = torch.tensor(part.rows).repeat_interleave(lengths_R).to(device)
        self.positions_N = at_RT[own_RT].to(device)
        self.slots_N = own_RT.flatten().nonzero()[:, 0].to(device)
        # A row's padding looks at what its last token sees, so that no query is without a key.
        self.at_RT = at_RT.minimum((starts_R + lengths_R - 1)[:, None]).to(device)
        self.first = int(starts_R.min())
        self.held: dict[int, tuple[Tensor, Tensor]] = {}
        self.masks: dict[int | None, tuple[int, Tensor | None]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, scores: Scores) -> Tensor:
        self.cache.write(layer, self.rows_N, self.positions_N, k, v)
        k, v = self.cache.read(layer, self.rows, self.used)
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        first, mask_R1TS = self.masks[window]
        k, v = (k, v) if first == 0 else (k[:, :, first:], v[:, :, first:])
        if not self.even:
            grid = q.new_zeros(len(self.rows) * self.longest, *q.shape[1:])
            q = grid.index_copy(0, self.slots_N, q)
        q = _rows_first(q, len(self.rows), self.longest)
        out = _attend(q, k, v, mask_R1TS, scores, causal=False)
        return _flat(out) if self.even else _flat(out).index_select(0, self.slots_N)

    def preceding(self, layer: int, x_ND: Tensor, reach: int) -> Tensor:
        """Keep the inputs of the new tokens; the last ``reach`` before them of each row, nearest first."""
        self.cache.write_inputs(layer, self.rows_N, self.positions_N, x_ND)
        if reach not in self.held:  # of the same rows and positions in every layer
            rows = torch.tensor(self.rows).repeat_interleave(reach)
            positions = torch.tensor(self.starts)[:, None] - 1 - torch.arange(reach)
            self.held[reach] = rows.to(x_ND.device), positions.clamp(min=0).flatten().to(x_ND.device)
        return self.cache.read_inputs(layer, *self.held[reach])

    def _mask(self, window: int | None) -> tuple[int, Tensor | None]:
        """The first position that any token sees, and which token sees which from there on, [R, 1, T, S]."""
        first = 0 if window is None else max(0, self.first - window + 1)
        slots_S = torch.arange(first, self.used, device=self.at_RT.device)
        mask_RTS = _visible(self.at_RT, slots_S, window)
        return first, None if bool(mask_RTS.all()) else mask_RTS[:, None]


class SharedPrefix(Runs):
    """A prefix that all rows continue: it sees itself alone, and each row sees it and its own tokens.

    The keys and values of the prefix stand before those of every row; autograd's sum over these copies is the
    gradient of the one prefix. The rows' own tokens are set side by side for this one operation, padded on the
    right, under a mask that is the same for all rows and layers.
    """

    def __init__(self, layout: Shared, device: torch.device) -> None:
        super().__init__()
        self.prefix, self.rows, self.length = layout.prefix, layout.rows, max(layout.lengths)
        self.lengths = layout.lengths
        lengths_B = torch.tensor(layout.lengths, device=device)
        own_BL = torch.arange(self.length, device=device) < lengths_B[:, None]
        self.slots_N = own_BL.flatten().nonzero()[:, 0]
        self.masks: dict[int | None, tuple[Tensor | None, Tensor | None]] = {}

    def __call__(
        self, layer: int, q_NHW: Tensor, k_NKW: Tensor, v_NKW: Tensor, window: int | None, scores: Scores
    ) -> Tensor:
        del layer
        if window not in self.masks:
            self.masks[window] = self._masks(window, q_NHW.device)
        in_prefix, in_rows = self.masks[window]
        q, k, v = (self.own(x) for x in (q_NHW, k_NKW, v_NKW))
        if not self.prefix:
            return self._back(_attend(q, k, v, in_rows, scores))
        prefix = slice(None, self.prefix)
        before_q, before_k, before_v = (x[prefix].transpose(0, 1)[None] for x in (q_NHW, k_NKW, v_NKW))
        k, v = (
            torch.cat([before.expand(self.rows, -1, -1, -1), own], 2) for before, own in ((before_k, k), (before_v, v))
        )
        own_NHW = self._back(_attend(q, k, v, in_rows, scores))
        return torch.cat([_flat(_attend(before_q, before_k, before_v, in_prefix, scores)), own_NHW])

    def runs(self, reach: int) -> tuple[list[int], list[list[int]]]:
        return [self.prefix, *self.lengths], [last(reach), *[last(reach, range(self.prefix))] * self.rows]

    def own(self, x_NHW: Tensor) -> Tensor:
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


class Forks(Runs):
    """Pairs of rows: a prefix that all continue, a stem that both rows of a pair continue, and the rows' branches.

    Prefix and stems are a `SharedPrefix` of their own. The branches are set side by side; before each stand the
    keys and values of the prefix and of its pair's stem, under a mask, because stems differ in length.
    """

    def __init__(self, layout: Forked, device: torch.device) -> None:
        super().__init__()
        self.trunk = SharedPrefix(Shared(layout.prefix, layout.stems), device)
        self.branches = layout.branches
        self.prefix, self.rows = layout.prefix, layout.rows
        self.stem, self.length = max(layout.stems), max(layout.branches)
        self.before = layout.prefix + sum(layout.stems)  # tokens that are no branch's
        lengths_B = torch.tensor(layout.branches, device=device)
        own_BL = torch.arange(self.length, device=device) < lengths_B[:, None]
        self.slots_N = own_BL.flatten().nonzero()[:, 0]
        stems_B = torch.tensor(layout.stems, device=device).repeat_interleave(2)
        stem_S, own_L = torch.arange(self.stem, device=device), torch.arange(self.length, device=device)
        far = layout.prefix + self.stem + self.length  # a position that no token sees
        ends_B = layout.prefix + stems_B[:, None]
        self.at_BL = ends_B + own_L
        keys = [
            torch.arange(layout.prefix, device=device).expand(self.rows, -1),
            torch.where(stem_S < stems_B[:, None], layout.prefix + stem_S, far),
            self.at_BL,
        ]
        self.keys_BS = torch.cat(keys, 1)
        self.masks: dict[int | None, Tensor] = {}

    def __call__(
        self, layer: int, q_NHW: Tensor, k_NKW: Tensor, v_NKW: Tensor, window: int | None, scores: Scores
    ) -> Tensor:
        trunk, branches = slice(None, self.before), slice(self.before, None)
        trunk_NHW = self.trunk(layer, q_NHW[trunk], k_NKW[trunk], v_NKW[trunk], window, scores)
        if window not in self.masks:
            self.masks[window] = _visible(self.at_BL, self.keys_BS[:, None], window)[:, None]
        q = self._grid(q_NHW[branches])
        k, v = (self._with_trunk(x_NKW) for x_NKW in (k_NKW, v_NKW))
        out = _flat(_attend(q, k, v, self.masks[window], scores)).index_select(0, self.slots_N)
        return torch.cat([trunk_NHW, out])

    def runs(self, reach: int) -> tuple[list[int], list[list[int]]]:
        """A branch comes after its pair's stem, and that after the prefix, which it may reach."""
        lengths, before = self.trunk.runs(reach)
        ends = itertools.accumulate(lengths)
        stems = [range(end - length, end) for end, length in zip(ends, lengths, strict=True)][1:]
        branches = [last(reach, range(self.prefix), stem) for stem in stems for _ in range(2)]
        return [*lengths, *self.branches], [*before, *branches]

    def _grid(self, x_NHW: Tensor) -> Tensor:
        grid = x_NHW.new_zeros(self.rows * self.length, *x_NHW.shape[1:])
        return _rows_first(grid.index_copy(0, self.slots_N, x_NHW), self.rows, self.length)

    def _with_trunk(self, x_NKW: Tensor) -> Tensor:
        """Keys or values of prefix, stem and branch of each row, [B, K, P + S + L, W]."""
        before = x_NKW[: self.prefix].transpose(0, 1)[None].expand(self.rows, -1, -1, -1)
        stems = self.trunk.own(x_NKW[: self.before]).repeat_interleave(2, 0)
        return torch.cat([before, stems, self._grid(x_NKW[self.before :])], 2)


def pattern_for(batch: Batch, past: Sequence[Part] | None) -> Pattern:
    """The pattern of a batch's layout, or of rows that go on from a cache."""
    if past is not None:
        return Continued(past, batch.ids_N.device)
    return PATTERNS[batch.layout.pattern](batch.layout, batch.ids_N.device)


# What each layout asks for (`instil.layouts.Layout.pattern`).
PATTERNS: dict[str, Callable[[Any, torch.device], Pattern]] = {
    "grid": PaddedGrid,
    "shared_prefix": SharedPrefix,
    "forks": Forks,
}


def _visible(at_T: Tensor, slots_S: Tensor, window: int | None) -> Tensor:
    """Whether a token at each of the positions [..., T] sees each of the slots, [..., T, S]."""
    distance = at_T[..., None] - slots_S
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scores: Scores, *, causal: bool | None = None
) -> Tensor:
    """Attention of tokens side by side, [B, H, T, W]; causal where there is no mask, unless told otherwise."""
    causal = mask is None if causal is None else causal
    scale, cap = scores
    if cap is not None:
        return capped_attention(q, k, v, mask, scale, cap, causal=causal)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _rows_first(x_NKW: Tensor, rows: int, length: int) -> Tensor:
    return x_NKW.view(rows, length, *x_NKW.shape[1:]).transpose(1, 2)


def _flat(x_BHTW: Tensor) -> Tensor:
    return x_BHTW.transpose(1, 2).flatten(0, 1)
