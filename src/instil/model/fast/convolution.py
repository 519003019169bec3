"""A gated short convolution as a single step of autograd that keeps its input alone.

Each channel of a token is weighed with those of the few tokens before it in its sequence, wherever these lie
(`instil.model.preceding`): a depthwise causal convolution, that of ``torch.nn.Conv1d`` with as many groups as
channels. Before and after it, gates of the token itself (LFM2: Liquid AI, 2025, arXiv 2511.23404).

Shape suffixes: N tokens · D width · L taps, the last being the token's own · M tokens and what is read beside them ·
I tokens that have too few before them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Before = Callable[[Tensor], tuple[Tensor, list[tuple[Tensor, Tensor]]]]


def gated_convolution(bcx: Tensor, taps_DL: Tensor, bias_D: Tensor | None, before: Before) -> Tensor:
    """``c * conv(b * x)``, [N, D].

    Args:
        bcx: the gates b and c and the input x of all tokens side by side, [N, 3D].
        taps_DL: weights of each channel, the farthest token's first.
        bias_D: added to what is convolved, if any.
        before: of ``b * x``, [N, D], it says among which rows, [M, D], those before each token are, and for each of
            the L - 1 steps back at which of them, [N], and which tokens have none, [I]. It is asked again in backward.
    """
    return _GatedConvolution.apply(bcx, taps_DL, bias_D, before)  # type: ignore[no-any-return, no-untyped-call]


class _GatedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bcx: Tensor, taps_DL: Tensor, bias_D: Tensor | None, before: Before) -> Tensor:
        ctx.save_for_backward(bcx, taps_DL, bias_D)
        ctx.before = before
        b, c, x = bcx.chunk(3, dim=-1)
        taps_LD = _by_tap(taps_DL, bcx)
        inputs_ND = b * x
        found_ND = _own(inputs_ND, taps_LD, bias_D)
        source_MD, steps = before(inputs_ND)
        for step, (index_N, none_I) in enumerate(steps, 2):
            found_ND.addcmul_(source_MD.index_select(0, index_N).index_fill_(0, none_I, 0), taps_LD[-step])
        return found_ND.mul_(c)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        bcx, taps_DL, bias_D = ctx.saved_tensors
        needs_bcx, needs_taps, needs_bias, _ = ctx.needs_input_grad
        b, c, x = bcx.chunk(3, dim=-1)
        taps_LD = _by_tap(taps_DL, bcx)
        inputs_ND = b * x
        found_ND = _own(inputs_ND, taps_LD, bias_D)
        source_MD, steps = ctx.before(inputs_ND)
        through_ND = grad_ND * c
        for_taps = [(through_ND * inputs_ND).sum(0, dtype=taps_DL.dtype)] if needs_taps else []
        for_source_MD = torch.zeros_like(source_MD)
        torch.mul(through_ND, taps_LD[-1], out=for_source_MD[: len(through_ND)])
        for step, (index_N, none_I) in enumerate(steps, 2):
            before_ND = source_MD.index_select(0, index_N).index_fill_(0, none_I, 0)
            found_ND.addcmul_(before_ND, taps_LD[-step])
            if needs_taps:
                for_taps.insert(0, before_ND.mul_(through_ND).sum(0, dtype=taps_DL.dtype))
            back_ND = (through_ND * taps_LD[-step]).index_fill_(0, none_I, 0)
            for_source_MD.index_add_(0, index_N, back_ND)  # what several sequences share, sums up here
        for_bcx = None
        if needs_bcx:
            for_bcx = torch.empty_like(bcx)
            for_b, for_c, for_x = for_bcx.chunk(3, dim=-1)
            for_inputs_ND = for_source_MD[: len(through_ND)]
            torch.mul(for_inputs_ND, x, out=for_b)
            torch.mul(grad_ND, found_ND, out=for_c)
            torch.mul(for_inputs_ND, b, out=for_x)
        for_bias_D = through_ND.sum(0, dtype=bias_D.dtype) if needs_bias else None
        return for_bcx, torch.stack(for_taps, 1) if needs_taps else None, for_bias_D, None


def _by_tap(taps_DL: Tensor, like: Tensor) -> Tensor:
    """Weights of the channels for each tap, [L, D], in the type of what they weigh."""
    return taps_DL.t().to(like.dtype).contiguous()


def _own(inputs_ND: Tensor, taps_LD: Tensor, bias_D: Tensor | None) -> Tensor:
    """What the token itself gives to the convolution, and its bias."""
    own_ND = inputs_ND * taps_LD[-1]
    return own_ND if bias_D is None else own_ND.add_(bias_D.to(own_ND.dtype))
