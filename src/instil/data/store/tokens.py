"""Encoded rows in a store: ids and masks in Arrow, and what is asked of all rows at once as columns of numbers.

Shape suffixes: R rows.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from instil.data.encoding import encode_many
from instil.data.lengths import Lengths, lengths_of
from instil.data.spelling import spelling
from instil.data.store.examples import REJECTED, ExampleStore
from instil.data.store.shards import BATCH, MAPPED, Shards, column_of, numbers_of
from instil.data.subset import Lazy
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer
from instil.data.words import prompt_of
from instil.errors import DataError
from instil.records import Encoded, Example

if TYPE_CHECKING:
    import pyarrow

    from instil.settings.options import TrainOn, Turns

SPELLINGS = ("as written", "altered", "misspelt")
COLUMNS = {  # of all rows, each in a file of its own that is mapped
    "length": np.int32,
    "targets": np.int32,
    "first_target": np.int32,
    "row": np.int64,
    "end": np.bool_,
    "straddling": np.int32,
    "left_out": np.int32,
    "spelling": np.int8,
    "prompt": np.uint64,
}


SIDE = ("length", "targets", "first_target", "row", "end", "straddling", "left_out")  # of the rejected answers, too
PAIRED = {"prompt_length": np.int32, "scored_from": np.int32, "alike": np.int32}  # of pairs: see `pairs`


class _Mapped(NamedTuple):
    """A batch as arrays that lie in the file."""

    ids: NDArray[np.int32]
    ends: NDArray[np.int64]
    trained: NDArray[np.uint8]  # bits
    prompt_length: NDArray[np.int32]
    row: NDArray[np.int64]
    weights: pyarrow.Array


def mapped_column(folder: Path, name: str) -> NDArray[Any]:
    """A column of all rows, mapped.

    Raises:
        DataError: it is gone or damaged.
    """
    path = column_path(folder, name)
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: damaged: {error}; remove its folder, and it is made anew") from error
    return found


class TokenStore(Lazy[Encoded]):
    """The encoded rows of a complete store; of pairs those with the chosen answers.

    Args:
        folder: where it lies.
        side: before the names of its columns: of pairs ``rejected.`` for the rows with these answers.

    Raises:
        DataError: a file of it is gone or damaged.
    """

    def __init__(self, folder: Path, side: str = "") -> None:
        self.folder = folder
        self._shards, self._side = Shards(folder), side
        self._batches: dict[int, _Mapped] = {}
        self.columns = {name: mapped_column(folder, f"{side}{name}") for name in (SIDE if side else COLUMNS)}

    def __len__(self) -> int:
        return self._shards.count

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return self.subset(range(len(self))[at])
        number = range(len(self))[at]
        batch, inside = self._mapped(number // BATCH), number % BATCH
        first, end = int(batch.ends[inside]), int(batch.ends[inside + 1])
        bits = np.unpackbits(batch.trained[first // 8 : -(-end // 8)], bitorder="little")[first % 8 :][: end - first]
        weights = batch.weights[inside].as_py()
        return Encoded(
            tuple(batch.ids[first:end].tolist()),
            tuple(bits.astype(bool).tolist()),
            prompt_length=int(batch.prompt_length[inside]),
            row=int(batch.row[inside]),
            straddling=int(self.columns["straddling"][number]),
            left_out=int(self.columns["left_out"][number]),
            weights=tuple(weights or ()),
        )

    @property
    def lengths(self) -> Lengths:
        """As `instil.data.lengths.lengths_of` has them."""
        columns = self.columns
        return Lengths(self, *(columns[name] for name in ("length", "targets", "first_target", "row", "end")))

    @property
    def seen_ids(self) -> Sequence[int]:
        """Every id that some row has, in order."""
        found: list[int] = self._shards.manifest["ids"]
        return found

    def _mapped(self, number: int) -> _Mapped:
        if number not in self._batches:
            if len(self._batches) >= MAPPED:
                self._batches.clear()
            batch, _ = self._shards.batch(number)
            names = ("ids", "trained", "prompt_length", "row", "weights")
            ids, trained, prompt_length, row, weights = (batch.column(f"{self._side}{name}") for name in names)
            bits = trained.values.buffers()[1]
            self._batches[number] = _Mapped(
                numbers_of(ids.values, np.int32),
                numbers_of(ids.offsets, np.int64),
                np.frombuffer(bits, np.uint8) if bits is not None else np.zeros(0, np.uint8),
                numbers_of(prompt_length, np.int32),
                numbers_of(row, np.int64),
                weights,
            )
        return self._batches[number]


def column_path(folder: Path, name: str) -> Path:
    """Where a column of all rows lies."""
    return folder / f"{name}.npy"


def write_columns(folder: Path, rows: int) -> list[int]:
    """Put the columns of all batches together, once all files of a store are there; returns all ids that rows have.

    Raises:
        DataError: they cannot be written.
    """
    seen: NDArray[np.uint8] = np.zeros(0, np.uint8)
    with ExitStack() as open_files:
        try:
            shards = Shards(folder, rows)
            kinds = _kinds_of(shards.batch(0)[0].schema.names) if rows else COLUMNS
            files = {name: open_files.enter_context(column_path(folder, name).open("wb")) for name in kinds}
            for name, file in files.items():
                header = {"descr": np.dtype(kinds[name]).str, "fortran_order": False, "shape": (rows,)}
                np.lib.format.write_array_header_1_0(file, header)
            for batch, about in shards:
                for name, file in files.items():
                    file.write(numbers_of(batch.column(name), kinds[name]).tobytes())
                bits = np.frombuffer(zlib.decompress(about["seen_ids"]), np.uint8)
                longer, shorter = (bits, seen) if len(bits) > len(seen) else (seen, bits)
                seen = longer.copy()
                seen[: len(shorter)] |= shorter
            for file in files.values():
                file.flush()
        except OSError as error:
            raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    found: list[int] = np.flatnonzero(np.unpackbits(seen, bitorder="little")).tolist()
    return found


def encoded_batches(
    examples: ExampleStore, numbers: range, template: Template, tokenizer: Tokenizer, train_on: TrainOn, turns: Turns
) -> Iterator[tuple[pyarrow.RecordBatch, dict[str, bytes]]]:
    """Batches of a store of examples as ids, with the ids that each has, as bits.

    Raises:
        UserError: as `instil.data.encoding.encode`.
    """
    for number in numbers:
        if number * BATCH >= len(examples):
            return
        yield _batch(list(examples.batch(number)), template, tokenizer, train_on, turns)


def _batch(
    examples: list[Example], template: Template, tokenizer: Tokenizer, train_on: TrainOn, turns: Turns
) -> tuple[pyarrow.RecordBatch, dict[str, bytes]]:
    import pyarrow as pa

    rows = encode_many(examples, template, tokenizer, train_on, turns)
    columns = columns_of(rows) | columns_of_texts(examples, tokenizer)
    return pa.RecordBatch.from_pydict(columns), {"seen_ids": seen_in(columns["ids"])}


def columns_of(rows: Sequence[Encoded]) -> dict[str, pyarrow.Array]:
    """Rows as columns of a batch."""
    import pyarrow as pa

    flat = array("i")
    for row in rows:
        flat.extend(row.ids)
    trained = np.frombuffer(b"".join([bytes(row.trained) for row in rows]), bool)
    lengths = lengths_of(rows)
    columns: dict[str, NDArray[Any]] = {
        "length": lengths.ids_R,
        "targets": lengths.targets_R,
        "first_target": lengths.first_target_R,
        "row": lengths.row_R,
        "end": lengths.end_R,
        "straddling": np.array([row.straddling for row in rows], np.int32),
        "left_out": np.array([row.left_out for row in rows], np.int32),
        "prompt_length": np.array([row.prompt_length for row in rows], np.int32),
    }
    weights = [row.weights or None for row in rows]
    of_weights = pa.large_list(pa.float64())
    ends = column_of(np.concatenate([[0], np.cumsum(lengths.ids_R, dtype=np.int64)]))
    return {
        "ids": pa.LargeListArray.from_arrays(ends, column_of(np.frombuffer(flat, np.int32))),
        "trained": pa.LargeListArray.from_arrays(ends, column_of(trained)),
        "weights": pa.array(weights, of_weights) if any(weights) else pa.nulls(len(rows), of_weights),
        **{name: column_of(values) for name, values in columns.items()},
    }


def columns_of_texts(examples: Sequence[Example], tokenizer: Tokenizer) -> dict[str, pyarrow.Array]:
    """What is kept of the rows' texts."""
    kinds = [SPELLINGS.index(spelling(example, tokenizer)) for example in examples]
    prompts = [prompt_number(example) for example in examples]
    return {"spelling": column_of(np.array(kinds, np.int8)), "prompt": column_of(np.array(prompts, np.uint64))}


def seen_in(*ids: pyarrow.Array) -> bytes:
    """The ids that some row of these columns has, as bits."""
    every = [numbers_of(one.values, np.int32) for one in ids]
    seen = np.zeros(max(int(one.max()) for one in every) + 1, bool)
    for one in every:
        seen[one] = True
    return zlib.compress(np.packbits(seen, bitorder="little").tobytes())


def _kinds_of(names: Sequence[str]) -> dict[str, type[np.generic]]:
    """The columns of all rows that a batch with these columns has a part of."""
    every = {**COLUMNS, **PAIRED, **{f"{REJECTED}.{name}": COLUMNS[name] for name in SIDE}}
    paired = f"{REJECTED}.ids" in names
    return every if paired else COLUMNS


def prompt_number(example: Example) -> int:
    """A number that equal prompts share, and others hardly ever: 64 bits of a hash.

    >>> prompt_number(Example("Hi.", "a", row=1)) == prompt_number(Example("Hi. ", "b", row=2))
    True
    """
    text = "\0".join(prompt_of(example)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
