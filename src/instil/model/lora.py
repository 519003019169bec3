"""LoRA (Hu et al., 2021, arXiv 2106.09685) as a walk over a built decoder: each weight frozen, two thin ones beside it.

Each projection has its own adapter, as if query, key and value, or gate and up, were layers of their own; where they
are one matrix here, their A are one matrix, too, and one product serves all of them. Of the frozen weights no gradient
is taken, and below the first adapter nothing is propagated.

The layer itself is `instil.model.lora_layer`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from instil.errors import SettingsError, did_you_mean
from instil.model.decoder import Attention, Decoder, GatedMLP, GeluMLP, ShortConvolution
from instil.model.families import FAMILIES
from instil.model.fast.gemm import Linear
from instil.model.frozen import FrozenLinear, dequantise
from instil.model.lora_layer import LoraLinear
from instil.model.rounded.layer import refuse_rounded
from instil.model.token_rows import TokenRows, check_rows, merge_rows, train_rows

Scaling = Literal["alpha/rank", "alpha/sqrt(rank)", "alpha"]
ALL = "all"  # every projection but the head
HEAD = "head"


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
