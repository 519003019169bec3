"""Batches in a seeded order.

The order of an epoch is a function of the seed and the epoch's number alone, so whatever else draws random numbers does
not change it, and the rest of an epoch can be had without what comes before; of very many rows it is computed step by
step (`instil.data.permutation`). A step has so many rows, or so many tokens (`instil.data.budget`). The book's order
is drawn instead, as torch's own ``DataLoader`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from instil.batches import Batch
from instil.data.budget import TokenBudget
from instil.data.collate import RowCollator
from instil.data.dealing import dealt
from instil.data.permutation import shuffled
from instil.data.subset import Lazy, Subset
from instil.errors import DataError

Layouts = Literal["padded", "shared"]
SAMPLED = 2000  # steps whose sizes stand for those of an epoch


class Collator(Protocol):
    """What makes a batch of rows, and says beforehand what it comes to."""

    def __call__(self, rows: Sequence[Any]) -> Batch:
        """The rows as one batch."""

    def positions(self, rows: Sequence[Any]) -> int:
        """How many positions such a batch computes, padding included, without making it."""

    def length(self, row: Any) -> int:
        """How many positions a row has of its own."""

    def lengths(self, rows: Sequence[Any]) -> NDArray[np.int32]:
        """`length` of each row."""

    def ids(self, row: Any) -> Iterable[int]:
        """Every token id that the row may bring into a batch."""


@runtime_checkable
class KnowsIds(Protocol):
    """Rows of which it is known what ids they have."""

    @property
    def seen_ids(self) -> Sequence[int]:
        """All of them, in order."""


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
            so that it depends on everything drawn before; the rest of an epoch is had where that generator is as it
            was when the epoch began.
        collator: how rows become a batch; made with ``pad_id``, ``max_length`` and ``layout``.
        batch_tokens: tokens of one optimizer step, in place of ``batch_size`` rows; 0 for rows. ``micro_batch`` 0
            means the whole step, and no step is incomplete.
        share: which process of how many this is: of each step's rows it gives those that are this one's, dealt by
            their lengths; it may be none.
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
        batch_tokens: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if not rows:
            raise DataError("there are no rows to make batches of")
        if batch_size < 1 or micro_batch < 0:
            raise ValueError(f"batch_size is {batch_size}, micro_batch {micro_batch}; wanted at least 1 and at least 0")
        self.rows: Sequence[Any] = rows if isinstance(rows, Lazy) else tuple(rows)
        self.batch_size = batch_size
        self.micro_batch = micro_batch or (len(rows) if batch_tokens else batch_size)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.layout = layout
        self.resumable = order == "seeded"
        self.collate = collator(pad_id, max_length, layout)
        self._pad_id = pad_id
        self._order: tuple[int, Sequence[int]] = (-1, ())
        self._given: Sequence[int] = ()  # the rows of the step that was given last
        self._left_out: set[int] = set()
        self._share = share
        self.budget: TokenBudget | None = None
        if batch_tokens:
            if order == "book":
                raise ValueError("in the book's order a step has so many rows, not tokens")
            padded = layout == "padded"
            self.budget = TokenBudget(
                self.collate.lengths(self.rows), batch_tokens, seed, padded=padded, shuffle=shuffle
            )
        if len(self) == 0:
            raise DataError(
                f"a batch of {batch_size} rows is larger than the {len(rows)} rows there are, and incomplete "
                "batches are dropped; lower train.batch_size or set train.drop_last=false"
            )

    def __len__(self) -> int:
        """Optimizer steps in one epoch."""
        if self.budget:
            return len(self.budget)
        whole, rest = divmod(len(self.rows), self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def ids(self) -> list[int]:
        """Every token id that some batch may hold, in order; more than those where the rows know of more."""
        known = self.rows.rows if isinstance(self.rows, Subset) else self.rows
        if isinstance(known, KnowsIds):
            return sorted({self._pad_id, *known.seen_ids})
        return sorted({self._pad_id}.union(*(self.collate.ids(row) for row in self.rows)))

    def order(self, epoch: int) -> Sequence[int]:
        """The rows of an epoch in the seeded order: a function of seed and epoch only."""
        if self.budget:
            return [int(row) for step in range(len(self)) for row in self.budget.rows(epoch, step)]
        if not self.shuffle:
            return range(len(self.rows))
        if self._order[0] != epoch:
            self._order = epoch, shuffled(len(self.rows), self.seed * 1_000_003 + epoch)
        return self._order[1]

    def rows_of(self, epoch: int, step: int) -> Sequence[int]:
        """The numbers of the rows of a step in the seeded order."""
        if self.budget:
            return [int(row) for row in self.budget.rows(epoch, step)]
        return self.order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]

    def spare(self) -> Batch:
        """A batch of a single row, for who has to compute something that does not count: one that is not left out."""
        return self.collate([next((row for row in self.rows if row.row not in self._left_out), self.rows[0])])

    def halve(self) -> list[Batch]:
        """The step that was given last, and all that come, in micro-batches half as large; nothing where each is one
        row.
        """
        most = max((len(rows) for rows in self._micro_rows(self._given)), default=0)
        if most < 2:
            return []
        self.micro_batch = (most + 1) // 2
        return self._micro_batches(self._given)

    def leave_out(self, rows: Iterable[int]) -> None:
        """Rows, by their numbers in the data, that are in no step any more.

        Steps are those that they were but for these rows, so one may be left without any.
        """
        self._left_out.update(rows)

    def steps(self, epoch: int = 0, start: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of each step of an epoch, from step ``start`` on.

        In the book's order the first epoch seeds the global generator, as the chapter does before training, and what is
        before ``start`` is drawn and passed over.
        """
        if self.resumable:
            for step in range(start, len(self)):
                yield self._give(self.rows_of(epoch, step))
            return
        if epoch == 0:
            torch.manual_seed(self.seed)
        yield from map(self._give, self._drawn(start))

    def draw(self) -> Iterator[list[Batch]]:
        """The steps of an evaluation: in the order that the book draws next; else those of the first epoch."""
        if self.resumable:
            yield from self.steps()
        else:
            yield from map(self._micro_batches, self._drawn())

    def _drawn(self, start: int = 0) -> Iterator[list[int]]:
        """The rows of the steps that torch's generator says now, from step ``start`` on."""
        drawn: Iterable[list[int]] = torch.utils.data.DataLoader(
            list(range(len(self.rows))),  # type: ignore[arg-type]
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            collate_fn=list,
        )
        return islice(drawn, start, None)

    def step(self, number: int) -> list[Batch]:
        """One step of the first epoch in the seeded order, whatever the order of training."""
        return self._micro_batches(self.rows_of(0, number))

    def batches(self) -> Iterator[Batch]:
        """Every micro-batch of the first epoch, one after another."""
        for step in self.steps():
            yield from step

    def batch(self, number: int) -> Batch:
        """The one micro-batch of a step, where steps have one."""
        (batch,) = self.step(number)
        return batch

    def sampled(self) -> Sequence[int]:
        """Numbers of steps that stand for an epoch: all of few, else so many evenly spread."""
        count = len(self)
        return range(count) if count <= SAMPLED else np.linspace(0, count - 1, SAMPLED, dtype=np.int64).tolist()

    def sizes(self, epoch: int = 0, steps: Iterable[int] | None = None) -> list[list[int]]:
        """Positions computed (padding included) for each micro-batch of steps, without making a batch.

        Args:
            epoch: whose steps.
            steps: their numbers; by default those that stand for the epoch.
        """
        return [
            [self.collate.positions(rows) for rows in self._micro_rows(self.rows_of(epoch, step))]
            for step in (self.sampled() if steps is None else steps)
        ]

    def longest(self) -> list[Batch]:
        """A step of the longest rows: what needs the most memory."""
        if self.budget:
            return self._micro_batches([int(row) for row in self.budget.heaviest_rows()])
        by_length = np.argsort(-self.collate.lengths(self.rows), kind="stable")
        return self._micro_batches([int(row) for row in by_length[: self.batch_size]])

    def _micro_rows(self, chosen: Sequence[int]) -> Iterator[list[Any]]:
        rows = [self.rows[index] for index in chosen]
        if self._left_out:
            rows = [row for row in rows if row.row not in self._left_out]
        own, processes = self._share
        if processes > 1:
            rows = [rows[at] for at in dealt([self.collate.length(row) for row in rows], processes)[own]]
        for first in range(0, len(rows), self.micro_batch):
            yield rows[first : first + self.micro_batch]

    def _give(self, chosen: Sequence[int]) -> list[Batch]:
        self._given = chosen
        return self._micro_batches(chosen)

    def _micro_batches(self, chosen: Sequence[int]) -> list[Batch]:
        return [self.collate(rows) for rows in self._micro_rows(chosen)]
