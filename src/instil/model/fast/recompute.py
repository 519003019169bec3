"""Activations made again in backward instead of kept: single ones (`recomputed`), or whole blocks (`checkpointed`).

Backward makes them by the same operations in the same order, so the gradients are the same numbers (E0). Chen et al.,
2016, arXiv 1604.06174; Korthikanti et al., 2022, arXiv 2205.05198.

Shape suffixes: N tokens · D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn


class Recomputed:
    """``make(x)``, made where a linear layer reads it, and made again in backward, which keeps ``x``."""

    __slots__ = ("make", "x")

    def __init__(self, make: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.make, self.x = make, x

    def into(self, linear: Callable[[Tensor], Tensor]) -> Tensor:
        """``linear(make(x))``."""
        made = self.make(self.x)
        if not (torch.is_grad_enabled() and made.requires_grad):
            return linear(made)
        # the graph must not be held by its own part
        make, x, place, shape = self.make, self.x.detach(), made.data_ptr(), made.shape

        def pack(saved: Tensor) -> Tensor | None:
            return None if saved.data_ptr() == place and saved.shape == shape else saved

        def unpack(saved: Tensor | None) -> Tensor:
            if saved is not None:
                return saved
            with torch.no_grad():
                return make(x)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return linear(made)


Activation = Tensor | Recomputed


def recomputed(make: Callable[[Tensor], Tensor], x: Tensor) -> Recomputed:
    """``make(x)`` for a linear layer to read, where backward keeps ``x`` and not ``make(x)``, but makes that again.

    For norms and activations, which cost little beside the product that reads them. Their weights must not change
    between forward and the product's backward.

    >>> x, linear = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.nn.Linear(2, 1, bias=False)
    >>> recomputed(torch.square, x).into(linear).sum().backward()
    >>> linear.weight.grad.tolist()
    [[1.0, 4.0]]
    """
    return Recomputed(make, x)


class ReadsRecomputed(nn.Module):
    """A layer that can be called with what is `recomputed` as with a tensor."""

    def __call__(self, x: Activation) -> Any:
        call = super().__call__
        return x.into(call) if isinstance(x, Recomputed) else call(x)


def checkpointed(work: Callable[[Tensor], Tensor], x_ND: Tensor, trained: Iterable[Tensor]) -> Tensor:
    """``work(x)``, of which backward keeps ``x`` alone: gradient checkpointing.

    The rest is made again a block at a time.

    ``trained`` are the parameters that ``work`` reads. They must not change between forward and this backward, and
    ``work`` must do the same both times.

    >>> x, w = torch.tensor([2.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    >>> checkpointed(lambda x: (x * w).square(), x, [w]).backward()
    >>> x.grad, w.grad
    (tensor([36.]), tensor([24.]))
    """
    needed = x_ND.requires_grad or any(parameter.requires_grad for parameter in trained)
    if not (torch.is_grad_enabled() and needed):
        return work(x_ND)
    anchor = torch.empty(0, requires_grad=True)  # the input may need no gradient while the parameters do
    return _Checkpointed.apply(work, x_ND, anchor)  # type: ignore[no-any-return, no-untyped-call]


class _Checkpointed(torch.autograd.Function):
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
    token = _sparing.set(True)
    try:
        with torch.enable_grad(), torch.autocast(*ctx.autocast):
            made: Tensor = ctx.work(x_ND)
    finally:
        _sparing.reset(token)
    return made


_sparing = ContextVar("sparing", default=False)


def is_sparing() -> bool:
    """Whether this is computed within `checkpointed`, where nothing is to be held that can be made again."""
    return _sparing.get()
