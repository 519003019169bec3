"""A linear layer with adapters beside its frozen weight (LoRA: Hu et al., 2021, arXiv 2106.09685).

``y = x W^T + b + scale * x A^T B^T``, with scale = alpha / rank; alpha / sqrt(rank) is rsLoRA (arXiv 2312.03732), plain
alpha the book's (appendix E). DoRA (arXiv 2402.09353) learns the length of each row of the whole matrix besides.

Shape suffixes: N tokens · I input width · O output width · T ranks of all projections of a layer together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from instil.model.fast.gemm import Linear, linear, product, thin_product
from instil.model.fast.narrow import Beside, is_narrow, narrow_adapted
from instil.model.frozen import FrozenLinear

TINY = 1e-30


class LoraLinear(Linear):
    """A frozen linear layer with adapters on some of its projections; its weight may be held in few bits (``held``).

    ``lora_a`` [T, I] holds the A of all projections under one another, ``lora_b`` [O, T] their B as blocks; what lies
    outside of the blocks is zero, has no gradient, and so stays zero. They lie on ``device``, by default the weight's.
    """

    beside: Beside | None = None  # the weight for products in bfloat16

    def __init__(
        self,
        layer: Linear | FrozenLinear,
        rows: Sequence[slice],
        ranks: Sequence[int],
        scales: Sequence[float],
        *,
        dora: bool = False,
        device: torch.device | None = None,
    ) -> None:
        with torch.device("meta"):
            super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.held = layer if isinstance(layer, FrozenLinear) else None
        self.register_parameter("weight", layer._parameters.get("weight"))
        self.register_parameter("bias", layer._parameters["bias"])
        whole_OI = layer.weight
        self.rows, self.scales = tuple(rows), tuple(scales)
        ends = [sum(ranks[:n]) for n in range(len(ranks) + 1)]
        self.columns = tuple(slice(a, b) for a, b in pairwise(ends))
        new = functools.partial(whole_OI.new_zeros, device=device or whole_OI.device)
        self.lora_a = nn.Parameter(new(ends[-1], layer.in_features))
        self.lora_b = nn.Parameter(new(layer.out_features, ends[-1]))
        # one number where all scales are the same; else, as what is multiplied by them, one for each column
        self.scale = scales[0] if len(set(scales)) == 1 else 1.0
        per_column = [scale for scale, rank in zip(scales, ranks, strict=True) for _ in range(rank)]
        own_scales = (
            None
            if len(set(scales)) == 1
            else torch.tensor(per_column, dtype=whole_OI.dtype, device=device or whole_OI.device)
        )
        inside = new(layer.out_features, ends[-1])
        for part, column in zip(self.rows, self.columns, strict=True):
            inside[part, column] = 1
        whole = len(rows) == 1 and rows[0].stop - rows[0].start == layer.out_features
        self.scale_T: Tensor | None
        self.inside_TO: Tensor | None
        self.register_buffer("scale_T", own_scales, persistent=False)
        self.register_buffer("inside_TO", None if whole else inside.t().contiguous(), persistent=False)
        lengths = [new(part.stop - part.start) for part in rows] if dora else []
        self.lora_magnitude = nn.ParameterList(nn.Parameter(length) for length in lengths)
        self.length_O: Tensor | None  # of the frozen rows: the weight itself may lie elsewhere when it is saved
        self.register_buffer("length_O", new(layer.out_features) if dora else None, persistent=False)
        if not whole_OI.is_meta:
            self.begin_at(whole_OI)

    @torch.no_grad()
    def begin_at(self, weight_OI: Tensor) -> None:
        """Take the lengths of the rows, where they are learnt, from a weight that was elsewhere when this was made."""
        if self.length_O is None:
            return
        self.length_O.copy_(torch.linalg.vector_norm(weight_OI, dim=1))
        for part, length in zip(self.rows, self.lora_magnitude, strict=True):
            length.copy_(self.length_O[part])

    @property
    def is_dora(self) -> bool:
        """Whether the lengths of rows are learnt, so that the outputs hang on those of the whole matrix."""
        return len(self.lora_magnitude) > 0

    def draw(self, generator: torch.Generator) -> None:
        """First values: A as torch draws a linear layer's weights, B zero, so that nothing is changed yet."""
        bound = 1 / math.sqrt(self.in_features)  # kaiming_uniform with a = sqrt(5)
        with torch.no_grad():
            drawn = torch.rand(self.lora_a.shape, generator=generator).mul_(2 * bound).sub_(bound)
            self.lora_a.copy_(drawn)
            self.lora_b.zero_()

    def block(self, n: int) -> Tensor:
        """The B of the ``n``-th adapter, a view."""
        return self.lora_b[self.rows[n], self.columns[n]]

    @property
    def trained(self) -> int:
        """How many numbers are trained here."""
        spans = zip(self.rows, self.columns, strict=True)  # of parts of a tensor a view would be made by all processes
        blocks: int = sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in spans)
        lengths: int = sum(length.numel() for length in self.lora_magnitude)
        return self.lora_a.numel() + blocks + lengths

    def forward(self, x_NI: Tensor) -> Tensor:
        """Outputs, [N, O]."""
        if self.lora_magnitude:
            return self._with_magnitude(x_NI)
        if is_narrow(x_NI):
            if self.beside is None or self.beside.weight is not self.weight:
                self.beside = Beside(self.weight if self.held is None else self.held.dense)
            scale = self.scale if self.scale_T is None else self.scale_T
            return narrow_adapted(x_NI, self.beside, self.bias, self.lora_a, self.lora_b, scale, self.inside_TO)
        if torch.is_grad_enabled():
            return _Lora.apply(  # type: ignore[no-any-return, no-untyped-call]
                x_NI, self.held or self.weight, self.bias, self.lora_a, self.lora_b, self
            )
        y_NO = super().forward(x_NI) if self.held is None else self.held(x_NI)
        read_NT = thin_product(x_NI, self.lora_a.to(x_NI.dtype))
        return self.add_to(y_NO, read_NT.to(y_NO.dtype), self.lora_b.to(y_NO.dtype))

    def add_to(self, y_NO: Tensor, read_NT: Tensor, b_OT: Tensor) -> Tensor:
        """Add to some outputs, in place, what the adapters make of what they have read; block by block."""
        for rows, columns, scale in zip(self.rows, self.columns, self.scales, strict=True):
            y_NO[:, rows].addmm_(read_NT[:, columns], b_OT[rows, columns].t(), alpha=scale)
        return y_NO

    def low_rank(self, x_NI: Tensor) -> Tensor:
        """What the adapters read of the inputs, each times its scale, [N, T]; differentiable."""
        read_NT = linear(x_NI, self.lora_a) * self.scale
        return read_NT if self.scale_T is None else read_NT * self.scale_T

    @torch.no_grad()
    def change(self) -> Tensor:
        """What the adapters add to the weight, [O, I] (of DoRA: the whole difference)."""
        found = torch.zeros_like(self.weight if self.held is None else self.held.weight)
        for n, (rows, columns, scale) in enumerate(zip(self.rows, self.columns, self.scales, strict=True)):
            found[rows] = scale * (self.block(n) @ self.lora_a[columns])
            if self.lora_magnitude:
                whole = self.weight[rows] + found[rows]
                factor = self.lora_magnitude[n] / torch.linalg.vector_norm(whole, dim=1).clamp_min(TINY)
                found[rows] = whole * factor[:, None] - self.weight[rows]
        return found

    def merged(self) -> Linear:
        """A plain layer with the adapters in its weight, which is changed in place (or made of its few bits)."""
        if self.held is not None:
            plain = self.held.plain()
        else:
            with torch.device("meta"):
                plain = Linear(self.in_features, self.out_features, bias=self.bias is not None)
            plain.weight, plain.bias = self.weight, self.bias
        with torch.no_grad():
            plain.weight += self.change()
        return plain

    def _with_magnitude(self, x_NI: Tensor) -> Tensor:
        """DoRA. The lengths are constants to the gradient, as its authors propose (section 4.3)."""
        base_NO = linear(x_NI, self.weight)
        low_NT = self.low_rank(x_NI)
        pieces = list(torch.split(base_NO, _widths(self.rows, self.out_features), dim=1))
        for n, (at, columns) in enumerate(zip(_places(self.rows, self.out_features), self.columns, strict=True)):
            factor = self.lora_magnitude[n] / self._lengths(n).clamp_min(TINY)  # a row may be zero
            pieces[at] = (pieces[at] + low_NT[:, columns] @ self.block(n).t()) * factor
        found = torch.cat(pieces, dim=1)
        return found if self.bias is None else found + self.bias

    @torch.no_grad()
    def _lengths(self, n: int) -> Tensor:
        """Length of each row of W + scale * B A, without making that matrix: |w|^2 + 2 s b.(A w) + s^2 b A A^T b."""
        weight, a, b, scale = self.weight[self.rows[n]], self.lora_a[self.columns[n]], self.block(n), self.scales[n]
        own = torch.linalg.vecdot(weight, weight)
        crossed = (b * (weight @ a.t())).sum(1)
        added = (b @ (a @ a.t()) * b).sum(1)
        squared: Tensor = own + 2 * scale * crossed + scale**2 * added
        return squared.clamp_min(0).sqrt()


def _widths(rows: Sequence[slice], width: int) -> list[int]:
    """Widths of the pieces that some rows cut a layer's outputs into.

    >>> _widths([slice(2, 4)], 5), _places([slice(2, 4)], 5)
    ([2, 2, 1], [1])
    """
    ends = sorted({0, width, *(part.start for part in rows), *(part.stop for part in rows)})
    return [b - a for a, b in pairwise(ends)]


def _places(rows: Sequence[slice], width: int) -> list[int]:
    ends = sorted({0, width, *(part.start for part in rows), *(part.stop for part in rows)})
    return [ends.index(part.start) for part in rows]


class _Lora(torch.autograd.Function):
    """A linear layer whose weight is frozen, with its adapters: two wide products instead of three."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        weight: Tensor | FrozenLinear,
        bias_O: Tensor | None,
        a_TI: Tensor,
        b_OT: Tensor,
        layer: LoraLinear,
    ) -> Tensor:
        if torch.is_autocast_enabled(x_NI.device.type):
            narrow = torch.get_autocast_dtype(x_NI.device.type)
            x_NI, a_TI, b_OT = (tensor.to(narrow) for tensor in (x_NI, a_TI, b_OT))
            bias_O = None if bias_O is None else bias_O.to(narrow)
        ctx.held = weight if isinstance(weight, FrozenLinear) else None
        weight_OI = weight.dense(x_NI.dtype) if isinstance(weight, FrozenLinear) else weight.to(x_NI.dtype)
        y_NO = linear(x_NI, weight_OI, bias_O)
        read_NT = x_NI @ a_TI.t()
        kept_OI = None if ctx.held else weight_OI  # what is held in few bits is made again
        ctx.save_for_backward(x_NI, kept_OI, a_TI, b_OT, read_NT, layer.scale_T, layer.inside_TO)
        ctx.scale = layer.scale
        return layer.add_to(y_NO, read_NT, b_OT)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI, a_TI, b_OT, read_NT, scale_T, inside_TO = ctx.saved_tensors
        grad_NO = grad_NO.contiguous()
        scale = ctx.scale if scale_T is None else scale_T.to(grad_NO.dtype)
        through_NT = thin_product(grad_NO, b_OT.t()).mul_(scale)
        for_b_TO = thin_product((read_NT * scale).t(), grad_NO.t())  # [T, O]: several times as fast as [O, T]
        if inside_TO is not None:
            for_b_TO *= inside_TO
        for_a_TI = through_NT.t() @ x_NI
        for_x = None
        if ctx.needs_input_grad[0]:
            weight_OI = ctx.held.dense(grad_NO.dtype) if ctx.held else weight_OI
            for_x = product(grad_NO, weight_OI.t()).addmm_(through_NT, a_TI)
        return for_x, None, None, for_a_TI, for_b_TO.t(), None
