"""LoRA (Hu et al., 2021, arXiv 2106.09685) as a walk over a built decoder: each weight frozen, two thin ones beside it.

Each projection has its own adapter, as if query, key and value, or gate and up, were layers of their own; where they
are one matrix here, their A are one matrix, too, and one product serves all of them. Of the frozen weights no gradient
is taken, and below the first adapter nothing is propagated.

``y = x W^T + b + scale * x A^T B^T``, with scale = alpha / rank; alpha / sqrt(rank) is rsLoRA (arXiv 2312.03732), plain
alpha the book's (appendix E). DoRA (arXiv 2402.09353) learns the length of each row of the whole matrix besides.

Shape suffixes: N tokens · I input width · O output width · T ranks of all projections of a layer together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from instil.errors import SettingsError, did_you_mean
from instil.model.decoder import Attention, Decoder, GatedMLP, GeluMLP, ShortConvolution
from instil.model.families import FAMILIES
from instil.model.fast.gemm import Linear, linear, product, thin_product
from instil.model.fast.narrow import Beside, is_narrow, narrow_adapted
from instil.model.frozen import FrozenLinear, dequantise
from instil.model.rounded.layer import refuse_rounded
from instil.model.token_rows import TokenRows, check_rows, merge_rows, train_rows

Scaling = Literal["alpha/rank", "alpha/sqrt(rank)", "alpha"]
ALL = "all"  # every projection but the head
HEAD = "head"
TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Projection:
    """A part of a linear layer: its name, other names that users know it by, and its rows of the layer."""

    name: str
    also: tuple[str, ...]
    rows: slice

    def called(self, name: str) -> bool:
        """Whether it goes by that name."""
        return name == self.name or name in self.also


def projections(decoder: Decoder, layer: nn.Module, leaf: str) -> tuple[Projection, ...]:
    """What a linear layer consists of; ``leaf`` is its attribute's name in ``layer``."""
    if leaf == HEAD:
        return (Projection(HEAD, ("lm_head",), slice(0, getattr(layer, leaf).out_features)),)
    rooms = {Attention: "attention", ShortConvolution: "convolution"}
    room = rooms.get(type(layer), "mlp")
    theirs = FAMILIES[decoder.spec.family].hub_modules(f"blocks.{{i}}.{room}.{leaf}.weight")
    names: tuple[str, ...]
    if isinstance(layer, Attention) and leaf == "qkv":
        names = ("q", "k", "v")
        ends = [0, layer.heads, layer.heads + layer.kv_heads, layer.heads + 2 * layer.kv_heads]
        ends = [end * layer.head_width for end in ends]
    else:
        names = ("gate", "up") if leaf == "gate_up" else (leaf,)
        width = getattr(layer, leaf).out_features
        ends = [n * width // len(names) for n in range(len(names) + 1)]
    also = theirs if len(theirs) == len(names) else theirs * len(names)
    return tuple(
        Projection(name, (other,), slice(*span)) for name, other, span in zip(names, also, pairwise(ends), strict=True)
    )


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


def add_lora(
    decoder: Decoder,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    targets: Sequence[str] = (ALL,),
    scaling: Scaling = "alpha/rank",
    dora: bool = False,
    trainable_token_indices: Sequence[int] = (),
    seed: int = 123,
) -> int:
    """Freeze a decoder and give its projections adapters; returns how many numbers are trained.

    Args:
        decoder: changed in place; its outputs stay the same until the adapters are trained.
        rank: of each adapter.
        alpha: how much the adapters count, see ``scaling``.
        targets: names of projections (q, k, v, out, gate, up, down, head, in_proj of convolutions, or those of
            transformers, such as q_proj or c_attn); ``all`` is every one but the head.
        scaling: what the adapters' product is multiplied by.
        dora: learn the lengths of the rows, too.
        trainable_token_indices: ids of tokens whose rows of the embedding are trained, too (`instil.model.token_rows`).
        seed: of the first values.

    Raises:
        SettingsError: a name matches nothing, the rank exceeds a width, there are adapters already, or the weights are
            in eight bits for answering alone.
    """
    refuse_rounded(decoder)
    if any(isinstance(module, LoraLinear | TokenRows) for module in decoder.modules()):
        raise SettingsError("this decoder has adapters already; merge them first")
    layers = list(_layers(decoder))
    _check_targets(layers, targets)
    if dora and any(target in (HEAD, "lm_head") for target in targets):
        raise SettingsError("lora.dora is not made for the head; leave head out of lora.targets")
    if trainable_token_indices and decoder.spec.tied and any(target in (HEAD, "lm_head") for target in targets):
        raise SettingsError(
            "lora.trainable_token_indices trains rows of the head, too, which is this model's embedding; leave head "
            "out of lora.targets"
        )
    check_rows(decoder, trainable_token_indices)
    if dora and any(isinstance(module, FrozenLinear) for module in decoder.modules()):
        raise SettingsError("lora.dora needs the exact weights; set lora.base=fp32, or leave lora.dora out")
    narrowest = min(
        min(getattr(owner, leaf).in_features, part.rows.stop - part.rows.start)
        for owner, leaf, parts in layers
        for part in _chosen(parts, leaf, targets)
    )
    if rank > narrowest:
        raise SettingsError(f"lora.rank={rank} exceeds the narrowest matrix that it is for ({narrowest}); lower it")
    scale = {"alpha/rank": alpha / rank, "alpha/sqrt(rank)": alpha / math.sqrt(rank), "alpha": alpha}[scaling]
    generator = torch.Generator().manual_seed(seed)
    decoder.requires_grad_(False)
    if trainable_token_indices:
        train_rows(decoder, trainable_token_indices)
    for owner, leaf, parts in layers:
        chosen = _chosen(parts, leaf, targets)
        if chosen:
            count = len(chosen)
            adapted = LoraLinear(
                getattr(owner, leaf), [part.rows for part in chosen], [rank] * count, [scale] * count, dora=dora,
                device=decoder.device,
            )  # fmt: skip
            adapted.draw(generator)
            setattr(owner, leaf, adapted)
    return trained_parameters(decoder)


def _check_targets(layers: Sequence[tuple[nn.Module, str, tuple[Projection, ...]]], targets: Sequence[str]) -> None:
    known = dict.fromkeys([ALL, *(name for *_, parts in layers for part in parts for name in (part.name, *part.also))])
    for target in targets:
        if target not in known:
            raise SettingsError(
                f"lora.targets: no projection is named {target!r}; here are {', '.join(known)}"
                + did_you_mean(target, known)
            )
    if not targets:
        raise SettingsError(f"lora.targets is empty; wanted some of {', '.join(known)}")


def trained_parameters(decoder: nn.Module) -> int:
    """How many numbers are trained."""
    layers = [layer for layer in decoder.modules() if isinstance(layer, LoraLinear)]
    own = {id(parameter) for layer in layers for parameter in layer.parameters()}
    others = (parameter for parameter in decoder.parameters() if parameter.requires_grad and id(parameter) not in own)
    return sum(layer.trained for layer in layers) + sum(parameter.numel() for parameter in others)


def adapters(decoder: Decoder) -> Iterator[tuple[nn.Module, str, LoraLinear]]:
    """The layers with adapters: their owner, their name in it, themselves."""
    for owner in decoder.modules():
        for leaf, child in list(owner.named_children()):
            if isinstance(child, LoraLinear):
                yield owner, leaf, child


def merge(decoder: Decoder) -> None:
    """Add every adapter to its weight and let go of it; the decoder is plain again, and all of it can be trained.

    Weights that were held in few bits stay rounded: they are what the adapters were trained with.
    """
    merge_rows(decoder)
    for owner, leaf in [place[:2] for place in adapters(decoder)]:  # each layer goes when it has been replaced
        if owner is decoder and decoder.spec.tied:
            decoder.untie()  # the head alone is changed, not the embedding
        setattr(owner, leaf, getattr(owner, leaf).merged())
    dequantise(decoder)
    decoder.requires_grad_(True)


def _layers(decoder: Decoder) -> Iterator[tuple[nn.Module, str, tuple[Projection, ...]]]:
    for block in decoder.blocks:
        for owner in block.children():
            if isinstance(owner, Attention | ShortConvolution | GatedMLP | GeluMLP):
                for leaf, child in owner.named_children():
                    if isinstance(child, Linear | FrozenLinear):
                        yield owner, leaf, projections(decoder, owner, leaf)
    yield decoder, HEAD, projections(decoder, decoder, HEAD)


def _chosen(parts: Sequence[Projection], leaf: str, targets: Sequence[str]) -> list[Projection]:
    every = ALL in targets and leaf != HEAD
    return [part for part in parts if every or any(part.called(target) for target in targets)]
