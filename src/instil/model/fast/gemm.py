"""Matrix products of the linear layers: torch's own, or oneDNN's where this processor runs them faster.

In float32 on a CPU torch multiplies with MKL, whose kernels on AMD processors reach half of what oneDNN's
reach there. Which is faster is measured once for each process, on first use; `BACKEND` names the outcome and
``INSTIL_GEMM=torch`` or ``onednn`` decides it beforehand. Both compute the same sums in another order (E1).

Shape suffixes: N tokens · I input width · O output width.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instil.errors import SettingsError
from instil.model.fast.narrow import NARROW, is_narrow, narrow_linear, rounded
from instil.model.fast.recompute import ReadsRecomputed

PRODUCTS = ("torch", "onednn")
WORTH_IT = 1.06  # the gain below which torch's own product stays; whole steps gain more than what is measured
SMALL = 1 << 17  # elements of a weight below which calling costs more than computing
FEW = 8  # rows of a thin product up to which the same holds
PACKED_FOR = 16  # tokens for which the order of packed weights is chosen; it suits others well
WIDE = 1 << 15  # output widths (vocabularies) whose weight gradient torch computes faster
GAINS = 1.3  # the gain from which a processor is said to have units for bfloat16
FORM = (128, 576, 1536)  # tokens, in, out: what is measured; as telling as larger ones, within 50 ms


class Linear(ReadsRecomputed, nn.Linear):
    """``torch.nn.Linear`` on flat tokens, through the faster product.

    For inference a second copy of the weight can be held in oneDNN's own order (`pack`), which few tokens gain by.
    """

    packed: tuple[Tensor, tuple[int, int]] | None = None  # and what it was made of

    def forward(self, x_NI: Tensor) -> Tensor:
        """Outputs, [N, O]."""
        if self.packed is not None:
            packed, made_of = self.packed
            if made_of == self._state and not torch.is_grad_enabled() and _suits(x_NI, self.weight):
                return _onednn(x_NI, packed, self.bias)
            self.packed = None  # the weight has changed, or is about to
        return linear(x_NI, self.weight, self.bias)

    @property
    def _state(self) -> tuple[int, int]:
        """Where the weight is and how often it was written; writes through ``.data`` do not count."""
        return self.weight.data_ptr(), 0 if self.weight.is_inference() else self.weight._version

    def __getstate__(self) -> dict[str, Any]:
        """Without the second copy, which can be neither copied nor stored."""
        return {**self.__dict__, "packed": None}


@torch.no_grad()
def pack(module: nn.Module) -> None:
    """Hold the weights of all linear layers once more in the order in which oneDNN reads them.

    Without it every product puts its weight into that order anew, which for few tokens takes as long as the product
    itself. Nothing is done where torch's own product is used.
    """
    for layer in module.modules():
        if not isinstance(layer, Linear) or layer._parameters["weight"] is None:  # it is held in few bits
            continue
        if layer.packed is None and _suits(layer.weight, layer.weight):
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), PACKED_FOR)
            layer.packed = packed, layer._state


def unpack(module: nn.Module) -> None:
    """Let go of what `pack` made."""
    for layer in module.modules():
        if isinstance(layer, Linear):
            layer.packed = None


def linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x W^T + b``, differentiable, [N, O]."""
    if is_narrow(x_NI):
        return narrow_linear(x_NI, weight_OI, bias_O)
    if not _suits(x_NI, weight_OI):
        return F.linear(x_NI, weight_OI, bias_O)
    if torch.is_grad_enabled() and (x_NI.requires_grad or weight_OI.requires_grad):
        return _Linear.apply(x_NI, weight_OI, bias_O)  # type: ignore[no-any-return, no-untyped-call]
    return _onednn(x_NI, weight_OI, bias_O)


def product(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """``x W^T`` outside of autograd, [N, O]."""
    return _onednn(x_NI, weight_OI, None) if _suits(x_NI, weight_OI) else x_NI @ weight_OI.t()


def thin_product(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """``x W^T`` outside of autograd, where one of the three widths is small, as with adapters, [N, O].

    The operands must lie in memory row by row or column by column for oneDNN to be fast.
    """
    whole = all(one.is_contiguous() or one.t().is_contiguous() for one in (x_NI, weight_OI))
    fast = whole and x_NI.shape[0] > FEW and x_NI.shape[1] > 0 and _wanted(x_NI, weight_OI)
    return _onednn(x_NI, weight_OI, None) if fast else x_NI @ weight_OI.t()


def _suits(x_NI: Tensor, weight_OI: Tensor) -> bool:
    """Whether oneDNN's product is to be used: matrices of some size, in float32 on a CPU that gains by it."""
    return weight_OI.numel() >= SMALL and _wanted(x_NI, weight_OI)


def _wanted(x_NI: Tensor, weight_OI: Tensor) -> bool:
    return (
        x_NI.dim() == 2
        and x_NI.shape[0] > 0
        and x_NI.dtype == weight_OI.dtype == torch.float32
        and x_NI.device.type == weight_OI.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and backend() == "onednn"
    )


class _Linear(torch.autograd.Function):
    """The three products of a linear layer: output, gradient of the input, gradient of the weight."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        ctx.biased = bias_O is not None
        return _onednn(x_NI, weight_OI, bias_O)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_NI, weight_OI = ctx.saved_tensors
        grad_NO = grad_NO.contiguous()
        for_x = _onednn(grad_NO, weight_OI.t(), None) if ctx.needs_input_grad[0] else None
        for_weight = weight_gradient(grad_NO, x_NI) if ctx.needs_input_grad[1] else None
        return for_x, for_weight, grad_NO.sum(0) if ctx.biased else None


def weight_gradient(grad_NO: Tensor, x_NI: Tensor) -> Tensor:
    """The gradient of a weight, ``g^T x``, [O, I]."""
    if grad_NO.shape[1] >= WIDE or not _suits(grad_NO, x_NI):
        return grad_NO.t() @ x_NI
    return _onednn(grad_NO.t(), x_NI.t(), None)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


_before = ""  # what another process computed with, whose last bits are wanted again


def use_again(name: str) -> str:
    """Compute products as an earlier process did, unless ``INSTIL_GEMM`` says otherwise; what is used from now on.

    Which of the two is faster is close on some machines, and they round differently. Within `own_products` it holds
    until that ends, else for the rest of the process.

    Raises:
        SettingsError: there is no such backend.
    """
    _set_before(name)
    return backend()


@contextmanager
def own_products() -> Iterator[None]:
    """What `use_again` says within this block does not hold after it: products are computed as before."""
    before = _before
    try:
        yield
    finally:
        _set_before(before)


def _set_before(name: str) -> None:
    global _before  # noqa: PLW0603 - the choice is one of the process, as the measurement is
    _before = name
    backend.cache_clear()


@functools.cache
def backend() -> str:
    """``"torch"`` or ``"onednn"``: the faster of the two on this machine, or what ``INSTIL_GEMM`` says."""
    asked = os.environ.get("INSTIL_GEMM", "") or _before
    if asked not in ("", *PRODUCTS):
        raise SettingsError(f"INSTIL_GEMM is {asked!r}; wanted torch or onednn, or nothing to have it measured")
    able = bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
    if asked:
        return asked if able else "torch"
    return "onednn" if able and _gain() >= WORTH_IT else "torch"


@functools.cache
@torch.no_grad()
def _gain() -> float:
    """How many times as fast oneDNN runs the products of a small model's layers; measured once in a process.

    A second measurement could come out otherwise, and what is computed twice in a process would differ.
    """
    x, w, g = _form()
    theirs, ours = least_seconds(
        lambda: (F.linear(x, w), g @ w, g.t() @ x),
        lambda: (_onednn(x, w, None), _onednn(g, w.t(), None), _onednn(g.t(), x.t(), None)),
    )
    return theirs / ours


@functools.cache
@torch.no_grad()
def narrow_gain() -> float:
    """How many times as fast as float32's the same products are in bfloat16 (`instil.model.fast.narrow`), casts of the
    weight included; below one where the processor has no units for it."""
    x, w, g = _form()
    wide, narrow = least_seconds(
        lambda: (product(x, w), product(g, w.t()), weight_gradient(g, x)),
        lambda: (x.to(NARROW) @ rounded(w).t(), g.to(NARROW) @ rounded(w), g.to(NARROW).t() @ x.to(NARROW)),
    )
    return wide / narrow


def precision_for(asked: Literal["fp32", "bf16", "auto"], device: str) -> Literal["fp32", "bf16"]:
    """In what products are computed: ``"auto"`` is bf16 where the device has units for it, and fp32 elsewhere.

    What is told of a processor is what it gains (`narrow_gain`): 2 to 4 times with units, and less than one without.
    """
    if asked != "auto":
        return asked
    has_units = torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else narrow_gain() >= GAINS
    return "bf16" if has_units else "fp32"


def _form() -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and gradient of the output of a layer; drawn apart, so that nobody's numbers change."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    tokens, width_in, width_out = FORM
    return draw(tokens, width_in), draw(width_out, width_in), draw(tokens, width_out)


def least_seconds(*works: Callable[[], object], steady: int = 3, most: int = 20) -> list[float]:
    """The least time of each, run in turn until none has become faster by a twentieth in so many rounds.

    A wrong choice costs half of a whole run's speed, and on a machine that others use, too, a few rounds that follow
    one another may all be slow.
    """
    for work in works:
        work()
    least, unchanged = [math.inf] * len(works), 0
    for _ in range(most):
        taken = []
        for work in works:
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
        faster = any(new < 0.95 * old for new, old in zip(taken, least, strict=True))
        least = [min(pair) for pair in zip(taken, least, strict=True)]
        unchanged = 0 if faster else unchanged + 1
        if unchanged == steady:
            break
    return least
