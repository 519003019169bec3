"""Batches in a seeded order.

The order of an epoch is a function of the seed and the epoch's number alone, so whatever else draws random numbers does
not change it, and the rest of an epoch can be had without what comes before. (Training itself cannot be taken up in the
middle yet: the optimizer's moments go.) The book's order is drawn instead, as torch's own ``DataLoader`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

import torch

from instil.data.collate import RowCollator
from instil.errors import DataError
from instil.records import Batch

Layouts = Literal["padded", "shared"]


class Collator(Protocol):
    """What makes a batch of rows, and says beforehand what it comes to."""

    def __call__(self, rows: Sequence[Any]) -> Batch:
        """The rows as one batch."""

    def positions(self, rows: Sequence[Any]) -> int:
        """How many positions such a batch computes, padding included, without making it."""

    def length(self, row: Any) -> int:
        """How many positions a row has of its own."""

    def ids(self, row: Any) -> Iterable[int]:
        """Every token id that the row may bring into a batch."""


class Loader:
    """Optimizer steps over encoded rows; each step is a list of one or more micro-batches.

    Args:
        rows: the encoded rows.
        batch_size: rows of one optimizer step.
        pad_id: the id that fills short rows.
        max_length: at most so many positions of each row.
        micro_batch: rows computed at once; 0 means the whole step.
        shuffle: whether epochs are shuffled or in file order.
        drop_last: whether an incomplete last step is left out (the book does so).
        seed: of the order.
        layout: ``"shared"`` for batches without padding whose common beginning is computed once, or ``"padded"``.
        order: ``"seeded"``, or ``"book"``: as torch's ``DataLoader`` draws it (chapter 7.4) from the global generator,
            so that it depends on everything drawn before, and of an epoch only the whole can be had.
        collator: how rows become a batch; made with ``pad_id``, ``max_length`` and ``layout``.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        batch_size: int,
        *,
        pad_id: int,
        max_length: int | None = None,
        micro_batch: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 123,
        layout: Layouts = "shared",
        order: Literal["seeded", "book"] = "seeded",
        collator: Callable[[int, int | None, Layouts], Collator] = RowCollator,
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
        self.resumable = order == "seeded"
        self.collate = collator(pad_id, max_length, layout)
        self._pad_id = pad_id
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
        return sorted({self._pad_id}.union(*(self.collate.ids(row) for row in self.rows)))

    def order(self, epoch: int) -> list[int]:
        """The rows of an epoch in the seeded order: a function of seed and epoch only."""
        if not self.shuffle:
            return list(range(len(self.rows)))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return [int(i) for i in torch.randperm(len(self.rows), generator=generator)]

    def steps(self, epoch: int = 0, start: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of each step of an epoch, from step ``start`` on.

        In the book's order the first epoch seeds the global generator, as the chapter does before training.
        """
        if self.resumable:
            order = self.order(epoch)
            for step in range(start, len(self)):
                yield self._step_of(order, step)
            return
        if start:
            raise ValueError("in the book's order an epoch has no rest without what comes before it")
        if epoch == 0:
            torch.manual_seed(self.seed)
        yield from self.draw()

    def draw(self) -> Iterator[list[Batch]]:
        """The steps of an evaluation: in the order that the book draws next; else those of the first epoch."""
        if self.resumable:
            yield from self.steps()
            return
        drawn: Iterable[list[int]] = torch.utils.data.DataLoader(
            list(range(len(self.rows))),  # type: ignore[arg-type]
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            collate_fn=list,
        )
        for chosen in drawn:
            yield self._micro_batches(chosen)

    def step(self, number: int) -> list[Batch]:
        """One step of the first epoch in the seeded order, whatever the order of training."""
        return self._step_of(self.order(0), number)

    def batches(self) -> Iterator[Batch]:
        """Every micro-batch of the first epoch, one after another."""
        for step in self.steps():
            yield from step

    def sizes(self, epoch: int = 0) -> list[list[int]]:
        """Positions computed (padding included) for each micro-batch of each step, without making a batch."""
        order = self.order(epoch)
        return [
            [self.collate.positions(rows) for rows in self._micro_rows(self._chosen(order, step))]
            for step in range(len(self))
        ]

    def longest(self) -> list[Batch]:
        """A step of the longest rows: what needs the most memory."""
        lengths = [self.collate.length(row) for row in self.rows]
        by_length = sorted(range(len(self.rows)), key=lengths.__getitem__, reverse=True)
        return self._micro_batches(by_length[: self.batch_size])

    def _chosen(self, order: Sequence[int], step: int) -> Sequence[int]:
        return order[step * self.batch_size : (step + 1) * self.batch_size]

    def _step_of(self, order: Sequence[int], step: int) -> list[Batch]:
        return self._micro_batches(self._chosen(order, step))

    def _micro_rows(self, chosen: Sequence[int]) -> Iterator[list[Any]]:
        for first in range(0, len(chosen), self.micro_batch):
            yield [self.rows[index] for index in chosen[first : first + self.micro_batch]]

    def _micro_batches(self, chosen: Sequence[int]) -> list[Batch]:
        return [self.collate(rows) for rows in self._micro_rows(chosen)]
