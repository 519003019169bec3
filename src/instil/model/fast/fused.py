"""Norm and gate as single steps of autograd that keep little.

Written out in torch's operations, an RMSNorm keeps its input twice over for backward and a gated MLP keeps
three tensors of its width where one is enough. Here each keeps its input, and computes the rest again in
passing; the values are the same up to the order of sums (E1).

Shape suffixes: ... any leading axes · D width · F width of the MLP.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instil.model.fast.narrow import is_narrow

once = torch.autograd.function.once_differentiable


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` (Zhang and Sennrich, 2019), [..., D]."""
    if is_narrow(x):
        return _RMSNorm.apply(x.float(), weight_D, eps)  # type: ignore[no-any-return, no-untyped-call]
    if not _plain(x, weight_D):
        return F.rms_norm(x, weight_D.shape, weight_D, eps)
    return _RMSNorm.apply(x, weight_D, eps)  # type: ignore[no-any-return, no-untyped-call]


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """``activation(gate) * up`` of a tensor [..., 2F] that holds gate and up side by side, [..., F].

    ``activation`` is ``"silu"`` or ``"gelu"`` (the tanh form).
    """
    if not (is_narrow(gate_up) or _plain(gate_up, gate_up)):
        gate, up = gate_up.chunk(2, dim=-1)
        return _activated(gate, activation).mul(up)
    return _Gated.apply(gate_up, activation)  # type: ignore[no-any-return, no-untyped-call]


def _plain(x: Tensor, weight: Tensor) -> bool:
    """Whether backward will come and one type is used throughout; squares of narrow types would overflow."""
    needed = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    wide = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
    return needed and wide and not torch.is_autocast_enabled(x.device.type)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        factor = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, factor)
        scaled: Tensor = x * factor
        return scaled.mul_(weight_D)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight_D, factor = ctx.saved_tensors
        product = grad * x
        for_weight_D = None
        if ctx.needs_input_grad[1]:
            for_weight_D = torch.mv(product.view(-1, x.shape[-1]).t(), factor.flatten())
        along = torch.mv(product.view(-1, x.shape[-1]), weight_D).view(factor.shape)
        for_x = (grad * weight_D).mul_(factor)
        return for_x.addcmul_(x, along.mul_(factor.pow(3)).div_(-x.shape[-1])), for_weight_D, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.activation = activation
        gate, up = gate_up.chunk(2, dim=-1)
        return _activated(gate, activation).mul_(up)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        for_gate, for_up = result.chunk(2, dim=-1)
        torch.mul(grad, _activated(gate, ctx.activation), out=for_up)
        through = grad * up
        if ctx.activation == "silu":
            for_gate.copy_(torch.ops.aten.silu_backward(through, gate))
        else:
            for_gate.copy_(torch.ops.aten.gelu_backward(through, gate, approximate="tanh"))
        return result, None


def _activated(gate: Tensor, activation: str) -> Tensor:
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
