"""Weights of the linear layers in bfloat16: half of the memory to read for each token. Not exact.

A weight keeps 8 of its 24 bits, an activation is rounded likewise where a product reads it, and so is what the product
makes; the stream between layers, norms, attention and the cache stay in float32. Processors with units for it
(AVX512-BF16, AMX) multiply twice as fast as in float32, so prompts gain as well, which they do not with eight bits.

Shape suffixes: N tokens · I input width · O output width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instil.model.fast.gemm import Linear
from instil.model.rounded.layer import PACKED_FOR, RoundedLinear

KIND = torch.bfloat16


class Bf16Linear(RoundedLinear):
    """A linear layer for inference alone, made from another.

    Attributes:
        weight: in oneDNN's own order where torch has oneDNN, else [O, I].
    """

    weights = "bf16"
    bias_O: Tensor | None

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.weight = layer.weight.detach().to(KIND)
        self.packed = has_onednn()
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, PACKED_FOR)
        self.register_buffer("bias_O", None if layer.bias is None else layer.bias.detach())

    def forward(self, x_NI: Tensor) -> Tensor:
        """Outputs, [N, O], of the type of the inputs."""
        narrow_NI = x_NI.to(KIND)
        if self.packed:
            found_NO = torch.ops.mkldnn._linear_pointwise(narrow_NI, self.weight, None, "none", [], "")
        else:
            found_NO = narrow_NI @ self.weight.t()
        wide_NO: Tensor = found_NO.to(x_NI.dtype)
        return wide_NO if self.bias_O is None else wide_NO.add_(self.bias_O)


def has_onednn() -> bool:
    """Whether torch has products that read a weight in oneDNN's order."""
    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
