"""Where the process computes and how it treats memory; nothing here changes a number that is computed (E0).

A training step makes and drops hundreds of megabytes. glibc gives every large block back to the kernel at
once, which then has to map and clear new pages for the next one; and pages of 4 KiB cost far more look-ups
than those of 2 MiB. oneDNN keeps a compiled product for every shape it has met, and in training every batch has
its own: the thousand it would keep are some hundred megabytes that are never used again. All three are told
otherwise here, before torch makes its first tensor.
"""

from __future__ import annotations

import ctypes
import os
import sys

from instil.errors import SettingsError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT = 1 << 25  # bytes of the largest block that stays with the process, and the most that glibc takes here
PRODUCTS = "32"  # shapes of products kept: those of one training step


def settle() -> None:
    """Keep freed memory for the next step and ask for huge pages; once, and only on Linux with glibc.

    What the user has set in the environment (``THP_MEM_ALLOC_ENABLE``, ``MALLOC_*``) stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch: huge pages for tensors from 2 MiB up
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's, and torch's in front of it
        os.environ.setdefault(cache, PRODUCTS)
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def device_for(asked: str) -> str:
    """Where to compute: ``"auto"`` is a GPU if there is one.

    Raises:
        SettingsError: a GPU is asked for and there is none.
    """
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise SettingsError("train.device=cuda, but torch sees no GPU here; use cpu or auto, or a torch with CUDA")
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
