"""Training with products in bfloat16 on a processor that has units for them: what autocast would take long ways to.

``torch.autocast`` says that products are to be narrow, here as on a GPU. On a processor its own way costs much of what
the units gain: each operation between two products has its inputs cast to and fro, weights are cast into copies that
all stay until backward, and torch's attention takes several times as long backward as in float32. Here a layer's
product casts its weight where it reads it, and again in backward, just before the optimizer wants it in the cache;
attention is taken as products of all heads at once; what lies between is computed in float32 or rounded once.

Rounded to bfloat16 (8 bits) are the factors of each product and what it makes, so each is off by a 256th at most
(weights by a 128th, `rounded`). Sums inside of products, norms, softmax, the stream and updates are in float32.

Shape suffixes: N tokens · I input width · O output width · T ranks of all adapters of a layer · J = I + T ·
K key/value heads · W head width · B rows · H query heads · T queries · S keys · G queries of all heads that share keys,
those of one head after another · M rows times shared heads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from instil.machine import keeps_little
from instil.model.fast.recompute import is_sparing

NARROW = torch.bfloat16
LONG, PIECES = 256, 4  # queries from which causal scores are made in so many pieces: half of all were for nothing
PIECE = 1 << 24  # bytes of scores made at once: little enough to stay in a processor's last cache

ROUNDED = 1 << 21  # numbers of a weight that are rounded at once: what is made of them stays in the cache

once = torch.autograd.function.once_differentiable


def is_narrow(x: Tensor) -> bool:
    """Whether what is computed with this tensor now is to be in bfloat16, in the ways of this module."""
    return (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == NARROW
        and x.dtype in (torch.float32, NARROW)
    )


def rounded(weight_OI: Tensor, out: Tensor | None = None) -> Tensor:
    """A weight in bfloat16, each number rounded up or down by a fixed threshold of its column; [O, I].

    To the nearest would be closer for a number alone. But weights come from float16, from few bits or from bfloat16, so
    that a tenth of them may lie exactly between two numbers of bfloat16, where the least update moves them by the whole
    step of the grid, and others on the grid, where it moves them not at all: at the small rates of preference tuning a
    first update did three times what it should. With thresholds spread evenly over the columns those that go up are as
    many as their place in between says, so that a product follows the weight as it does in float32, and errors are
    nothing on the whole. (Stochastic rounding: Gupta et al., 2015, "Deep Learning with Limited Numerical Precision";
    the same for each pass, so that what is asked twice answers the same.)

    A product's error is up to 1.4 times the nearest's. What bfloat16 can say stays as it is, and so does NaN where it
    is one that arithmetic makes (weights are checked when they are read). Elsewhere than on a processor, and of other
    types than float32, it is the nearest that is taken.

    >>> half_way = 1 + torch.full((1, 1000), 2.0**-8)
    >>> rounded(half_way).float().mean().item() - 1 == 2.0**-8
    True
    """
    if weight_OI.dtype != torch.float32 or weight_OI.device.type != "cpu" or weight_OI.dim() != 2:
        return weight_OI.to(NARROW) if out is None else out.copy_(weight_OI)
    out = torch.empty_like(weight_OI, dtype=NARROW) if out is None else out
    threshold_I = _thresholds(*weight_OI.shape)
    size = max(1, ROUNDED // max(1, weight_OI.shape[1]))
    for rows in (slice(at, at + size) for at in range(0, len(weight_OI), size)):
        # the upper half of the bits is a bfloat16; what is added to the lower half carries, or does not
        bits_OI = (weight_OI[rows].view(torch.int32) + threshold_I).bitwise_right_shift_(16)
        out.view(torch.int16)[rows].copy_(bits_OI)
    return out


@functools.lru_cache(maxsize=256)
def _thresholds(outputs: int, inputs: int) -> Tensor:
    """What is added below the bits that stay, spread evenly over 0 to 65,535 in an order of no meaning, [I]."""
    with torch.inference_mode(mode=False):  # it is used outside of it, too
        order_I = torch.randperm(inputs, generator=torch.Generator().manual_seed((outputs << 24) + inputs))
        return ((2 * order_I + 1) * (1 << 15)).div(max(1, inputs), rounding_mode="floor").to(torch.int32)


_copies: MutableMapping[Tensor, tuple[tuple[int, int], Tensor]] = WeakIdKeyDictionary()


@torch.no_grad()
def narrowed(weight: Tensor, kind: torch.dtype = NARROW) -> Tensor:
    """A large weight in a narrow type, for as long as it does not change; the weight itself where it is in that type.

    Memory of this size is the system's again as soon as it is free, and is cleared page by page when it is asked for
    anew, which takes longer than the cast. So a changed weight is cast into the same memory, and what does not change
    (a frozen head, or any within the micro-batches of a step) is cast once. Who keeps the copy for backward, changes
    the weight and asks again is told so by autograd. Nothing is held where memory is to be spared, nor where weights
    are gathered from parts: FSDP2 changes them and counts no version.

    >>> weight = torch.ones(2)
    >>> narrowed(weight) is narrowed(weight)
    True
    """
    if weight.dtype == kind:
        return weight
    held = weight.device.type == "cpu" and not (is_sparing() or keeps_little())
    if not held or weight.is_inference() or torch.is_inference_mode_enabled():
        return _made(weight, kind)
    state = weight.data_ptr(), weight._version
    if weight in _copies:
        made_of, copy = _copies[weight]
        if copy.dtype == kind and copy.shape == weight.shape:
            if made_of != state:
                _copies[weight] = state, _made(weight, kind, copy)
            return copy
    copy = _made(weight, kind)
    _copies[weight] = state, copy
    return copy


def _made(weight: Tensor, kind: torch.dtype, out: Tensor | None = None) -> Tensor:
    if kind == NARROW:
        return rounded(weight, out)
    return weight.to(kind) if out is None else out.copy_(weight)


def narrow_linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """``x W^T + b`` in bfloat16, differentiable, [N, O]; gradients have the types of what they are of."""
    return _Linear.apply(x_NI, weight_OI, bias_O)  # type: ignore[no-any-return, no-untyped-call]


class _Linear(torch.autograd.Function):
    """Keeps the input in bfloat16, and the weight itself: its copy is made again in backward."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        x_NI = x_NI.to(NARROW)
        ctx.save_for_backward(x_NI, weight_OI)
        ctx.bias = None if bias_O is None else bias_O.dtype
        narrow_OI = rounded(weight_OI)
        if bias_O is None:
            return x_NI @ narrow_OI.t()
        return torch.addmm(bias_O.to(NARROW), x_NI, narrow_OI.t())

    @staticmethod
    @once
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_NI, weight_OI = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_NO = grad_NO.to(NARROW).contiguous()
        for_weight = (grad_NO.t() @ x_NI).to(weight_OI.dtype) if needs_weight else None
        for_x = grad_NO @ rounded(weight_OI) if needs_x else None
        return for_x, for_weight, grad_NO.sum(0, dtype=ctx.bias) if needs_bias else None


class Beside:
    """A frozen weight in bfloat16, and beside it what adapters' readings are multiplied by: one matrix, [O, J].

    Args:
        weight: the frozen weight, [O, I], or what makes it in a type, where it is held in few bits.
    """

    def __init__(self, weight: Tensor | Callable[[torch.dtype], Tensor]) -> None:
        self.weight = weight
        self._held: tuple[tuple[int, int], Tensor] | None = None  # what it was made of

    def matrix(self, b_OT: Tensor, scale: float | Tensor) -> Tensor:
        """The weight and ``scale * B``, valid until the next call.

        The weight is cast once and held, at two bytes a number, but where memory is to be spared.
        """
        weight_OI = self.weight if isinstance(self.weight, Tensor) else self.weight(NARROW)
        (outputs, inputs), ranks = weight_OI.shape, b_OT.shape[1]
        lasting = isinstance(self.weight, Tensor) and weight_OI.dtype != NARROW
        lasting = lasting and not (is_sparing() or torch.is_inference_mode_enabled())
        state = (weight_OI.data_ptr(), weight_OI._version) if lasting else (0, 0)
        if self._held is not None and self._held[0] == state:
            found_OJ = self._held[1]
        else:
            found_OJ = weight_OI.new_empty(outputs, inputs + ranks, dtype=NARROW)
            rounded(weight_OI, found_OJ[:, :inputs])
            self._held = (state, found_OJ) if lasting else None
        found_OJ[:, inputs:] = b_OT * scale
        return found_OJ


def narrow_adapted(
    x_NI: Tensor,
    beside: Beside,
    bias_O: Tensor | None,
    a_TI: Tensor,
    b_OT: Tensor,
    scale: float | Tensor,
    inside_TO: Tensor | None,
) -> Tensor:
    """``x W^T + b + scale * x A^T B^T`` in bfloat16, [N, O].

    What the adapters add is small beside the rest, and added to what is rounded already it would be rounded away. So
    weight and B are one matrix, and inputs and what A reads of them: it is rounded with the sum.

    Args:
        x_NI: inputs.
        beside: the frozen weight.
        bias_O: of the layer, if any.
        a_TI: what reads the inputs, of all adapters of the layer.
        b_OT: what their readings are multiplied by; it must not change before this backward.
        scale: of the adapters' part, for all or each column of B.
        inside_TO: one where B may be other than zero, if not everywhere.
    """
    return _Adapted.apply(x_NI, beside, bias_O, a_TI, b_OT, scale, inside_TO)  # type: ignore[no-any-return, no-untyped-call]


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        beside: Beside,
        bias_O: Tensor | None,
        a_TI: Tensor,
        b_OT: Tensor,
        scale: float | Tensor,
        inside_TO: Tensor | None,
    ) -> Tensor:
        x_NI, narrow_TI = x_NI.to(NARROW), a_TI.to(NARROW)
        both_NJ = torch.cat([x_NI, x_NI @ narrow_TI.t()], 1)
        both_OJ = beside.matrix(b_OT, scale)
        ctx.beside, ctx.scale, ctx.held = beside, scale, (a_TI.dtype, b_OT.dtype)
        ctx.save_for_backward(both_NJ, narrow_TI, b_OT, inside_TO)
        if bias_O is None:
            return both_NJ @ both_OJ.t()
        return torch.addmm(bias_O.to(NARROW), both_NJ, both_OJ.t())

    @staticmethod
    @once
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        both_NJ, narrow_TI, b_OT, inside_TO = ctx.saved_tensors
        width = narrow_TI.shape[1]
        grad_NO = grad_NO.to(NARROW).contiguous()
        for_b_OT = (grad_NO.t() @ both_NJ[:, width:]).to(ctx.held[1]).mul_(ctx.scale)
        if inside_TO is not None:
            for_b_OT *= inside_TO.t()
        if ctx.needs_input_grad[0]:
            for_both_NJ = grad_NO @ ctx.beside.matrix(b_OT, ctx.scale)
            through_NT = for_both_NJ[:, width:]
            for_x = torch.addmm(for_both_NJ[:, :width], through_NT, narrow_TI)
        else:
            through_NT, for_x = grad_NO @ (b_OT * ctx.scale).to(NARROW), None
        for_a_TI = (through_NT.t() @ both_NJ[:, :width]).to(ctx.held[0])
        return for_x, None, None, for_a_TI, for_b_OT, None, None


def turned(x_NKW: Tensor, cos_N1W: Tensor, sin_N1W: Tensor) -> Tensor:
    """Heads turned by their angles (`instil.model.rope`), in float32 and rounded to bfloat16 at the end."""
    return _Turned.apply(x_NKW, cos_N1W, sin_N1W)  # type: ignore[no-any-return, no-untyped-call]


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NKW: Tensor, cos_N1W: Tensor, sin_N1W: Tensor) -> Tensor:
        ctx.save_for_backward(cos_N1W, sin_N1W)
        return _turn(x_NKW, cos_N1W, sin_N1W, -1.0)

    @staticmethod
    @once
    def backward(ctx: Any, grad_NKW: Tensor) -> tuple[Tensor, None, None]:
        cos_N1W, sin_N1W = ctx.saved_tensors
        return _turn(grad_NKW, cos_N1W, sin_N1W, 1.0), None, None


def _turn(x_NKW: Tensor, cos_N1W: Tensor, sin_N1W: Tensor, sign: float) -> Tensor:
    half = x_NKW.shape[-1] // 2
    x_NKW = x_NKW.float()
    found = x_NKW * cos_N1W
    found[..., :half].addcmul_(x_NKW[..., half:], sin_N1W[..., :half], value=sign)
    found[..., half:].addcmul_(x_NKW[..., :half], sin_N1W[..., half:], value=-sign)
    return found.to(NARROW)


def attention(
    q_BHTW: Tensor, k_BKSW: Tensor, v_BKSW: Tensor, mask: Tensor | None, scale: float | None, *, causal: bool
) -> Tensor:
    """``softmax(q k^T * scale) v`` over the keys that each query sees, [B, H, T, W], in bfloat16.

    The arguments are those of `instil.model.fast.capped.capped_attention`.
    """
    scale = q_BHTW.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (x.to(NARROW) for x in (q_BHTW, k_BKSW, v_BKSW))
    return _Attention.apply(q, k, v, mask, scale, causal)  # type: ignore[no-any-return, no-untyped-call]


class _Attention(torch.autograd.Function):
    """Probabilities are kept where they are no more than what they are of; else made again in backward. Many are made a
    piece at a time."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
        rows, heads, length, width = q.shape
        ctx.scale, ctx.causal = scale, causal
        k_MSW, v_MSW = k.flatten(0, 1), v.flatten(0, 1)
        out = q.new_empty(rows, length, heads, width).transpose(1, 2)
        shares: Tensor | None = None
        pieces = list(_pieces(q, k, causal))
        for queries, keys in pieces:
            q_MGW = _grouped(q, queries, k.shape[1])
            shares = _shares(q_MGW, k_MSW[:, keys], mask, queries, keys, scale, causal, rows)
            out[:, :, queries] = torch.bmm(shares, v_MSW[:, keys]).view(rows, heads, -1, width)
        few = shares is not None and len(pieces) == 1 and shares.nbytes <= q.nbytes + k.nbytes + v.nbytes
        ctx.save_for_backward(q, k, v, mask, shares if few else None)
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, kept = ctx.saved_tensors
        rows, heads, length, width = q.shape
        k_MSW, v_MSW = k.flatten(0, 1), v.flatten(0, 1)
        for_q = q.new_empty(rows, length, heads, width).transpose(1, 2)
        pieces = list(_pieces(q, k, ctx.causal))
        for_k = for_v = None
        if len(pieces) > 1:
            for_k, for_v = torch.zeros_like(k_MSW, dtype=torch.float32), torch.zeros_like(v_MSW, dtype=torch.float32)
        for queries, keys in pieces:
            q_MGW, grad_MGW = _grouped(q, queries, k.shape[1]), _grouped(grad, queries, k.shape[1])
            shares = kept
            if shares is None:
                shares = _shares(q_MGW, k_MSW[:, keys], mask, queries, keys, ctx.scale, ctx.causal, rows)
            through = torch.bmm(grad_MGW, v_MSW[:, keys].mT)
            through = torch._softmax_backward_data(through, shares, -1, NARROW).mul_(ctx.scale)
            for_q[:, :, queries] = torch.bmm(through, k_MSW[:, keys]).view(rows, heads, -1, width)
            piece_k, piece_v = torch.bmm(through.mT, q_MGW), torch.bmm(shares.mT, grad_MGW)
            if for_k is None or for_v is None:
                return for_q, piece_k.view_as(k), piece_v.view_as(v), None, None, None
            for_k[:, keys] += piece_k
            for_v[:, keys] += piece_v
        assert for_k is not None and for_v is not None
        return for_q, for_k.to(NARROW).view_as(k), for_v.to(NARROW).view_as(v), None, None, None


def _pieces(q: Tensor, k: Tensor, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Queries whose scores are made together, and the keys that they may see."""
    rows, heads, length, _ = q.shape
    size = max(1, PIECE // max(1, rows * heads * k.shape[2] * 4))
    if causal and length >= LONG:
        size = min(size, -(-length // PIECES))
    for first in range(0, length, size):
        last = min(first + size, length)
        yield slice(first, last), slice(0, last if causal else k.shape[2])


def _grouped(x_BHTW: Tensor, queries: slice, shared: int) -> Tensor:
    """Some queries, those of heads that share keys under one another, [M, G, W]."""
    chosen = x_BHTW[:, :, queries]
    return chosen.reshape(len(chosen) * shared, -1, chosen.shape[-1])


def _shares(
    q_MGW: Tensor,
    k_MSW: Tensor,
    mask: Tensor | None,
    queries: slice,
    keys: slice,
    scale: float,
    causal: bool,
    rows: int,
) -> Tensor:
    """How much each query takes of each key, [M, G, S]; sums are made in float32, and scores scaled before they are
    rounded."""
    size = q_MGW.shape[0], q_MGW.shape[1], k_MSW.shape[1]
    scores_MGS = torch.baddbmm(q_MGW.new_empty(size), q_MGW, k_MSW.mT, beta=0, alpha=scale)
    if mask is not None or causal:
        if mask is not None:
            hidden = ~mask[..., queries, keys]
        else:
            at_T = torch.arange(queries.start, queries.stop)
            hidden = at_T[:, None] < torch.arange(keys.stop)
        bias = torch.zeros(hidden.shape, dtype=NARROW).masked_fill_(hidden, float("-inf"))
        scores_MGS.view(rows, -1, *hidden.shape[-2:]).add_(bias)
    return torch.softmax(scores_MGS, -1)
