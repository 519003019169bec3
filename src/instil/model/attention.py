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

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from instil.batches import Batch
from instil.layouts import Grid, Tree
from instil.machine import sent
from instil.model.cache import Part
from instil.model.fast.capped import capped_attention
from instil.model.fast.narrow import attention as narrow_attention
from instil.model.fast.narrow import is_narrow
from instil.model.preceding import NOTHING, Runs, Steps, last
from instil.model.segments import Segments, suits

PADDED = 2.0  # scores that are computed for each that counts, at most, before segments are taken apart


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
        q, k, v = (rows_first(x, self.rows, self.length) for x in (q_NHW, k_NKW, v_NKW))
        if window is None or window >= self.length:
            return flat(attend(q, k, v, None, scores))
        if window not in self.bands_TT:
            at_T = torch.arange(self.length, device=q.device)
            self.bands_TT[window] = visible(at_T, at_T, window)
        return flat(attend(q, k, v, self.bands_TT[window], scores))

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
        self.rows_N = sent(torch.tensor(part.rows).repeat_interleave(lengths_R), device)
        self.positions_N = sent(at_RT[own_RT], device)
        self.slots_N = None if self.even else sent(own_RT.flatten().nonzero()[:, 0], device)
        # A row's padding looks at what its last token sees, so that no query is without a key.
        self.at_RT = sent(at_RT.minimum((starts_R + lengths_R - 1)[:, None]), device)
        self.first = min(starts)
        first, last = part.rows[0], part.rows[-1] + 1
        beside = list(part.rows) == list(range(first, last))
        self.chosen = slice(first, last) if beside else sent(torch.tensor(part.rows), device)
        self.held: dict[int, tuple[Tensor, Tensor]] = {}
        self.masks: dict[int | None, tuple[int, Tensor | None]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, scores: Scores) -> Tensor:
        self.cache.write(layer, self.rows_N, self.positions_N, k, v)
        k, v = self.cache.read(layer, self.chosen, self.used)
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        first, mask_R1TS = self.masks[window]
        k, v = (k, v) if first == 0 else (k[:, :, first:], v[:, :, first:])
        if self.slots_N is not None:
            grid = q.new_zeros(len(self.rows) * self.longest, *q.shape[1:])
            q = grid.index_copy(0, self.slots_N, q)
        q = rows_first(q, len(self.rows), self.longest)
        out = attend(q, k, v, mask_R1TS, scores, causal=False)
        return flat(out) if self.slots_N is None else flat(out).index_select(0, self.slots_N)

    def preceding(self, layer: int, x_ND: Tensor, reach: int) -> Tensor:
        """Keep the inputs of the new tokens; the last ``reach`` before them of each row, nearest first."""
        self.cache.write_inputs(layer, self.rows_N, self.positions_N, x_ND)
        if reach not in self.held:  # of the same rows and positions in every layer
            rows = torch.tensor(self.rows).repeat_interleave(reach)
            positions = torch.tensor(self.starts)[:, None] - 1 - torch.arange(reach)
            self.held[reach] = sent(rows, x_ND.device), sent(positions.clamp(min=0).flatten(), x_ND.device)
        return self.cache.read_inputs(layer, *self.held[reach])

    def _mask(self, window: int | None) -> tuple[int, Tensor | None]:
        """The first position that any token sees, and which token sees which from there on, [R, 1, T, S]."""
        first = 0 if window is None else max(0, self.first - window + 1)
        if self.first == self.used - 1:
            return first, None  # each row has one new token, and all of them are equally long: all is seen
        slots_S = torch.arange(first, self.used, device=self.at_RT.device)
        return first, visible(self.at_RT, slots_S, window)[:, None]


class Branches(Runs):
    """A tree of segments: each token sees those before it in its own segment, and in those that this continues.

    The segments of a bunch are set side by side for this one operation, and before the keys and values of each stand
    those of the segments it continues; autograd's sum over these copies is the gradient of the one. Bunches are the
    rows' ends, and what is shared at one depth, unless that would be more padding than tokens.
    """

    def __init__(self, layout: Tree, device: torch.device) -> None:
        super().__init__()
        self.layout, self.device = layout, device

    @functools.cached_property
    def bunches(self) -> list[_Bunch]:
        """Made when the first layer asks for them."""
        return [_Bunch(self.layout, segments, self.device) for segments in _bunches(self.layout)]

    @functools.cached_property
    def back_N(self) -> Tensor | None:
        """Where the tokens of all bunches belong, unless they are in order."""
        order_N = torch.cat([bunch.at_N for bunch in self.bunches])
        inorder = bool((order_N == torch.arange(len(order_N))).all())
        return None if inorder else sent(torch.argsort(order_N), self.device)

    @functools.cached_property
    def segments(self) -> Segments:
        """The same in one call, on a GPU."""
        return Segments(self.layout, self.device)

    def __call__(
        self, layer: int, q_NHW: Tensor, k_NKW: Tensor, v_NKW: Tensor, window: int | None, scores: Scores
    ) -> Tensor:
        del layer
        if scores.cap is None and suits(q_NHW):
            return self.segments(q_NHW, k_NKW, v_NKW, window, scores.scale)
        keys, values = (torch.split(x, list(self.layout.lengths)) for x in (k_NKW, v_NKW))
        done = [bunch(q_NHW, keys, values, window, scores) for bunch in self.bunches]
        out_NHW = done[0] if len(done) == 1 else torch.cat(done)
        return out_NHW if self.back_N is None else out_NHW.index_select(0, self.back_N)

    def runs(self, reach: int) -> tuple[list[int], list[list[int]]]:
        """A segment comes after the one that it continues, and that after its own."""
        lengths, paths = self.layout.lengths, [self.layout.path(at) for at in range(len(self.layout.lengths))]
        ends = list(itertools.accumulate(lengths))
        ranges = [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        return list(lengths), [last(reach, *(ranges[at] for at in path[:-1])) for path in paths]


class _Bunch:
    """Segments of a tree that are computed side by side."""

    def __init__(self, layout: Tree, segments: Sequence[int], device: torch.device) -> None:
        starts = [0, *itertools.accumulate(layout.lengths)]
        self.paths = [layout.path(segment) for segment in segments]
        self.rows = len(segments)
        own = [layout.lengths[segment] for segment in segments]
        before = [sum(layout.lengths[at] for at in path[:-1]) for path in self.paths]
        self.length, self.keys = max(own), max(map(sum, zip(before, own, strict=True)))
        self.fill = [self.keys - old - new for old, new in zip(before, own, strict=True)]
        self.at_N = torch.cat([torch.arange(starts[one], starts[one + 1]) for one in segments])
        first, count = int(self.at_N[0]), len(self.at_N)
        together = bool((self.at_N == torch.arange(first, first + count)).all())
        self.chosen = slice(first, first + count) if together else sent(self.at_N, device)
        own_RL = torch.arange(self.length) < torch.tensor(own)[:, None]
        self.slots_N = None if bool(own_RL.all()) else sent(own_RL.flatten().nonzero()[:, 0], device)
        # Padding stands behind a row's own tokens, where none of these looks. So where as much stands before all of
        # them, one mask will do for all, and without anything before them the causal one.
        before_R = sent(torch.tensor(before), device)
        self.alike = len(set(before)) == 1
        self.first = not any(before)
        at_R = before_R[:1] if self.alike else before_R
        self.at_RL = at_R[:, None] + torch.arange(self.length, device=device)
        self.masks: dict[int | None, Tensor | None] = {}

    def __call__(
        self, q_NHW: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], window: int | None, scores: Scores
    ) -> Tensor:
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        q = q_NHW[self.chosen]
        if self.slots_N is not None:
            q = q.new_zeros(self.rows * self.length, *q.shape[1:]).index_copy(0, self.slots_N, q)
        k, v = (self._with_what_is_before(pieces) for pieces in (keys, values))
        out = flat(attend(rows_first(q, self.rows, self.length), k, v, self.masks[window], scores))
        return out if self.slots_N is None else out.index_select(0, self.slots_N)

    def _with_what_is_before(self, pieces: Sequence[Tensor]) -> Tensor:
        """Keys or values of each row and all before it, side by side, [R, K, S, W]."""
        nothing = pieces[0].new_zeros(max(self.fill), *pieces[0].shape[1:])
        told = [
            piece for path, fill in zip(self.paths, self.fill, strict=True)
            for piece in (*(pieces[at] for at in path), nothing[:fill]) if len(piece)
        ]  # fmt: skip
        return rows_first(told[0] if len(told) == 1 else torch.cat(told), self.rows, self.keys)

    def _mask(self, window: int | None) -> Tensor | None:
        """Which keys the queries see, [L, S], or of each row, [R, 1, L, S]; None is causal."""
        if self.first and (window is None or window >= self.length):
            return None
        mask_RLS = visible(self.at_RL, torch.arange(self.keys, device=self.at_RL.device), window)
        return mask_RLS[0] if self.alike else mask_RLS[:, None]


def _bunches(layout: Tree) -> list[list[int]]:
    """Segments that are computed together: those of one depth, the rows' ends for themselves."""
    count = len(layout.lengths)
    paths = [layout.path(at) for at in range(count)]
    depths: dict[int, list[int]] = {}
    for at in range(count):
        depths.setdefault(-1 if at >= count - layout.rows else len(paths[at]), []).append(at)
    found = []
    for depth in sorted(depths, key=lambda depth: (depth < 0, depth)):
        found += _split(layout, paths, depths[depth])
    return found


def _split(layout: Tree, paths: Sequence[Sequence[int]], segments: Sequence[int]) -> list[list[int]]:
    """One bunch, or where most of it would be padding those that continue the same segment, or each for itself."""

    def scores(chosen: Sequence[int]) -> int:
        keys = max(sum(layout.lengths[at] for at in paths[one]) for one in chosen)
        return len(chosen) * max(layout.lengths[one] for one in chosen) * keys

    by_parent: dict[int, list[int]] = {}
    for one in segments:
        by_parent.setdefault(layout.parents[one], []).append(one)
    for parts in ([list(segments)], list(by_parent.values())):
        if sum(map(scores, parts)) <= PADDED * sum(scores([one]) for one in segments):
            return parts
    return [[one] for one in segments]


def pattern_for(batch: Batch, past: Sequence[Part] | None) -> Pattern:
    """The pattern of a batch's layout, or of rows that go on from a cache."""
    if past is not None:
        return Continued(past, batch.ids_N.device)
    return PATTERNS[batch.layout.pattern](batch.layout, batch.ids_N.device)


# What each layout asks for (`instil.layouts.Layout.pattern`).
PATTERNS: dict[str, Callable[[Any, torch.device], Pattern]] = {
    "grid": PaddedGrid,
    "tree": Branches,
}


def visible(at_T: Tensor, slots_S: Tensor, window: int | None) -> Tensor:
    """Whether a token at each of the positions [..., T] sees each of the slots, [..., T, S]."""
    distance = at_T[..., None] - slots_S
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scores: Scores, *, causal: bool | None = None
) -> Tensor:
    """Attention of tokens side by side, [B, H, T, W]; causal where there is no mask, unless told otherwise."""
    causal = mask is None if causal is None else causal
    scale, cap = scores
    if cap is not None:
        return capped_attention(q, k, v, mask, scale, cap, causal=causal)
    if is_narrow(q):
        return narrow_attention(q, k, v, mask, scale, causal=causal)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def rows_first(x_NKW: Tensor, rows: int, length: int) -> Tensor:
    return x_NKW.view(rows, length, *x_NKW.shape[1:]).transpose(1, 2)


def flat(x_BHTW: Tensor) -> Tensor:
    return x_BHTW.transpose(1, 2).flatten(0, 1)
