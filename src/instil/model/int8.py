"""Weights of the linear layers in eight bits: a quarter of the memory to read for each token of a chat. Not exact.

Each output has a scale of its own, by which its largest weight becomes 127 (the absmax rounding of Dettmers et al.,
2022); products are taken with activations in bfloat16. Where one row is answered alone, time goes into reading the
weights, so that a token comes about four times as fast; many rows side by side gain nothing. `benchmarks/answer.py`
measures how many tokens stay the same.

Shape suffixes: N tokens · I input width · O output width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instil.errors import SettingsError
from instil.model.decoder import Decoder
from instil.model.fast.gemm import Linear
from instil.model.fast.recompute import ReadsRecomputed

IN, OUT = 64, 16  # torch's kernel reads whole blocks of these many inputs and outputs, whatever there is


class Int8Linear(ReadsRecomputed):
    """A linear layer for inference alone, made from another."""

    weight_OI: Tensor
    scale_O: Tensor
    bias_O: Tensor | None

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.width_out = layer.out_features
        weight_OI = layer.weight.detach().float()
        weight_OI = F.pad(weight_OI, (0, 0, 0, -self.width_out % OUT))
        scale_O = (weight_OI.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny).bfloat16()
        self.register_buffer("weight_OI", (weight_OI / scale_O.float()[:, None]).round_().clamp_(-127, 127).char())
        self.register_buffer("scale_O", scale_O)
        self.register_buffer("bias_O", None if layer.bias is None else layer.bias.detach())

    def forward(self, x_NI: Tensor) -> Tensor:
        """Outputs, [N, O], of the type of the inputs."""
        found: Tensor = torch.ops.aten._weight_int8pack_mm(x_NI.bfloat16(), self.weight_OI, self.scale_O)
        found_NO = found[:, : self.width_out].to(x_NI.dtype)
        return found_NO if self.bias_O is None else found_NO + self.bias_O


@torch.no_grad()
def quantise(decoder: Decoder) -> None:
    """Turn linear layers into eight-bit ones, for good; the decoder can no longer be trained or saved.

    Layers with an input width that is no multiple of 64 stay as they are; no model that is read here has any.

    Raises:
        SettingsError: the decoder is not on the CPU, whose product this is, or its layers are no plain ones.
    """
    if decoder.device.type != "cpu":
        raise SettingsError("int8 weights are for the CPU; leave them out on a GPU")
    if any(type(module) is not Linear and isinstance(module, ReadsRecomputed) for module in decoder.modules()):
        raise SettingsError("this decoder has adapters or weights in few bits; merge them first")
    for module in list(decoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear) and child.in_features % IN == 0:
                setattr(module, name, Int8Linear(child))


def refuse_int8(decoder: Decoder) -> None:
    """SettingsError for a decoder with eight-bit layers, which hold nothing that could be trained, saved or adapted."""
    if any(isinstance(module, Int8Linear) for module in decoder.modules()):
        raise SettingsError(
            "the weights of this decoder are in eight bits (int8), which are for answering alone: they cannot be "
            "trained, saved or given adapters; load the model again without int8"
        )
