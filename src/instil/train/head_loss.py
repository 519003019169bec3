"""The head and its cross-entropy as one step, on supervised rows alone.

The scores of the vocabulary are the largest tensor of a training step. Here they are made once, turned in
place into their own gradient, and kept as that until backward, which needs two products and no recomputation
(6 operations for each weight and row; the fused losses of others spend 8 to save the memory that the choice of
rows has saved already). Where even the chosen rows are too many, they go through in chunks, whose gradients
are taken at once.

Where the head is frozen and has an adapter, the adapter's share of the scores comes in as two thin matrices. Where
scores are capped (`instil.model.fast.capped`), the slope of the cap is kept beside them until they are a gradient.

`head_log_probs` gives the log-probabilities themselves, for losses that are functions of them: what each counts is
known only in backward, so the scores are kept as probabilities (or made again, where they are too many).

Shape suffixes: U rows of hidden states · S predictions · D width · V vocabulary · R rank of an adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from instil.model.fast.gemm import product, weight_gradient
from instil.model.fast.narrow import narrowed
from instil.model.fast.tied import TiedGradient

LARGEST_SCORES = 1 << 29  # bytes of scores that are kept until backward
CHEAP_SCORES = (
    1 << 25
)  # where chunks cost nothing: of a frozen head, or without backward; what malloc keeps (`runtime`)


def head_nll_sum(
    hidden_UD: Tensor,
    weight_VD: Tensor,
    row_S: Tensor,
    targets_S: Tensor,
    weights_S: Tensor,
    tied: TiedGradient | None = None,
    adapter: tuple[Tensor, Tensor] | None = None,
    cap: float | None = None,
) -> Tensor:
    """``sum over S of weights * -log softmax(hidden[row] W^T)[target]``, a scalar that can be differentiated.

    Args:
        hidden_UD: hidden states, each of which is scored once however many targets it has.
        weight_VD: the head.
        row_S: which hidden state each prediction is made from.
        targets_S: the ids to predict.
        weights_S: how many times each prediction counts.
        tied: takes the head's gradient where the head is the embedding, too.
        adapter: [U, R] and [V, R], whose product is added to the scores (`instil.model.lora`).
        cap: of the scores' magnitude.
    """
    narrow = _narrow(hidden_UD)
    read_UR, b_VR = adapter or (None, None)
    weights_S = weights_S.to(torch.promote_types(hidden_UD.dtype, torch.float32))
    if torch.is_grad_enabled() and (hidden_UD.requires_grad or weight_VD.requires_grad or adapter is not None):
        inputs = (hidden_UD, weight_VD, row_S, targets_S, weights_S, narrow, tied, read_UR, b_VR, cap)
        return _HeadLoss.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]
    total, narrow_VD = weights_S.new_zeros(()), narrowed(weight_VD, narrow)
    for rows, here_S, of_S in _chunks(hidden_UD, weight_VD, row_S, CHEAP_SCORES):
        scores_UV, _ = _scores(hidden_UD[rows], narrow_VD, narrow, read_UR, b_VR, cap, rows, slope=False)
        total += _scores_to_gradient(scores_UV, here_S, targets_S, _only(weights_S, of_S), keep=False)
    return total


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_UD: Tensor,
        weight_VD: Tensor,
        row_S: Tensor,
        targets_S: Tensor,
        weights_S: Tensor,
        narrow: torch.dtype,
        tied: TiedGradient | None,
        read_UR: Tensor | None,
        b_VR: Tensor | None,
        cap: float | None,
    ) -> Tensor:
        ctx.narrow, ctx.tied, ctx.adapted, ctx.held = narrow, tied, b_VR is not None, weight_VD.dtype
        trained, narrow_VD = ctx.needs_input_grad[1], narrowed(weight_VD, narrow)  # cast once, for all products
        chunks = _chunks(hidden_UD, weight_VD, row_S, LARGEST_SCORES if trained else CHEAP_SCORES, cap)
        ctx.whole = len(chunks) == 1
        if ctx.whole:
            scores_UV = product(hidden_UD.to(narrow), narrow_VD)
            few = CHEAP_SCORES if narrow != weights_S.dtype and scores_UV.device.type == "cpu" else LARGEST_SCORES
            pieces = _chunks(hidden_UD, weight_VD, row_S, few, cap)
            losses = []
            for rows, here_S, of_S in pieces:
                piece_UV, slope_UV = _finished(scores_UV[rows], read_UR, b_VR, cap, rows)
                losses.append(_scores_to_gradient(piece_UV, here_S, targets_S, _only(weights_S, of_S), slope_UV))
                if piece_UV.dtype != narrow:
                    scores_UV[rows] = piece_UV
            ctx.save_for_backward(hidden_UD, narrow_VD, scores_UV, read_UR, b_VR)
            return losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        loss = weights_S.new_zeros(())
        for_hidden_UD = torch.empty_like(hidden_UD)
        for_weight_VD = torch.zeros_like(weight_VD) if trained else None
        for_read_UR = None if read_UR is None else torch.empty_like(read_UR)
        for_b_VR = None if b_VR is None else torch.zeros_like(b_VR)
        for rows, here_S, of_S in chunks:
            scores_UV, slope_UV = _scores(hidden_UD[rows], narrow_VD, narrow, read_UR, b_VR, cap, rows)
            loss += _scores_to_gradient(scores_UV, here_S, targets_S, _only(weights_S, of_S), slope_UV)
            scores_UV = scores_UV.to(narrow)
            for_hidden_UD[rows] = product(scores_UV, narrow_VD.t()).to(hidden_UD.dtype)
            if for_weight_VD is not None:
                for_weight_VD += weight_gradient(scores_UV, hidden_UD[rows].to(narrow))
            if read_UR is not None and b_VR is not None and for_read_UR is not None and for_b_VR is not None:
                for_read_UR[rows] = (scores_UV @ b_VR.to(narrow)).to(read_UR.dtype)
                for_b_VR += (scores_UV.t() @ read_UR[rows].to(narrow)).to(b_VR.dtype)
        ctx.save_for_backward(for_hidden_UD, for_weight_VD, for_read_UR, for_b_VR)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        for_weight_VD: Tensor | None = None
        for_read_UR: Tensor | None = None
        for_b_VR: Tensor | None = None
        if ctx.whole:
            hidden_UD, narrow_VD, scores_UV, read_UR, b_VR = ctx.saved_tensors
            for_hidden_UD = product(scores_UV, narrow_VD.t()).to(hidden_UD.dtype)
            if ctx.needs_input_grad[1]:
                hidden_UD = (hidden_UD * grad).to(ctx.narrow)  # the factor goes to the smaller of the two
                if ctx.tied is not None:
                    ctx.tied.leave(scores_UV, hidden_UD)
                else:
                    for_weight_VD = weight_gradient(scores_UV, hidden_UD).to(ctx.held)
            if ctx.adapted:
                for_read_UR = (scores_UV @ b_VR.to(ctx.narrow)).to(read_UR.dtype) * grad
                for_b_VR = (scores_UV.t() @ (read_UR * grad).to(ctx.narrow)).to(b_VR.dtype)
        else:
            for_hidden_UD, for_weight_VD, for_read_UR, for_b_VR = ctx.saved_tensors
            if for_weight_VD is not None:
                for_weight_VD = for_weight_VD * grad
                if ctx.tied is not None:
                    ctx.tied.leave_table(for_weight_VD)
                    for_weight_VD = None
            if ctx.adapted:
                for_read_UR, for_b_VR = for_read_UR * grad, for_b_VR * grad
        for_hidden_UD = (for_hidden_UD * grad).to(for_hidden_UD.dtype)
        return for_hidden_UD, for_weight_VD, None, None, None, None, None, for_read_UR, for_b_VR, None


def head_log_probs(
    hidden_UD: Tensor,
    weight_VD: Tensor,
    row_S: Tensor,
    targets_S: Tensor,
    tied: TiedGradient | None = None,
    adapter: tuple[Tensor, Tensor] | None = None,
    cap: float | None = None,
) -> Tensor:
    """``log softmax(hidden[row] W^T)[target]`` of each prediction, [S]; the arguments are those of `head_nll_sum`."""
    narrow = _narrow(hidden_UD)
    read_UR, b_VR = adapter or (None, None)
    if torch.is_grad_enabled() and (hidden_UD.requires_grad or weight_VD.requires_grad or adapter is not None):
        inputs = (hidden_UD, weight_VD, row_S, targets_S, narrow, tied, read_UR, b_VR, cap)
        return _HeadLogProbs.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]
    found_S = hidden_UD.new_zeros(len(row_S), dtype=torch.promote_types(hidden_UD.dtype, torch.float32))
    narrow_VD = narrowed(weight_VD, narrow)
    for rows, here_S, of_S in _chunks(hidden_UD, weight_VD, row_S, CHEAP_SCORES):
        scores_UV, _ = _scores(hidden_UD[rows], narrow_VD, narrow, read_UR, b_VR, cap, rows, slope=False)
        found_S += _only(_scores_to_log_probs(scores_UV, here_S, targets_S)[0], of_S)
    return found_S


class _HeadLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_UD: Tensor,
        weight_VD: Tensor,
        row_S: Tensor,
        targets_S: Tensor,
        narrow: torch.dtype,
        tied: TiedGradient | None,
        read_UR: Tensor | None,
        b_VR: Tensor | None,
        cap: float | None,
    ) -> Tensor:
        ctx.narrow, ctx.tied, ctx.cap, ctx.held = narrow, tied, cap, weight_VD.dtype
        narrow_VD = narrowed(weight_VD, narrow)
        chunks = _chunks(hidden_UD, weight_VD, row_S, LARGEST_SCORES, cap)
        ctx.whole = len(chunks) == 1
        found_S = hidden_UD.new_zeros(len(row_S), dtype=torch.promote_types(hidden_UD.dtype, torch.float32))
        kept: list[Tensor | None] = []
        for rows, here_S, of_S in chunks:
            scores_UV, slope_UV = _scores(hidden_UD[rows], narrow_VD, narrow, read_UR, b_VR, cap, rows, slope=ctx.whole)
            right_S, sums_U = _scores_to_log_probs(scores_UV, here_S, targets_S)
            found_S += _only(right_S, of_S)
            kept = [scores_UV, slope_UV, sums_U] if ctx.whole else []
        ctx.save_for_backward(hidden_UD, narrow_VD, row_S, targets_S, read_UR, b_VR, *kept)
        return found_S

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor | None, ...]:
        hidden_UD, narrow_VD, row_S, targets_S, read_UR, b_VR, *kept = ctx.saved_tensors
        trained, adapted = ctx.needs_input_grad[1], b_VR is not None
        for_hidden_UD = torch.empty_like(hidden_UD)
        for_weight_VD: Tensor | None = None
        for_read_UR = torch.empty_like(read_UR) if adapted else None
        for_b_VR = torch.zeros_like(b_VR) if adapted else None
        for rows, here_S, of_S in _chunks(hidden_UD, narrow_VD, row_S, LARGEST_SCORES, ctx.cap):
            if ctx.whole:
                scores_UV, slope_UV, sums_U = kept
            else:
                scores_UV, slope_UV = _scores(hidden_UD[rows], narrow_VD, ctx.narrow, read_UR, b_VR, ctx.cap, rows)
                sums_U = _scores_to_log_probs(scores_UV, here_S, targets_S)[1]
            # of a log-probability: one at its target, less the probabilities of all
            own_S = _only(grad_S, of_S)
            weight_U = torch.zeros_like(sums_U).index_add_(0, here_S, own_S)
            scores_UV.mul_((-weight_U / sums_U)[:, None])
            scores_UV.index_put_((here_S, targets_S), own_S, accumulate=True)
            if slope_UV is not None:
                scores_UV.mul_(slope_UV)
            narrow_UV = scores_UV.to(ctx.narrow)
            for_hidden_UD[rows] = product(narrow_UV, narrow_VD.t()).to(hidden_UD.dtype)
            if trained and ctx.whole and ctx.tied is not None:
                ctx.tied.leave(narrow_UV, hidden_UD.to(ctx.narrow))
            elif trained:
                piece_VD = weight_gradient(narrow_UV, hidden_UD[rows].to(ctx.narrow)).to(ctx.held)
                for_weight_VD = piece_VD if for_weight_VD is None else for_weight_VD.add_(piece_VD)
            if for_read_UR is not None and for_b_VR is not None:
                for_read_UR[rows] = (narrow_UV @ b_VR.to(ctx.narrow)).to(read_UR.dtype)
                for_b_VR += (narrow_UV.t() @ read_UR[rows].to(ctx.narrow)).to(b_VR.dtype)
        if for_weight_VD is not None and ctx.tied is not None:
            ctx.tied.leave_table(for_weight_VD)
            for_weight_VD = None
        return for_hidden_UD, for_weight_VD, None, None, None, None, for_read_UR, for_b_VR, None


def _narrow(hidden_UD: Tensor) -> torch.dtype:
    """The type to multiply in: that of autocast where it is on. Losses are computed in float32 at least."""
    kind = hidden_UD.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_UD.dtype


def _scores(
    hidden_UD: Tensor,
    narrow_VD: Tensor,
    narrow: torch.dtype,
    read_UR: Tensor | None,
    b_VR: Tensor | None,
    cap: float | None,
    rows: slice = slice(None),
    *,
    slope: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The scores, in float32 at least, and, where they are capped, the slope of the cap, unless it is not wanted."""
    return _finished(product(hidden_UD.to(narrow), narrow_VD), read_UR, b_VR, cap, rows, slope=slope)


def _finished(
    scores_UV: Tensor,
    read_UR: Tensor | None,
    b_VR: Tensor | None,
    cap: float | None,
    rows: slice,
    *,
    slope: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """What the head's product says, with the adapters' share, capped, in float32; changed in place where it is."""
    scores_UV = scores_UV.to(torch.promote_types(scores_UV.dtype, torch.float32))
    if read_UR is not None and b_VR is not None:  # little, which would be lost in what is narrow
        scores_UV.addmm_(read_UR[rows].to(scores_UV.dtype), b_VR.to(scores_UV.dtype).t())
    if cap is None:
        return scores_UV, None
    scores_UV.div_(cap).tanh_()
    slope_UV = scores_UV.square().neg_().add_(1) if slope else None
    return scores_UV.mul_(cap), slope_UV


def _chunks(
    hidden_UD: Tensor, weight_VD: Tensor, row_S: Tensor, most: int, cap: float | None = None
) -> list[tuple[slice, Tensor, Tensor | None]]:
    """Rows of hidden states, so many at a time that their scores are not too many.

    With them, for each prediction, the row among them that it is made from, and whether it is made from one of them
    (None: each is; else it is given any row, and is not to count). To pick the predictions out would have the host
    wait for a GPU, to know how many they are.
    """
    most = most if cap is None else most // 2  # the slopes are as many
    size = max(1, most // (weight_VD.shape[0] * hidden_UD.element_size()))
    rows = hidden_UD.shape[0]
    if rows <= size:
        return [(slice(0, rows), row_S, None)]
    found: list[tuple[slice, Tensor, Tensor | None]] = []
    for at in range(0, rows, size):
        here_S = row_S - at
        count = min(rows, at + size) - at
        found.append((slice(at, at + count), here_S.clamp(0, count - 1), (here_S >= 0) & (here_S < count)))
    return found


def _only(values_S: Tensor, of_S: Tensor | None) -> Tensor:
    """Zero for predictions that do not count here."""
    return values_S if of_S is None else values_S.where(of_S, 0.0)


def _scores_to_gradient(
    scores_UV: Tensor,
    row_S: Tensor,
    targets_S: Tensor,
    weights_S: Tensor,
    slope_UV: Tensor | None = None,
    *,
    keep: bool = True,
) -> Tensor:
    """The loss of some scores, which become their own gradient in place (unless it is not to be kept)."""
    scores_UV.sub_(scores_UV.amax(1, keepdim=True))
    right_S = scores_UV[row_S, targets_S]
    scores_UV.exp_()
    sums_U = scores_UV.sum(1)
    loss = ((sums_U.log()[row_S] - right_S) * weights_S).sum()
    if keep:
        weight_U = torch.zeros_like(sums_U).index_add_(0, row_S, weights_S)
        scores_UV.mul_((weight_U / sums_U)[:, None])
        scores_UV.index_put_((row_S, targets_S), -weights_S, accumulate=True)
        if slope_UV is not None:
            scores_UV.mul_(slope_UV)
    return loss


def _scores_to_log_probs(scores_UV: Tensor, row_S: Tensor, targets_S: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets, [S], and the sums, [U], by which the scores, now exponentials, are divided."""
    scores_UV.sub_(scores_UV.amax(1, keepdim=True))
    right_S = scores_UV[row_S, targets_S]
    scores_UV.exp_()
    sums_U = scores_UV.sum(1)
    return right_S - sums_U.log()[row_S], sums_U
