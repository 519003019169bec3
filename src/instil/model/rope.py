"""Rotary position embeddings (Su et al., 2021), in the half-split form of Llama's checkpoints.

Dimension i of a head is paired with dimension i + W/2 and the pair is turned by position * theta^(-2i/W).
GGUF files of Llama pair neighbours (2i, 2i+1) instead; their rows are put in order when loaded.

Shape suffixes: N tokens · K heads · W head width.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from instil.machine import sent
from instil.model.fast.narrow import is_narrow
from instil.model.fast.narrow import turned as narrow_turned
from instil.model.spec import RopeScaling


def rope_tables(
    positions_N: Tensor, width: int, theta: float, scaling: RopeScaling | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every token's angles, each [N, 1, W], computed in float64.

    ``width`` is how many dimensions of a head turn.
    """
    exponents = torch.arange(0, width, 2, dtype=torch.float64, device=positions_N.device) / width
    frequencies = theta**-exponents
    if scaling is not None:
        short = scaled(frequencies, scaling, theta)
        if (
            scaling.long != scaling.short and positions_N.numel() > 0
        ):  # which of them is decided where the positions are
            far = positions_N.amax() >= scaling.context
            frequencies = torch.where(far, scaled(frequencies, scaling, theta, long=True), short)
        else:
            frequencies = short
    angles = positions_N.to(torch.float64)[:, None] * frequencies[None, :]
    angles = torch.cat([angles, angles], dim=-1)[:, None, :]
    cos, sin = angles.cos(), angles.sin()
    if scaling is not None and scaling.attention_factor != 1:
        cos, sin = cos * scaling.attention_factor, sin * scaling.attention_factor
    return cos.to(dtype), sin.to(dtype)


def scaled(frequencies: Tensor, scaling: RopeScaling, theta: float, *, long: bool = False) -> Tensor:
    """Frequencies (radians a token) slowed down as `RopeScaling` says; ``long`` if a text is beyond its context."""
    if scaling.kind == "longrope":
        return frequencies / _factors(scaling.long if long else scaling.short, frequencies.device)
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    if scaling.kind == "yarn":
        share = _yarn_share(frequencies, scaling, theta)
    else:
        turns = scaling.context * frequencies / (2 * math.pi)
        share = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return torch.lerp(slow, frequencies, share)


@functools.cache
def _factors(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers on a device, where they stay for the next batch."""
    return sent(torch.tensor(values, dtype=torch.float64), device)


def _yarn_share(frequencies: Tensor, scaling: RopeScaling, theta: float) -> Tensor:
    """How much of its frequency each pair keeps: from all to nothing between the pairs that turn ``high`` and ``low``
    times in the context (Peng et al., 2023, section 3.2, with the dimensions' numbers in place of the turns)."""
    width = 2 * len(frequencies)
    first, last = (
        width * math.log(scaling.context / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (scaling.high, scaling.low)
    )
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last = last + 0.001 if first == last else last
    pairs = torch.arange(len(frequencies), dtype=frequencies.dtype, device=frequencies.device)
    return 1 - ((pairs - first) / (last - first)).clamp(0, 1)


def apply_rope(x_NKW: Tensor, cos_N1W: Tensor, sin_N1W: Tensor) -> Tensor:
    """Turn each head of each token by its angles; dimensions beyond the tables' width stay as they are."""
    width = cos_N1W.shape[-1]
    if width < x_NKW.shape[-1]:
        turned, rest = x_NKW[..., :width], x_NKW[..., width:]
        return torch.cat([apply_rope(turned, cos_N1W, sin_N1W), rest], dim=-1)
    if is_narrow(x_NKW):
        return narrow_turned(x_NKW, cos_N1W, sin_N1W)
    first, second = x_NKW.chunk(2, dim=-1)
    return x_NKW * cos_N1W + torch.cat([-second, first], dim=-1) * sin_N1W
