"""Of an untied embedding, train the rows that are ever read; the others only decay.

A row that no batch reads has no gradient and no moments, so AdamW multiplies it by ``1 - rate * decay`` in
each step and does nothing else. Here that is one number for all of them, and the optimizer sees a small table
of the rows that are read (about 3,200 of GPT-2's 50,257 in the chapter's data). Equal in exact arithmetic (E1).
A tied table has no such rows: as the head it is read whole.

Shape suffixes: N tokens · R rows ever read · V vocabulary · D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
        return whole_VD[self._rows_R.to(whole_VD.device)]  # a file's is on the CPU

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


TABLE = "table"  # the name of the whole embedding in a state, where only some of its rows are trained
_TRAINED = "weights/embed.weight", "first/embed.weight", "second/embed.weight"


class Rows(Mapping[str, Tensor]):
    """The tensors of a state with all rows of the embedding trained where only some were, or the other way round.

    The others are what they would be: without moments, and decayed.

    Args:
        tensors: those of the state.
        seen_ids: which rows are ever read.
        decayed: what the others are still to be multiplied by.
    """

    def __init__(self, tensors: Mapping[str, Tensor], seen_ids: Iterable[int], decayed: float) -> None:
        self._tensors, self._rows_R = tensors, torch.tensor(sorted(set(seen_ids)))
        if TABLE in tensors:
            changed = {name: self._whole(name, decayed) for name in _TRAINED}
        else:
            changed = {name: tensors[name][self._rows_R] for name in _TRAINED} | {TABLE: tensors[_TRAINED[0]]}
        self._changed = changed
        self._names = sorted({*tensors, *changed} - ({TABLE} if TABLE in tensors else set()))

    def _whole(self, name: str, decayed: float) -> Tensor:
        table_VD = self._tensors[TABLE]
        whole_VD = table_VD * decayed if name == _TRAINED[0] else torch.zeros_like(table_VD)
        whole_VD[self._rows_R] = self._tensors[name]
        return whole_VD

    def __getitem__(self, name: str) -> Tensor:
        return self._changed[name] if name in self._changed else self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


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
