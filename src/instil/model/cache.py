"""Keys and values of tokens already seen, so that generation computes each token once.

Shape suffixes: B rows · K key/value heads · S cached positions · W head width · T new positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instil.model.spec import DecoderSpec


class Cache:
    """Room for ``length`` positions of ``rows`` sequences in every layer.

    ``lengths_B`` counts the positions of each row that are filled; what lies beyond is never read.
    """

    def __init__(self, spec: DecoderSpec, rows: int, length: int, *, dtype: torch.dtype, device: torch.device) -> None:
        shape = (rows, spec.kv_heads, length, spec.head_width)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(spec.layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(spec.layers)]
        self.lengths_B = torch.zeros(rows, dtype=torch.long, device=device)

    @property
    def rows(self) -> int:
        """Number of sequences held."""
        return self.lengths_B.shape[0]

    def extend(self, layer: int, k_BKTW: Tensor, v_BKTW: Tensor, slots_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values at ``slots_BT`` and return all of the layer's, [B, K, S, W]."""
        keys, values = self.keys[layer], self.values[layer]
        index = slots_BT[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
        keys.scatter_(2, index, k_BKTW)
        values.scatter_(2, index, v_BKTW)
        used = int(slots_BT.max().item()) + 1
        return keys[:, :, :used], values[:, :, :used]

    def advance(self, counts_B: Tensor) -> None:
        """Say that ``counts_B`` more positions of each row are filled."""
        self.lengths_B += counts_B

    def keep(self, rows_B: Tensor) -> None:
        """Let go of every row but these."""
        for held in (self.keys, self.values):  # layer by layer, so that there is never a second cache
            for layer, states in enumerate(held):
                held[layer] = states.index_select(0, rows_B)
        self.lengths_B = self.lengths_B.index_select(0, rows_B)
