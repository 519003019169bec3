"""Soft caps: ``cap * tanh(x / cap)`` keeps a score's magnitude below ``cap`` (Bello et al., 2016; Gemma 2, 2024).

torch's own attention knows no cap. Here scores are made for some queries at a time, so that never all of them are in
memory, and made again in backward, which keeps no more than torch's kernel does: inputs, output, and one number for
each query and head (Dao et al., 2022, arXiv 2205.14135). Equal in exact arithmetic to the written-out form (E1).

Shape suffixes: B rows · H query heads · K key/value heads · T queries · S keys · W head width · G queries of all heads
that share keys, those of one head after another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PIECE = 1 << 22  # bytes of scores made at once: little enough to stay in a processor's cache
GPU_PIECE = 1 << 26  # enough to keep a GPU busy


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """``cap * tanh(x / cap)``, elementwise; ``x`` itself is changed where no gradient is wanted.

    >>> soft_cap(torch.tensor([0.0, 1.0, 1000.0]), 2.0)
    tensor([0.0000, 0.9242, 2.0000])
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return torch.tanh(x / cap) * cap
    return x.div_(cap).tanh_().mul_(cap)


def capped_attention(
    q_BHTW: Tensor,
    k_BKSW: Tensor,
    v_BKSW: Tensor,
    mask: Tensor | None,
    scale: float | None,
    cap: float,
    *,
    causal: bool,
) -> Tensor:
    """``softmax(cap * tanh(q k^T * scale / cap)) v`` over the keys that each query sees, [B, H, T, W].

    Args:
        q_BHTW: queries; ``H / K`` heads in a row share a key/value head.
        k_BKSW: keys.
        v_BKSW: values.
        mask: whether a query sees a key, [T, S] or [B or 1, 1, T, S], each query at least one; None: all.
        scale: of scores; None: one over the root of the head width.
        cap: of scaled scores.
        causal: query n sees the first n + 1 keys (and there is no mask).
    """
    kind = q_BHTW.device.type
    if torch.is_autocast_enabled(kind):
        narrow = torch.get_autocast_dtype(kind)
        q_BHTW, k_BKSW, v_BKSW = (x.to(narrow) for x in (q_BHTW, k_BKSW, v_BKSW))
    scale = q_BHTW.shape[-1] ** -0.5 if scale is None else scale
    return _Capped.apply(q_BHTW, k_BKSW, v_BKSW, mask, scale, cap, causal)  # type: ignore[no-any-return, no-untyped-call]


class _Capped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, cap: float, causal: bool
    ) -> Tensor:
        (rows, heads, length, width), shared = q.shape, k.shape[1]
        wide = torch.promote_types(q.dtype, torch.float32)
        out = q.new_empty(rows, length, heads, width).transpose(1, 2)
        logs_BHT = q.new_empty(rows, heads, length, dtype=wide)
        for queries, keys in _pieces(q, k, wide, causal):
            scores_BKGS = _tanh(_grouped(q, queries, shared), k[:, :, keys], scale / cap, wide).mul_(cap)
            _hide(scores_BKGS, mask, queries, keys, causal, float("-inf"))
            most_BKG1 = scores_BKGS.amax(-1, keepdim=True)
            sums_BKG1 = scores_BKGS.sub_(most_BKG1).exp_().sum(-1, keepdim=True)
            found_BKGW = (scores_BKGS.to(v.dtype) @ v[:, :, keys]).div_(sums_BKG1)
            out[:, :, queries] = found_BKGW.view(rows, heads, -1, width)
            logs_BHT[:, :, queries] = sums_BKG1.log_().add_(most_BKG1).view(rows, heads, -1)
        ctx.save_for_backward(q, k, v, mask, out, logs_BHT)
        ctx.scale, ctx.cap, ctx.causal = scale, cap, causal
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, out, logs_BHT = ctx.saved_tensors
        shared, wide = k.shape[1], logs_BHT.dtype
        for_q = torch.empty_like(q)
        for_k, for_v = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for queries, keys in _pieces(q, k, wide, ctx.causal):
            q_BKGW, grad_BKGW, out_BKGW = (_grouped(x, queries, shared) for x in (q, grad, out))
            tanh_BKGS = _tanh(q_BKGW, k[:, :, keys], ctx.scale / ctx.cap, wide)
            logs_BKG1 = _grouped(logs_BHT[..., None], queries, shared)
            shares_BKGS = (tanh_BKGS * ctx.cap).sub_(logs_BKG1).exp_()
            _hide(shares_BKGS, mask, queries, keys, ctx.causal, 0.0)
            for_v[:, :, keys] += shares_BKGS.to(grad.dtype).mT @ grad_BKGW
            through_BKGS = (grad_BKGW @ v[:, :, keys].mT).to(wide)
            along_BKG1 = (grad_BKGW.to(wide) * out_BKGW).sum(-1, keepdim=True)
            through_BKGS.sub_(along_BKG1).mul_(shares_BKGS)
            slope_BKGS = tanh_BKGS.square_().neg_().add_(1).mul_(ctx.scale)
            through = through_BKGS.mul_(slope_BKGS).to(q.dtype)
            for_k[:, :, keys] += through.mT @ q_BKGW
            for_q[:, :, queries] = (through @ k[:, :, keys]).view(for_q[:, :, queries].shape)
        return for_q, for_k.to(k.dtype), for_v.to(v.dtype), None, None, None, None


def _pieces(q: Tensor, k: Tensor, wide: torch.dtype, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Queries whose scores are made together, and the keys that they may see."""
    rows, heads, length, _ = q.shape
    most = PIECE if q.device.type == "cpu" else GPU_PIECE
    size = max(1, most // max(1, rows * heads * k.shape[2] * wide.itemsize))
    for first in range(0, length, size):
        last = min(first + size, length)
        yield slice(first, last), slice(0, last if causal else k.shape[2])


def _grouped(x_BHTW: Tensor, queries: slice, shared: int) -> Tensor:
    """Some queries, those of heads that share keys under one another, [B, K, G, W]."""
    chosen = x_BHTW[:, :, queries]
    return chosen.reshape(len(chosen), shared, -1, chosen.shape[-1])


def _tanh(q_BKGW: Tensor, k_BKSW: Tensor, scale: float, wide: torch.dtype) -> Tensor:
    return (q_BKGW @ k_BKSW.mT).to(wide).mul_(scale).tanh_()


def _hide(x_BKGS: Tensor, mask: Tensor | None, queries: slice, keys: slice, causal: bool, value: float) -> None:
    """Put a value where a query does not see a key."""
    rows, shared, _, length = x_BKGS.shape
    if mask is not None:
        hidden = ~mask[..., queries, keys]
        hidden = hidden if hidden.dim() == 2 else hidden[:, :, None]
    elif causal:
        at_T = torch.arange(queries.start, queries.stop, device=x_BKGS.device)
        hidden = at_T[:, None] < torch.arange(length, device=x_BKGS.device)
    else:
        return
    x_BKGS.view(rows, shared, -1, queries.stop - queries.start, length).masked_fill_(hidden, value)
