"""Examples in a store: written from any iterable, and read one by one.

A store of preference pairs holds examples, too: their output is the chosen answer, and the rejected one and the
example's own stand beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from instil.data.store.shards import (
    BATCH,
    Shards,
    batches_of,
    column_of,
    numbers_of,
    shard_path,
    texts_column,
    texts_of,
    write_shard,
)
from instil.data.subset import Lazy, Numbers
from instil.records import Example, Pair, Turn

if TYPE_CHECKING:
    import pyarrow

    from instil.screen import Advance

TEXTS = ("instruction", "output", "input", "task")
COLUMNS = (*TEXTS, "row", "more")
REJECTED: Final = "rejected"  # of pairs: the other answer
WRITTEN: Final = "written"  # and the output that the row has of its own
Answer = Literal["output", "rejected", "written"]
MORE = ("history", "steps", "tools", "reasoning", "tool_calls", "weight")  # of rows that are not plain, as JSON
AT_ONCE = 1 << 16  # numbers looked at together
LOOKED_INTO = 16  # batches of which single rows are taken; as long as one is held its file stays mapped
TOGETHER = 4  # rows of a batch from which on they are taken out of it together


class ExampleStore(Lazy[Example]):
    """The examples of a complete store.

    Args:
        folder: where it lies.
        answer: what they have as output: of pairs the chosen answer, unless another is asked for.
    """

    def __init__(self, folder: Path, answer: Answer = "output") -> None:
        self.folder = folder
        self.shards = Shards(folder)
        self._names = tuple(answer if name == "output" else name for name in COLUMNS)
        self._columns: dict[int, list[Any]] = {}  # of batches that were looked at

    def __len__(self) -> int:
        return self.shards.count

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return self.subset(range(len(self))[at])
        number, inside = divmod(range(len(self))[at], BATCH)
        if number not in self._columns:
            if len(self._columns) >= LOOKED_INTO:
                self._columns.clear()
            batch, _ = self.shards.batch(number)
            self._columns[number] = [batch.column(name) for name in self._names]
        return _example(*(column[inside].as_py() for column in self._columns[number]))

    def __iter__(self) -> Iterator[Example]:
        for number in range(-(-len(self) // BATCH)):
            yield from self.batch(number)

    def some(self, numbers: Numbers) -> Iterator[Example]:
        """As `Lazy.some`; those of a batch that follow one another are taken out of it together."""
        for first in range(0, len(numbers), AT_ONCE):
            window = np.asarray(numbers[first : first + AT_ONCE], dtype=np.int64)
            batch = window // BATCH
            for own in np.split(window, np.flatnonzero(batch[1:] != batch[:-1]) + 1):
                if len(own) < TOGETHER:
                    yield from (self[int(number)] for number in own)
                else:
                    batch_of, _ = self.shards.batch(int(own[0]) // BATCH)
                    yield from self._examples(batch_of.take(column_of(own % BATCH)))

    @property
    def row_numbers(self) -> NDArray[np.int64]:
        """The rows' numbers in their file."""
        return np.concatenate(
            [np.zeros(0, np.int64), *(numbers_of(batch.column("row"), np.int64).copy() for batch, _ in self.shards)]
        )

    def batch(self, number: int) -> Iterator[Example]:
        """The examples of one batch."""
        return self._examples(self.shards.batch(number)[0])

    @property
    def paired(self) -> bool:
        """Whether these are preference pairs, of which each has another answer."""
        return bool(len(self)) and REJECTED in self.shards.batch(0)[0].schema.names

    def _examples(self, batch: pyarrow.RecordBatch) -> Iterator[Example]:
        *texts, row, more = (batch.column(name) for name in self._names)
        return map(_example, *map(texts_of, texts), numbers_of(row, np.int64).tolist(), texts_of(more))


def write_examples(folder: Path, examples: Iterable[Example | Pair], advance: Advance) -> int:
    """Write the files of a store that are not there yet; returns how many rows there are.

    Rows whose files are there are only passed over.

    Raises:
        DataError: a file cannot be written; and what the examples raise.
    """
    rows = iter(examples)
    count = shard = 0
    while True:
        path = shard_path(folder, shard)
        first = list(islice(rows, BATCH))
        if not first:
            return count
        sizes: list[int] = []

        def batches(first: list[Any] = first, sizes: list[int] = sizes, shard: int = shard) -> Iterator[Any]:
            some = first
            for number in batches_of(shard):
                if number > batches_of(shard).start:
                    some = list(islice(rows, BATCH))
                if not some:
                    return
                sizes.append(len(some))
                yield some
                advance(steps=len(some))

        if path.is_file():
            for _ in batches():
                pass
        else:
            write_shard(path, ((_batch(some), {}) for some in batches()))
        count += sum(sizes)
        shard += 1


def _batch(rows: list[Example | Pair]) -> pyarrow.RecordBatch:
    import pyarrow as pa

    pairs = [row for row in rows if isinstance(row, Pair)]
    examples = [replace(row.example, output=row.chosen) if isinstance(row, Pair) else row for row in rows]
    columns = {name: texts_column([getattr(row, name) for row in examples]) for name in TEXTS}
    more = [None if row.plain else json.dumps({name: asdict(row)[name] for name in MORE}) for row in examples]
    columns["more"] = texts_column(more)
    columns["row"] = column_of(np.fromiter((row.row for row in examples), np.int64, len(examples)))
    if pairs:  # then all of them are
        columns[REJECTED] = texts_column([pair.rejected for pair in pairs])
        columns[WRITTEN] = texts_column([pair.example.output for pair in pairs])
    return pa.RecordBatch.from_pydict(columns)


def _example(instruction: str, output: str, about: str, task: str, row: int, more: str | None) -> Example:
    if more is None:
        return Example(instruction, output, about, task, row)
    values = json.loads(more)
    for turns in ("history", "steps"):
        values[turns] = tuple(Turn(**turn) for turn in values[turns])
    return Example(instruction, output, about, task, row, **values)
