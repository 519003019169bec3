"""Rotary position embeddings (Su et al., 2021), in the half-split form of Llama's checkpoints.

Dimension i of a head is paired with dimension i + W/2 and the pair is turned by position * theta^(-2i/W).
GGUF files of Llama pair neighbours (2i, 2i+1) instead; their rows are put in order when loaded.

Shape suffixes: N tokens · K heads · W head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from instil.model.spec import RopeScaling


def rope_tables(
    positions_N: Tensor, width: int, theta: float, scaling: RopeScaling | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every token's angles, each [N, 1, W], computed in float64."""
    exponents = torch.arange(0, width, 2, dtype=torch.float64, device=positions_N.device) / width
    frequencies = theta**-exponents
    if scaling is not None:
        frequencies = scaled(frequencies, scaling)
    angles = positions_N.to(torch.float64)[:, None] * frequencies[None, :]
    angles = torch.cat([angles, angles], dim=-1)[:, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def scaled(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Frequencies (radians a token) slowed down as `RopeScaling` says."""
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    turns = scaling.context * frequencies / (2 * math.pi)
    share = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return torch.lerp(slow, frequencies, share)


def apply_rope(x_NKW: Tensor, cos_N1W: Tensor, sin_N1W: Tensor) -> Tensor:
    """Turn each head of each token by its angles."""
    first, second = x_NKW.chunk(2, dim=-1)
    return x_NKW * cos_N1W + torch.cat([-second, first], dim=-1) * sin_N1W
