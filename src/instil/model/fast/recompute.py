"""Activations made again in backward instead of kept: gradient checkpointing (Chen et al., 2016, arXiv 1604.06174).

Between forward and backward only what goes into a block is held. Backward makes the rest again, a block at a time, by
the same operations in the same order, so the gradients are the same numbers (E0).

Shape suffixes: N tokens · D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def recomputed(work: Callable[[Tensor], Tensor], x_ND: Tensor, trained: Iterable[Tensor]) -> Tensor:
    """``work(x)``, of which backward keeps ``x`` alone.

    ``trained`` are the parameters that ``work`` reads. They must not change between forward and this backward, and
    ``work`` must do the same both times.

    >>> x, w = torch.tensor([2.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    >>> recomputed(lambda x: (x * w).square(), x, [w]).backward()
    >>> x.grad, w.grad
    (tensor([36.]), tensor([24.]))
    """
    needed = x_ND.requires_grad or any(parameter.requires_grad for parameter in trained)
    if not (torch.is_grad_enabled() and needed):
        return work(x_ND)
    anchor = torch.empty(0, requires_grad=True)  # the input may need no gradient while the parameters do
    return _Recomputed.apply(work, x_ND, anchor)  # type: ignore[no-any-return, no-untyped-call]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: Callable[[Tensor], Tensor], x_ND: Tensor, anchor: Tensor) -> Tensor:
        kind = x_ND.device.type
        ctx.work, ctx.autocast = work, (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.save_for_backward(x_ND)
        x_ND = x_ND.detach().requires_grad_(ctx.needs_input_grad[1])
        return _run(ctx, x_ND).detach()  # what backward would need of it is let go of

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[None, Tensor | None, None]:
        (x_ND,) = ctx.saved_tensors
        x_ND = x_ND.detach().requires_grad_(ctx.needs_input_grad[1])
        torch.autograd.backward(_run(ctx, x_ND), grad_ND)
        return None, x_ND.grad, None


def _run(ctx: Any, x_ND: Tensor) -> Tensor:
    """The work, both times with autograd on: without it, some operations have other forms, which round differently."""
    with torch.enable_grad(), torch.autocast(*ctx.autocast):
        made: Tensor = ctx.work(x_ND)
    return made
