"""Weights of the linear layers in eight bits: a quarter of the memory to read for each token of a chat. Not exact.

Each output has a scale of its own, by which its largest weight becomes 127 (the absmax rounding of Dettmers et al.,
2022). Each token has one, too, by which its activations become whole numbers of 16 bits; their upper and lower bytes
are multiplied with the weights as two tokens, in whole numbers, and put together again. Sums of whole numbers are exact
in any order: what is left out is left out of the weights, and a token's outputs do not depend on which others are
computed beside it. Processors with byte products (VNNI, AMX) take two of them in half the time of one in float32.

Elsewhere products are taken with activations in bfloat16, which are near enough for one row and no faster for many.
`benchmarks/answer.py` measures how many tokens stay the same.

Shape suffixes: N tokens · I input width · O output width.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from instil.model.fast.gemm import Linear
from instil.model.rounded.layer import PACKED_FOR, RoundedLinear

IN, OUT = 64, 16  # torch's kernel reads whole blocks of these many inputs and outputs, whatever there is
ZERO = 128  # the byte that stands for 0
MOST = 255 * ZERO - 1  # the largest activation: one more, and ZERO of both bytes, would not fit into 16 bits
TINY = torch.finfo(torch.float32).tiny


class Int8Linear(RoundedLinear):
    """A linear layer for inference alone, made from another.

    Attributes:
        packed: the weights in oneDNN's own order, where this processor multiplies bytes exactly; nothing else is held.
        weight_OI: the same for torch's kernel, where it does not.
    """

    weights = "int8"
    packed: Tensor | None = None
    weight_OI: Tensor | None
    scale_O: Tensor
    zero_O: Tensor
    bias_O: Tensor | None

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.width_out = layer.out_features
        weight_OI = layer.weight.detach().float()
        scale_O = (weight_OI.abs().amax(1) / 127).clamp_min(TINY)
        kept_OI: Tensor | None = None
        if multiplies_bytes():
            self.packed = _pack(_in_bytes(weight_OI, scale_O))
            scale_O /= MOST  # of activations
        else:
            fill = -self.width_out % OUT
            scale_O = F.pad(scale_O, (0, fill), value=TINY).bfloat16()
            kept_OI = _in_bytes(F.pad(weight_OI, (0, 0, 0, fill)), scale_O.float())
        self.register_buffer("weight_OI", kept_OI)
        self.register_buffer("scale_O", scale_O)
        self.register_buffer("zero_O", torch.zeros(len(scale_O), dtype=torch.long))
        self.register_buffer("bias_O", None if layer.bias is None else layer.bias.detach())

    def forward(self, x_NI: Tensor) -> Tensor:
        """Outputs, [N, O], of the type of the inputs."""
        if self.packed is not None:
            found_NO = self._by_bytes(x_NI.float(), self.packed)
        else:
            found: Tensor = torch.ops.aten._weight_int8pack_mm(x_NI.bfloat16(), self.weight_OI, self.scale_O)
            found_NO = found[:, : self.width_out]
        found_NO = found_NO.to(x_NI.dtype)
        return found_NO if self.bias_O is None else found_NO + self.bias_O

    def _by_bytes(self, x_NI: Tensor, packed: Tensor) -> Tensor:
        largest_N1 = x_NI.abs().amax(1, keepdim=True).clamp_min_(TINY)
        # All above zero, so that cutting fractions off rounds; of the shifted numbers the last bytes are kept.
        whole_NI = torch.addcdiv(_middle(), x_NI, largest_N1, value=MOST).to(torch.int32)
        bytes_2NI = (whole_NI >> _shifts()).to(torch.uint8)
        upper_NO, lower_NO = _byte_product(bytes_2NI.flatten(0, 1), packed, self.scale_O, self.zero_O).chunk(2)
        return torch.add(lower_NO, upper_NO, alpha=256).mul_(largest_N1)


def _in_bytes(weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    return (weight_OI / scale_O[:, None]).round_().clamp_(-127, 127).char()


@functools.cache
def _middle() -> Tensor:
    """What is added to an activation: ZERO of both bytes, and a half."""
    return torch.tensor(257 * ZERO + 0.5)


@functools.cache
def _shifts() -> Tensor:
    """That bring each byte to the end, [2, 1, 1]."""
    return torch.tensor([8, 0], dtype=torch.int32)[:, None, None]


def _pack(weight_OI: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight_OI, [PACKED_FOR, weight_OI.shape[1]])
    return packed


def _byte_product(bytes_NI: Tensor, packed: Tensor, scale_O: Tensor, zero_O: Tensor) -> Tensor:
    found: Tensor = torch.ops.onednn.qlinear_pointwise(
        bytes_NI, 1.0, ZERO, packed, scale_O, zero_O, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return found


@functools.cache
@torch.no_grad()
def multiplies_bytes() -> bool:
    """Whether oneDNN's sums of products of bytes are exact here; without VNNI, pairs of large ones are cut short.

    Tried, rather than asked of the processor: oneDNN may have been told to use less than there is.
    """
    weight_OI = torch.tensor([127, -127, 1]).repeat_interleave(IN).view(3, IN).to(torch.int8)
    bytes_NI = torch.stack([torch.full((IN,), 255), torch.zeros(IN), torch.arange(IN)]).to(torch.uint8)
    wanted_NO = (bytes_NI.long() - ZERO) @ weight_OI.long().t()
    try:
        found_NO = _byte_product(bytes_NI, _pack(weight_OI), torch.ones(3), torch.zeros(3, dtype=torch.long))
    except (RuntimeError, AttributeError):  # a torch without oneDNN, or another processor
        return False
    return torch.equal(found_NO, wanted_NO.float())
