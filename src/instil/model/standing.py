"""Rows of a cache that go on by one token each, in a pass that is the same every time but for numbers on the device.

What a pass over a cache otherwise hangs on is known to the host: which rows it is for, and how long they are. Here the
rows are the first of the cache, the whole length of which is looked at under a mask, and their positions are read where
they lie. So the host has no part in it, and a GPU can record such a pass once and replay it (`instil.generate.replay`).

Shape suffixes: R rows · H query heads · K key/value heads · S positions of the cache · W head width · D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instil.model.attention import Scores, attend, flat, rows_first, visible
from instil.model.cache import Cache
from instil.model.preceding import Steps


class Standing:
    """The attention pattern of such a pass (`instil.model.attention.Pattern`).

    Args:
        cache: whose first rows they are.
        positions_R: where each row's new token stands in it.
    """

    def __init__(self, cache: Cache, positions_R: Tensor) -> None:
        self.cache, self.positions_R = cache, positions_R
        self.rows_R = torch.arange(len(positions_R), device=positions_R.device)
        self.slots_S = torch.arange(cache.length, device=positions_R.device)
        self.masks: dict[int | None, Tensor] = {}

    def __call__(
        self, layer: int, q_RHW: Tensor, k_RKW: Tensor, v_RKW: Tensor, window: int | None, scores: Scores
    ) -> Tensor:
        rows = len(self.positions_R)
        self.cache.write(layer, self.rows_R, self.positions_R, k_RKW, v_RKW)
        keys, values = self.cache.read(layer, slice(0, rows), self.cache.length)
        if window not in self.masks:
            self.masks[window] = visible(self.positions_R, self.slots_S, window)[:, None, None]
        return flat(attend(rows_first(q_RHW, rows, 1), keys, values, self.masks[window], scores, causal=False))

    def preceding(self, layer: int, x_RD: Tensor, reach: int) -> tuple[Tensor, Steps]:
        """Inputs before each token from the cache, the nearest first, with zeros where a row has none."""
        rows = len(self.positions_R)
        self.cache.write_inputs(layer, self.rows_R, self.positions_R, x_RD)
        before_N = (self.positions_R[:, None] - 1 - torch.arange(reach, device=x_RD.device)).flatten()
        found_ND = self.cache.read_inputs(layer, self.rows_R.repeat_interleave(reach), before_N.clamp(min=0))
        found_ND = found_ND.where(before_N[:, None] >= 0, 0.0)
        none_I = self.rows_R[:0]
        return torch.cat([x_RD, found_ND]), [(rows + reach * self.rows_R + step, none_I) for step in range(reach)]
