"""The decoder: chapter 4's GPT and its younger relatives as one module, told apart by a `DecoderSpec`.

It takes a `Batch`, which says what every token is and where it stands, and returns hidden states; the
head is applied by the caller to the rows he asks for (`Decoder.logits`).

Shape suffixes: N tokens, flat · D model width · H query heads · K key/value heads · W head width ·
F width inside the MLP · V vocabulary · S rows the head is asked for · U tokens whose states are asked for · B rows ·
T positions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instil.model.attention import Pattern, pattern_for
from instil.model.cache import Cache, Part
from instil.model.fast.fused import gated, rms_norm
from instil.model.fast.gemm import Linear
from instil.model.fast.recompute import Activation, checkpointed, recomputed
from instil.model.fast.tied import TiedGradient, embed_tied
from instil.model.rope import apply_rope, rope_tables
from instil.model.spec import DecoderSpec
from instil.records import Batch, Grid

Rope = tuple[Tensor, Tensor]
gelu = functools.partial(F.gelu, approximate="tanh")


class Attention(nn.Module):
    """Causal self-attention with fused query, key and value projection (chapter 3.6).

    Where the spec asks for it, every query and key head has a norm before it is turned (Dehghani et al., 2023).
    """

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.layer, self.window = layer, spec.window_of(layer)
        self.scale = None if spec.score_width is None else spec.score_width**-0.5
        self.heads, self.kv_heads, self.head_width = spec.heads, spec.kv_heads, spec.head_width
        self.qkv = Linear(spec.width, (spec.heads + 2 * spec.kv_heads) * spec.head_width, bias=spec.attention_bias)
        self.out = Linear(spec.heads * spec.head_width, spec.width, bias=spec.attention_bias)
        self.q_norm = _norm(spec, spec.head_width) if spec.qk_norm else None
        self.k_norm = _norm(spec, spec.head_width) if spec.qk_norm else None

    def forward(self, x_ND: Activation, attend: Pattern, rope: Rope | None, wanted_U: Tensor | None) -> Tensor:
        qkv_NKW = self.qkv(x_ND).unflatten(-1, (-1, self.head_width))
        if rope is not None:  # queries and keys lie side by side, so one pass turns both
            turned, v_NKW = torch.split(qkv_NKW, [self.heads + self.kv_heads, self.kv_heads], dim=1)
            if self.q_norm is not None and self.k_norm is not None:
                q_NHW, k_NKW = torch.split(turned, [self.heads, self.kv_heads], dim=1)
                turned = torch.cat([self.q_norm(q_NHW), self.k_norm(k_NKW)], dim=1)
            q_NHW, k_NKW = torch.split(apply_rope(turned, *rope), [self.heads, self.kv_heads], dim=1)
        else:
            q_NHW, k_NKW, v_NKW = torch.split(qkv_NKW, [self.heads, self.kv_heads, self.kv_heads], dim=1)
        out_NHW = attend(self.layer, q_NHW, k_NKW, v_NKW, self.window, self.scale)
        out_ND = out_NHW.flatten(1)
        return self.out(out_ND if wanted_U is None else out_ND[wanted_U])  # type: ignore[no-any-return]


class GeluMLP(nn.Module):
    """GPT-2's two matrices with the tanh form of GELU (Hendrycks and Gimpel, 2016)."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.up = Linear(spec.width, spec.mlp_width, bias=spec.mlp_bias)
        self.down = Linear(spec.mlp_width, spec.width, bias=spec.mlp_bias)

    def forward(self, x_ND: Activation) -> Tensor:
        return self.down(recomputed(gelu, self.up(x_ND)))  # type: ignore[no-any-return]


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
    """Attention and MLP, each after a norm and added to the stream; in Gemma before another norm, too."""

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.norm1 = _norm(spec, spec.width)
        self.attention = Attention(spec, layer)
        self.post_norm1 = _norm(spec, spec.width) if spec.post_norms else nn.Identity()
        self.norm2 = _norm(spec, spec.width)
        self.mlp = GeluMLP(spec) if spec.mlp == "gelu" else GatedMLP(spec)
        self.post_norm2 = _norm(spec, spec.width) if spec.post_norms else nn.Identity()

    def forward(self, x_ND: Tensor, attend: Pattern, rope: Rope | None, wanted_U: Tensor | None = None) -> Tensor:
        attended_ND = self.attention(recomputed(self.norm1, x_ND), attend, rope, wanted_U)
        x_ND = (x_ND if wanted_U is None else x_ND[wanted_U]) + self.post_norm1(attended_ND)
        return x_ND + self.post_norm2(self.mlp(recomputed(self.norm2, x_ND)))  # type: ignore[no-any-return]


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
    ) -> Tensor:
        """Hidden states after the last norm, [N, D], or of the wanted tokens alone, [U, D].

        With a past the batch holds only new tokens, row after row of each part in turn, without padding, and the
        caches are extended by them. ``tied`` joins the gradients of a table that is
        embedding and head, for who leaves the head's there. Of tokens that are not wanted the last layer computes
        only what the others see.
        """
        spec = self.spec
        x_ND = self.embed(batch.ids_N) if tied is None else embed_tied(batch.ids_N, self.embed.weight, tied)
        if spec.scaled_embedding:  # the root is rounded to the model's type, as the family was trained
            x_ND = x_ND * torch.tensor(spec.width**0.5, dtype=x_ND.dtype)
        windows = spec.windows or (None,) * spec.layers
        ropes: dict[int | None, Rope] = {}
        if self.positions is not None:
            x_ND = x_ND + self.positions(batch.positions_N)
        else:
            for window in set(windows):
                ropes[window] = rope_tables(batch.positions_N, spec.head_width, *spec.rope_of(window), x_ND.dtype)
        attend = pattern_for(batch, past)
        for block, window in zip(self.blocks, windows, strict=True):
            rest = (attend, ropes.get(window), wanted_U if block is self.blocks[-1] else None)
            if self.gradient_checkpointing:
                x_ND = checkpointed(functools.partial(_block, block, rest), x_ND, block.parameters())
            else:
                x_ND = block(x_ND, *rest)
        for part in past or ():
            for row, count in zip(part.rows, part.lengths, strict=True):
                part.cache.lengths[row] += count
        return self.norm(x_ND)  # type: ignore[no-any-return]

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Scores over the vocabulary for the rows of hidden states asked for, [S, V]."""
        return self.head(hidden_SD)  # type: ignore[no-any-return]

    def new_cache(self, length: int) -> Cache:
        """An empty cache of this model's type and device, for rows of up to so many tokens."""
        weight = self.embed.weight
        return Cache(self.spec, length, dtype=weight.dtype, device=weight.device)

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
        """Where the weights are."""
        return self.embed.weight.device


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
