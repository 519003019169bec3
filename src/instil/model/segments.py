"""Attention of a tree of segments by FlashAttention's kernel for sequences of unlike lengths, on a GPU.

The queries of a segment see the keys of all segments that it continues and, causally, their own. For the kernel each
segment is a sequence: its queries are the last of as many positions as its keys have. So one call takes all segments as
they lie, without padding and without a mask; what several continue has its keys copied for each, as in
`instil.model.attention.Branches`, which computes the same (E1) everywhere else (Dao, 2023, arXiv 2307.08691).

Shape suffixes: N tokens · H query heads · K key/value heads · W head width · M keys of all segments, copies included.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from instil.layouts import Tree
from instil.machine import sent

WIDEST, STEP = 256, 8  # head widths that the kernel takes: up to so many numbers, in steps of so many
OLDEST = (8, 0)  # the compute capability from which on GPUs run it
ASKED = {"scale", "window_size", "enable_gqa"}  # the first version had none of them
NARROW = (torch.bfloat16, torch.float16)


def kernel() -> Callable[..., Tensor] | None:
    """torch's way to FlashAttention for sequences of unlike lengths; None in a version without it, or with less."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    if not inspect.signature(varlen_attn).parameters.keys() >= ASKED:
        return None
    return varlen_attn  # type: ignore[return-value]  # more than the output only where that is asked for


def suits(q_NHW: Tensor) -> bool:
    """Whether the kernel takes what is computed with these queries now: on a GPU, in a type of two bytes."""
    device, width = q_NHW.device, q_NHW.shape[-1]
    if device.type != "cuda" or computed_in(q_NHW) not in NARROW or width > WIDEST or width % STEP:
        return False
    return _able(device)


def computed_in(x: Tensor) -> torch.dtype:
    """The type in which products of a tensor are taken now."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


@functools.cache
def _able(device: torch.device) -> bool:
    return kernel() is not None and torch.cuda.get_device_capability(device) >= OLDEST


class Segments:
    """All segments of a tree at once.

    Args:
        layout: the tree.
        device: where it is computed.
    """

    def __init__(self, layout: Tree, device: torch.device) -> None:
        ends = list(itertools.accumulate(layout.lengths, initial=0))
        paths = [layout.path(at) for at in range(len(layout.lengths))]
        seen = [sum(layout.lengths[at] for at in path) for path in paths]
        self.longest, self.most_seen = max(layout.lengths), max(seen)
        self.ends = sent(torch.tensor(ends, dtype=torch.int32), device)
        self.seen_ends = sent(torch.tensor([0, *itertools.accumulate(seen)], dtype=torch.int32), device)
        self.seen_M: Tensor | None = None  # of which token each key is; None: of all in order
        if any(len(path) > 1 for path in paths):
            places = [torch.arange(ends[at], ends[at + 1]) for path in paths for at in path]
            self.seen_M = sent(torch.cat(places), device)

    def __call__(self, q_NHW: Tensor, k_NKW: Tensor, v_NKW: Tensor, window: int | None, scale: float | None) -> Tensor:
        """Output of the heads, [N, H, W]; a token sees the last ``window`` tokens of its sequence, itself included."""
        varlen, narrow = kernel(), computed_in(q_NHW)
        assert varlen is not None, "asked for what this torch does not have"
        if self.seen_M is not None:  # before they become narrow, so that gradients of copies are added up as they are
            k_NKW, v_NKW = k_NKW.index_select(0, self.seen_M), v_NKW.index_select(0, self.seen_M)
        return varlen(
            q_NHW.to(narrow),
            k_NKW.to(narrow),
            v_NKW.to(narrow),
            self.ends,
            self.seen_ends,
            self.longest,
            self.most_seen,
            scale=scale,
            window_size=(-1 if window is None else window - 1, 0),  # so many before a token's own, and none after
            enable_gqa=q_NHW.shape[1] != k_NKW.shape[1],
        )
