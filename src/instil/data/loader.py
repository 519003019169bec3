"""Batches in a seeded order that can be taken up again at any step.

The order of an epoch is a function of the seed and the epoch's number alone, so a run that stops in
the middle of epoch 3 goes on with exactly the rows it had not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch

from instil.data.collate import collate, collate_shared, common_prefix
from instil.errors import DataError
from instil.records import Batch, Encoded, EncodedPair


class Loader:
    """Optimizer steps over encoded rows; each step is a list of one or more micro-batches.

    Args:
        rows: the encoded rows (pairs, in `instil.tasks.pairs.batches`).
        batch_size: rows of one optimizer step.
        micro_batch: rows computed at once; 0 means the whole step.
        shuffle: whether epochs are shuffled (seeded) or in file order.
        drop_last: whether an incomplete last step is left out (the book does so).
        layout: ``"shared"`` for batches without padding whose common beginning is computed once, or ``"padded"``.
    """

    def __init__(
        self,
        rows: Sequence[Encoded] | Sequence[EncodedPair],
        batch_size: int,
        *,
        pad_id: int,
        max_length: int | None = None,
        micro_batch: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 123,
        layout: Literal["padded", "shared"] = "shared",
    ) -> None:
        if not rows:
            raise DataError("there are no rows to make batches of")
        if batch_size < 1 or micro_batch < 0:
            raise ValueError(f"batch_size is {batch_size}, micro_batch {micro_batch}; wanted at least 1 and at least 0")
        self.rows: tuple[Any, ...] = tuple(rows)
        self.batch_size = batch_size
        self.micro_batch = micro_batch or batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.layout = layout
        self._pad_id = pad_id
        self._max_length = max_length
        if len(self) == 0:
            raise DataError(
                f"a batch of {batch_size} rows is larger than the {len(rows)} rows there are, and incomplete "
                "batches are dropped; lower train.batch_size or set train.drop_last=false"
            )

    def __len__(self) -> int:
        """Optimizer steps in one epoch."""
        whole, rest = divmod(len(self.rows), self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def ids(self) -> list[int]:
        """Every token id that some batch may hold, in order."""
        return sorted({self._pad_id}.union(*(row.ids for row in self.rows)))

    def order(self, epoch: int) -> list[int]:
        """The rows of an epoch in the order they are seen: a function of seed and epoch only."""
        if not self.shuffle:
            return list(range(len(self.rows)))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return [int(i) for i in torch.randperm(len(self.rows), generator=generator)]

    def steps(self, epoch: int = 0, start: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of each step of an epoch, from step ``start`` on."""
        order = self.order(epoch)
        for step in range(start, len(self)):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield self._micro_batches(chosen)

    def batches(self) -> Iterator[Batch]:
        """Every micro-batch of the first epoch, one after another."""
        for step in self.steps():
            yield from step

    def sizes(self, epoch: int = 0) -> list[list[int]]:
        """Positions computed (padding included) for each micro-batch of each step, without making a batch."""
        order = self.order(epoch)
        steps = []
        for step in range(len(self)):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            micro = [chosen[first : first + self.micro_batch] for first in range(0, len(chosen), self.micro_batch)]
            steps.append([self._positions(some) for some in micro])
        return steps

    def _positions(self, chosen: Sequence[int]) -> int:
        lengths = [self._length(index) for index in chosen]
        if self.layout == "padded":
            return len(lengths) * max(lengths)
        shared = common_prefix([self.rows[index].ids for index in chosen], min(lengths) - 1) if len(chosen) > 1 else 0
        return sum(lengths) - (len(chosen) - 1) * shared

    def longest(self) -> list[Batch]:
        """A step of the longest rows: what needs the most memory."""
        by_length = sorted(range(len(self.rows)), key=self._length, reverse=True)
        return self._micro_batches(by_length[: self.batch_size])

    def _length(self, index: int) -> int:
        whole = len(self.rows[index].ids) - 1  # the last id is only ever predicted
        return whole if self._max_length is None else min(whole, self._max_length)

    def _micro_batches(self, chosen: Sequence[int]) -> list[Batch]:
        return [
            self._collate(chosen[first : first + self.micro_batch]) for first in range(0, len(chosen), self.micro_batch)
        ]

    def _collate(self, chosen: Sequence[int]) -> Batch:
        rows = [self.rows[i] for i in chosen]
        if self.layout == "shared":
            return collate_shared(rows, self._max_length)
        return collate(rows, self._pad_id, self._max_length)


class BookLoader(Loader):
    """The same batches in the order in which torch's own ``DataLoader`` draws them (chapter 7.4).

    The order comes from torch's global generator, so it depends on everything drawn before: in the chapter
    each evaluation in between draws from it too. It cannot be taken up in the middle of an epoch.
    """

    def steps(self, epoch: int = 0, start: int = 0) -> Iterator[list[Batch]]:
        """The steps of an epoch; the first seeds the global generator, as the chapter does before training."""
        if start:
            raise ValueError("the book's order cannot be taken up in the middle of an epoch")
        if epoch == 0:
            torch.manual_seed(self.seed)
        yield from self.draw()

    def draw(self) -> Iterator[list[Batch]]:
        """The steps in the order drawn next."""
        chosen: Iterable[list[int]] = torch.utils.data.DataLoader(
            list(range(len(self.rows))),  # type: ignore[arg-type]
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            collate_fn=list,
        )
        for rows in chosen:
            yield self._micro_batches(rows)
