"""Of an untied embedding, train the rows that are ever read; the others only decay.

A row that no batch reads has no gradient and no moments, so AdamW multiplies it by ``1 - rate * decay`` in
each step and does nothing else. Here that is one number for all of them, and the optimizer sees a small table
of the rows that are read (about 3,200 of GPT-2's 50,257 in the chapter's data). Equal in exact arithmetic (E1).
A tied table has no such rows: as the head it is read whole.

Shape suffixes: N tokens · R rows ever read · V vocabulary · D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instil.model.decoder import Decoder


class TouchedRows:
    """Stands in for a decoder's embedding while it is trained.

    Args:
        decoder: its embedding must not be its head.
        ids: every id that training will read; another one is an error.
        weight_decay: AdamW's.
    """

    def __init__(self, decoder: Decoder, ids: Iterable[int], *, weight_decay: float) -> None:
        self._decoder, self._whole, self._weight_decay = decoder, decoder.embed, weight_decay
        whole_VD = self._whole.weight
        self._rows_R = torch.tensor(sorted(set(ids)), device=whole_VD.device)
        self._part = _Part(whole_VD.detach()[self._rows_R], self._rows_R, whole_VD.shape[0])
        self.decayed = 1.0  # what the rows that are not read are still to be multiplied by
        decoder.embed = self._part

    @property
    def table_VD(self) -> Tensor:
        """The whole table as it was when it was last brought up to date."""
        return self._whole.weight.detach()

    def part_of(self, whole_VD: Tensor) -> Tensor:
        """The rows that are trained, of another table like this one."""
        return whole_VD[self._rows_R]

    def step(self, rate: float) -> None:
        """Count an optimizer step."""
        self.decayed *= 1 - rate * self._weight_decay

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The whole table as it is now, for texts with any ids."""
        self.settle()
        try:
            yield
        finally:
            self._decoder.embed = self._part

    @torch.no_grad()
    def settle(self) -> None:
        """Bring the whole table up to date and give it back to the decoder."""
        self._whole.weight.mul_(self.decayed)
        self._whole.weight[self._rows_R] = self._part.weight.detach()
        self.decayed = 1.0
        self._decoder.embed = self._whole


class _Part(nn.Embedding):
    """Some rows of a table, looked up by their ids in the whole."""

    def __init__(self, weight_RD: Tensor, rows_R: Tensor, vocabulary: int) -> None:
        super().__init__(weight_RD.shape[0], weight_RD.shape[1], _weight=weight_RD)
        slots_V = torch.full((vocabulary,), -1, device=rows_R.device)
        slots_V[rows_R] = torch.arange(len(rows_R), device=rows_R.device)
        self.register_buffer("slots_V", slots_V, persistent=False)
        self.slots_V: Tensor

    def forward(self, ids_N: Tensor) -> Tensor:
        return F.embedding(self.slots_V[ids_N], self.weight)
