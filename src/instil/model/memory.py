"""Memory for weights that goes back to the system the moment it is dropped."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

LARGE = 1 << 20  # bytes; smaller pieces are not worth pages of their own


def own_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """An empty tensor of [*shape]; on the CPU a large one has pages that malloc knows nothing of.

    Loading a model takes and drops hundreds of large pieces of unlike sizes. malloc keeps what was dropped
    in the gaps between those that stay: 35 % more than the weights when GPT-2 medium is loaded.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE or (device is not None and device.type != "cpu"):
        return torch.empty(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
