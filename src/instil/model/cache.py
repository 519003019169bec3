"""Keys and values of tokens already seen, so that generation computes each token once.

A layer that convolves keeps what it convolved, position by position, where others keep keys, and no values: a row can
then be copied and gone on with at any of its positions, as with keys and values.

Shape suffixes: R rows · K key/value heads · S positions · W head width · N tokens, flat · D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from instil.model.memory import untouched_zeros
from instil.model.spec import DecoderSpec


class Cache:
    """Room for ``length`` positions of any number of sequences in every layer; rows come and go.

    ``lengths`` counts the positions of each row that are filled; what lies beyond is never read. Rows are always
    the first of the tensors, so that all of them together are a view.
    """

    def __init__(self, spec: DecoderSpec, length: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.length = length
        self.lengths: list[int] = []
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        for layer in range(spec.layers):
            for states, (heads, width) in zip((self.keys, self.values), _kept(spec, layer), strict=True):
                states.append(torch.empty((0, heads, length, width), dtype=dtype, device=device))

    @property
    def rows(self) -> int:
        """Number of sequences held."""
        return len(self.lengths)

    @property
    def room(self) -> int:
        """How many sequences there is memory for."""
        return len(self.keys[0])

    def reserve(self, rows: int) -> None:
        """Make room for so many rows in all."""
        for states in (self.keys, self.values):  # layer by layer, so that there is never a second cache
            for layer, old in enumerate(states):
                if rows > len(old):
                    # What was never written is read under a mask all the same, so it has to be a number.
                    states[layer] = untouched_zeros((rows, *old.shape[1:]), old.dtype, old.device)
                    filled = max(self.lengths, default=0)
                    states[layer][: self.rows, :, :filled] = old[: self.rows, :, :filled]

    def add(self) -> int:
        """Another row, none of its positions filled; its place."""
        held = len(self.keys[0])
        if self.rows == held:
            self.reserve(held + max(held // 2, 1))
        self.lengths.append(0)
        return self.rows - 1

    def drop(self, row: int) -> int:
        """Let go of a row. The last one takes its place; its old place is returned."""
        last = self.rows - 1
        if row != last:
            self.copy(last, self, row, self.lengths[last])
        self.lengths.pop()
        return last

    def copy(self, row: int, target: Cache, target_row: int, length: int) -> None:
        """Fill the first positions of another row, there or here, from one of this cache."""
        for ours, theirs in ((self.keys, target.keys), (self.values, target.values)):
            for source, to in zip(ours, theirs, strict=True):
                to[target_row, :, :length] = source[row, :, :length]
        target.lengths[target_row] = length

    def write(self, layer: int, rows_N: Tensor, positions_N: Tensor, k_NKW: Tensor, v_NKW: Tensor) -> None:
        """Keys and values of new tokens, each to its row and position."""
        self.keys[layer][rows_N, :, positions_N] = k_NKW
        self.values[layer][rows_N, :, positions_N] = v_NKW

    def read(self, layer: int, rows: slice | Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first positions of some rows, [R, K, S, W]; a view where the rows lie side by side, as a slice."""
        return self.keys[layer][rows, :, :length], self.values[layer][rows, :, :length]

    def write_inputs(self, layer: int, rows_N: Tensor, positions_N: Tensor, x_ND: Tensor) -> None:
        """What a layer convolves of new tokens, each to its row and position."""
        self.keys[layer][rows_N, 0, positions_N] = x_ND

    def read_inputs(self, layer: int, rows_N: Tensor, positions_N: Tensor) -> Tensor:
        """What a layer convolved of tokens by row and position, [N, D]."""
        return self.keys[layer][rows_N, 0, positions_N]


def position_bytes(spec: DecoderSpec, dtype: torch.dtype) -> int:
    """What keys and values of one token take in all layers, or what these keep instead."""
    kept = [heads * width for layer in range(spec.layers) for heads, width in _kept(spec, layer)]
    return sum(kept) * dtype.itemsize


def _kept(spec: DecoderSpec, layer: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Heads of a layer and their width, in place of keys and of values."""
    if spec.convolution_of(layer) is not None:
        return (1, spec.width), (1, 0)
    return (spec.kv_heads, spec.head_width), (spec.kv_heads, spec.head_width)


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a cache that get new tokens in a forward pass: so many each, after those that they have."""

    cache: Cache
    rows: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """New tokens in all."""
        return sum(self.lengths)
