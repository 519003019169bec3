"""The decoder: chapter 4's GPT and its younger relatives as one module, told apart by a `DecoderSpec`.

It takes a `Batch`, which says what every token is and where it stands, and returns hidden states; the
head is applied by the caller to the rows he asks for (`Decoder.logits`).

Shape suffixes: N tokens, flat · D model width · H query heads · K key/value heads · W head width ·
F width inside the MLP · V vocabulary · S rows the head is asked for · U tokens whose states are asked for · B rows ·
T positions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instil.batches import Batch
from instil.layouts import Grid
from instil.model.attention import Pattern, Scores, pattern_for
from instil.model.cache import Cache, Part
from instil.model.fast.capped import soft_cap
from instil.model.fast.convolution import gated_convolution
from instil.model.fast.fused import gated, rms_norm
from instil.model.fast.gemm import Linear
from instil.model.fast.recompute import Activation, checkpointed, recomputed
from instil.model.fast.tied import TiedGradient, embed_tied
from instil.model.rope import apply_rope, rope_tables
from instil.model.spec import DecoderSpec

Rope = tuple[Tensor, Tensor]
gelu = functools.partial(F.gelu, approximate="tanh")


class Elsewhere(Protocol):
    """Where the parameters lie of a decoder that has their shapes alone (on torch's ``meta`` device)."""

    device: torch.device  # that of what is computed with them

    def parameter(self, name: str, rows: slice | None = None) -> Tensor:
        """One of them, or some of its rows (none, where they end before they begin), in memory of its own.

        Raises:
            ModelError: it is damaged, or not there.
        """


class Attention(nn.Module):
    """Causal self-attention with fused query, key and value projection (chapter 3.6).

    Where the spec asks for it, every query and key head has a norm before it is turned (Dehghani et al., 2023), or
    all heads of a token have one together (OLMo 2).
    """

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.layer, self.window = layer, spec.window_of(layer)
        self.scores = Scores(spec.attention_multiplier, spec.attention_softcap)
        self.heads, self.kv_heads, self.head_width = spec.heads, spec.kv_heads, spec.head_width
        self.qkv = Linear(spec.width, (spec.heads + 2 * spec.kv_heads) * spec.head_width, bias=spec.attention_bias)
        out_bias = spec.attention_bias if spec.out_bias is None else spec.out_bias
        self.out = Linear(spec.heads * spec.head_width, spec.width, bias=out_bias)
        self.norm_whole = spec.qk_norm == "all"
        together = (spec.heads, spec.kv_heads) if self.norm_whole else (1, 1)
        self.q_norm = _norm(spec, together[0] * spec.head_width) if spec.qk_norm else None
        self.k_norm = _norm(spec, together[1] * spec.head_width) if spec.qk_norm else None

    def forward(self, x_ND: Activation, attend: Pattern, rope: Rope | None, wanted_U: Tensor | None) -> Tensor:
        qkv_NKW = self.qkv(x_ND).unflatten(-1, (-1, self.head_width))
        # queries and keys lie side by side, so one pass turns both
        turned, v_NKW = torch.split(qkv_NKW, [self.heads + self.kv_heads, self.kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q_NHW, k_NKW = torch.split(turned, [self.heads, self.kv_heads], dim=1)
            if self.norm_whole:
                normed = [self.q_norm(q_NHW.flatten(1)), self.k_norm(k_NKW.flatten(1))]
                turned = torch.cat(normed, dim=1).view_as(turned)
            else:
                turned = torch.cat([self.q_norm(q_NHW), self.k_norm(k_NKW)], dim=1)
        turned = turned if rope is None else apply_rope(turned, *rope)
        q_NHW, k_NKW = torch.split(turned, [self.heads, self.kv_heads], dim=1)
        out_NHW = attend(self.layer, q_NHW, k_NKW, v_NKW, self.window, self.scores)
        out_ND = out_NHW.flatten(1)
        return self.out(out_ND if wanted_U is None else out_ND[wanted_U])  # type: ignore[no-any-return]


class ShortConvolution(nn.Module):
    """A gated convolution over the last few tokens, in place of attention (LFM2: Liquid AI, 2025, arXiv 2511.23404).

    Of each token the first matrix makes two gates and what is convolved between them, all as wide as the model;
    ``weight`` [D, L] has for each channel the weights of as many tokens, the farthest first.
    """

    def __init__(self, spec: DecoderSpec, layer: int, length: int) -> None:
        super().__init__()
        self.layer, self.reach = layer, length - 1
        self.in_proj = Linear(spec.width, 3 * spec.width, bias=spec.convolution_bias)
        self.weight = nn.Parameter(torch.zeros(spec.width, length))
        self.bias = nn.Parameter(torch.zeros(spec.width)) if spec.convolution_bias else None
        self.out = Linear(spec.width, spec.width, bias=spec.convolution_bias)

    def forward(self, x_ND: Activation, attend: Pattern, rope: Rope | None, wanted_U: Tensor | None) -> Tensor:
        del rope  # a convolution knows distances by itself
        found = recomputed(functools.partial(self._mixed, attend, wanted_U), self.in_proj(x_ND))
        return self.out(found)  # type: ignore[no-any-return]

    def _mixed(self, attend: Pattern, wanted_U: Tensor | None, bcx: Tensor) -> Tensor:
        found_ND = gated_convolution(
            bcx, self.weight, self.bias, lambda inputs_ND: attend.preceding(self.layer, inputs_ND, self.reach)
        )
        return found_ND if wanted_U is None else found_ND[wanted_U]


class GeluMLP(nn.Module):
    """Two matrices with GELU between them, or its tanh form, as in GPT-2 (Hendrycks and Gimpel, 2016)."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.activation = F.gelu if spec.mlp == "gelu_exact" else gelu
        self.up = Linear(spec.width, spec.mlp_width, bias=spec.mlp_bias)
        self.down = Linear(spec.mlp_width, spec.width, bias=spec.mlp_bias)

    def forward(self, x_ND: Activation) -> Tensor:
        return self.down(recomputed(self.activation, self.up(x_ND)))  # type: ignore[no-any-return]


class GatedMLP(nn.Module):
    """The gated MLP of Llama (SiLU) and Gemma (GELU) (Shazeer, 2020); gate and up are one matrix, gate first."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.gate = functools.partial(gated, activation="silu" if spec.mlp == "swiglu" else "gelu")
        self.gate_up = Linear(spec.width, 2 * spec.mlp_width, bias=spec.mlp_bias)
        self.down = Linear(spec.mlp_width, spec.width, bias=spec.mlp_bias)

    def forward(self, x_ND: Activation) -> Tensor:
        return self.down(recomputed(self.gate, self.gate_up(x_ND)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each added to the stream, times a number if there is one; norms before, after or around.

    The MLP reads the stream with attention's part in it, or, in GPT-NeoX, without. In place of attention there may be a
    convolution (LFM2).
    """

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.parallel, self.multiplier = spec.parallel_residual, spec.residual_multiplier
        self.norm1 = _norm(spec, spec.width) if spec.pre_norms else nn.Identity()
        length = spec.convolution_of(layer)
        self.attention = Attention(spec, layer) if length is None else None
        self.convolution = None if length is None else ShortConvolution(spec, layer, length)
        self.post_norm1 = _norm(spec, spec.width) if spec.post_norms else nn.Identity()
        self.norm2 = _norm(spec, spec.width) if spec.pre_norms else nn.Identity()
        self.mlp = GeluMLP(spec) if spec.mlp in ("gelu", "gelu_exact") else GatedMLP(spec)
        self.post_norm2 = _norm(spec, spec.width) if spec.post_norms else nn.Identity()

    def forward(self, x_ND: Tensor, attend: Pattern, rope: Rope | None, wanted_U: Tensor | None = None) -> Tensor:
        mix = self.convolution if self.attention is None else self.attention
        assert mix is not None
        mixed_ND = mix(recomputed(self.norm1, x_ND), attend, rope, wanted_U)
        before_ND = x_ND if wanted_U is None else x_ND[wanted_U]
        x_ND = self._added(before_ND, self.post_norm1(mixed_ND))
        read_ND = before_ND if self.parallel else x_ND
        return self._added(x_ND, self.post_norm2(self.mlp(recomputed(self.norm2, read_ND))))

    def _added(self, x_ND: Tensor, more_ND: Tensor) -> Tensor:
        return x_ND + more_ND if self.multiplier is None else torch.add(x_ND, more_ND, alpha=self.multiplier)


class RMSNorm(nn.Module):
    """A norm without a mean and a bias (Llama)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class OffsetRMSNorm(nn.Module):
    """RMSNorm whose weights say how far a scale is from one, so that weight decay draws it to one (Gemma).

    One is added in float32 at least, as the family was trained: bfloat16 would round small offsets away.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return rms_norm(x.to(wide), 1 + self.weight.to(wide), self.eps).to(x.dtype)


class Decoder(nn.Module):
    """A decoder-only transformer of any supported family.

    >>> spec = DecoderSpec(family="gpt2", vocab_size=11, width=8, layers=1, heads=2, kv_heads=2,
    ...     head_width=4, mlp_width=16, context=6, norm="layer", norm_eps=1e-5, mlp="gelu",
    ...     positions="learned", attention_bias=True, mlp_bias=True)
    >>> model = Decoder(spec)
    >>> hidden_ND = model(batch_of_ids(torch.tensor([[1, 2, 3]])))
    >>> model.logits(hidden_ND).shape
    torch.Size([3, 11])
    """

    elsewhere: Elsewhere | None = None  # what gives its parameters where they are not here, or not as a whole
    in_parts = False  # a part of each weight is here, and all processes that have one compute every pass at once
    narrow = False  # weights of linear layers are given in bfloat16, for products under autocast
    notes: tuple[str, ...] = ()  # what users are to be told of the files that it comes from
    gradient_checkpointing = False  # backward makes each block's activations again (`instil.model.fast.recompute`)

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab_size, spec.width)
        self.positions = nn.Embedding(spec.context, spec.width) if spec.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(spec, layer) for layer in range(spec.layers))
        self.norm = _norm(spec, spec.width)
        self.head = Linear(spec.width, spec.vocab_size, bias=False)
        if spec.tied:
            self.head.weight = self.embed.weight
        for parameter in self.parameters():
            if parameter.dim() > 1 and not parameter.is_meta:
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        batch: Batch,
        past: Sequence[Part] | None = None,
        tied: TiedGradient | None = None,
        wanted_U: Tensor | None = None,
        attend: Pattern | None = None,
    ) -> Tensor:
        """Hidden states as the head takes them, after the last norm, [N, D], or of the wanted tokens alone, [U, D].

        With a past the batch holds only new tokens, row after row of each part in turn, without padding, and the
        caches are extended by them. ``tied`` joins the gradients of a table that is
        embedding and head, for who leaves the head's there. Of tokens that are not wanted the last layer computes
        only what the others see. ``attend`` says which tokens see which, where neither layout nor past does.
        """
        spec = self.spec
        x_ND = self.embed(batch.ids_N) if tied is None else embed_tied(batch.ids_N, self.embed.weight, tied)
        if spec.embedding_multiplier is not None:  # rounded to the model's type, as Gemma was trained
            x_ND = x_ND * torch.tensor(spec.embedding_multiplier, dtype=x_ND.dtype)
        windows = spec.windows or (None,) * spec.layers
        ropes: dict[int | None, Rope] = {}
        if self.positions is not None:
            x_ND = x_ND + self.positions(batch.positions_N)
        else:
            for window in set(windows):
                ropes[window] = rope_tables(batch.positions_N, spec.turned_width, *spec.rope_of(window), x_ND.dtype)
        attend = attend or pattern_for(batch, past)
        for layer, (block, window) in enumerate(zip(self.blocks, windows, strict=True)):
            rope = ropes[window] if spec.turns(layer) else None
            rest = (attend, rope, wanted_U if block is self.blocks[-1] else None)
            if self.gradient_checkpointing:
                x_ND = checkpointed(functools.partial(_block, block, rest), x_ND, block.parameters())
            else:
                x_ND = block(x_ND, *rest)
        for part in past or ():
            for row, count in zip(part.rows, part.lengths, strict=True):
                part.cache.lengths[row] += count
        hidden_ND: Tensor = self.norm(x_ND)
        # Here and not after the head, so that whoever applies the head by himself need not know of it.
        return hidden_ND if spec.logits_scaling is None else hidden_ND / spec.logits_scaling

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Scores over the vocabulary for the rows of hidden states asked for, [S, V]."""
        scores_SV: Tensor = self.head(hidden_SD)
        return scores_SV if self.spec.logits_softcap is None else soft_cap(scores_SV, self.spec.logits_softcap)

    def new_cache(self, length: int) -> Cache:
        """An empty cache of this model's type and device, for rows of up to so many tokens."""
        dtype = torch.bfloat16 if self.narrow else self.embed.weight.dtype
        return Cache(self.spec, length, dtype=dtype, device=self.device)

    @contextmanager
    def without_graph(self) -> Iterator[None]:
        """Inside, passes keep nothing for backward; products are in bfloat16 where weights are given so (`narrow`)."""
        # What gathers parts of weights keeps what it makes for training, and that must not be made in inference mode.
        no_graph = torch.no_grad() if self.in_parts else torch.inference_mode()
        with no_graph, torch.autocast(self.device.type, torch.bfloat16) if self.narrow else nullcontext():
            yield

    def untie(self) -> None:
        """Give the head its own copy of the embedding (the book's weights are loaded so, chapter 5.5)."""
        if self.spec.tied:
            self.head.weight = nn.Parameter(self.embed.weight.detach().clone())
            self.spec = replace(self.spec, tied=False)

    @property
    def parameter_count(self) -> int:
        """Number of parameters, a tied head counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are, or will be."""
        return self.embed.weight.device if self.elsewhere is None else self.elsewhere.device


def batch_of_ids(ids_BT: Tensor) -> Batch:
    """Rows of equal length as a batch without targets, for looking at logits."""
    rows, length = ids_BT.shape
    return Batch.untargeted(
        ids_BT.reshape(-1),
        torch.arange(length, device=ids_BT.device).repeat(rows),
        torch.arange(rows, device=ids_BT.device).repeat_interleave(length),
        Grid(rows, length),
    )


def _block(block: nn.Module, rest: tuple[Pattern, Rope | None, Tensor | None], x_ND: Tensor) -> Tensor:
    return block(x_ND, *rest)  # type: ignore[no-any-return]


def _norm(spec: DecoderSpec, width: int) -> nn.Module:
    if spec.norm == "layer":
        return nn.LayerNorm(width, eps=spec.norm_eps)
    return RMSNorm(width, spec.norm_eps) if spec.norm == "rms" else OffsetRMSNorm(width, spec.norm_eps)
