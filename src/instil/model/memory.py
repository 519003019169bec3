"""Memory for weights and caches that goes back to the system the moment it is dropped."""

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
    # All of it will be written, and pages that are asked for together come sooner than one by one when touched.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
    return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=dtype).view(shape)


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros of [*shape]; on the CPU a large tensor takes no memory until, and only where, it is written."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE or device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
