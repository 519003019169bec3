"""A store's files: which rows lie in which, written whole, and read without copying.

Rows lie in batches of `BATCH`. The first files hold one batch each and later ones more, so that a store of few rows
is made of several files, by several processes, and a store of many has not too many.

Shape suffixes: R rows of a batch.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from instil.errors import DataError
from instil.files import read_json_object, unfinished_of, write_json

if TYPE_CHECKING:
    import pyarrow

BATCH = 1024
FILES = 16  # of so many batches each as `BATCHES` says; those that come after them have as many as the last
BATCHES = (1, 8, 64)
MAPPED = 64  # batches looked at until all files are let go of: what was seen of them would count as this process's
MANIFEST = "store.json"
FORMAT = 1
INSTALL = "pip install 'instil[data]'"


def has_arrow() -> bool:
    """Whether pyarrow is installed, without which there are no stores."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return False
    return True


def batches_of(shard: int) -> range:
    """The batches that lie in a file.

    >>> batches_of(0), batches_of(15), batches_of(16), batches_of(32)
    (range(0, 1), range(15, 16), range(16, 24), range(144, 208))
    """
    level = min(shard // FILES, len(BATCHES) - 1)
    first = FILES * sum(BATCHES[:level]) + (shard - FILES * level) * BATCHES[level]
    return range(first, first + BATCHES[level])


def shard_of(batch: int) -> int:
    """The file that a batch lies in.

    >>> all(batch in batches_of(shard_of(batch)) for batch in range(1000))
    True
    """
    starts = [batches_of(FILES * level).start for level in range(len(BATCHES))]
    level = bisect.bisect_right(starts, batch) - 1
    return FILES * level + (batch - starts[level]) // BATCHES[level]


def shard_path(folder: Path, shard: int) -> Path:
    """Where a file lies."""
    return folder / f"{shard:05}.arrow"


def write_shard(path: Path, batches: Iterable[tuple[pyarrow.RecordBatch, Mapping[str, bytes]]]) -> None:
    """Write batches, each with what is to be known of it, as one file: complete under its name, or not there.

    Raises:
        DataError: it cannot be written.
    """
    import pyarrow as pa

    # A worker whose parent was killed may be at the same file still.
    unfinished = unfinished_of(path.with_name(f"{path.name}.{os.getpid()}"))
    try:
        writer = None
        with unfinished.open("wb") as file:
            for batch, about in batches:
                writer = writer or pa.ipc.new_file(file, batch.schema)
                writer.write_batch(batch, custom_metadata=dict(about))
            if writer is not None:
                writer.close()
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise DataError(
            f"{path}: cannot be written: {error.strerror or error}; INSTIL_HOME names another folder to keep rows in"
        ) from error


class Shards:
    """The batches of a store, mapped when they are first asked for.

    Args:
        folder: where it lies.
        rows: how many there are, where its manifest does not say so yet.

    Raises:
        DataError: a file is gone, or not as long as it was written.
    """

    def __init__(self, folder: Path, rows: int | None = None) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = {} if rows is not None else read_manifest(folder)
        self.count = int(self.manifest["rows"]) if rows is None else rows
        self._open: dict[int, Any] = {}
        self._seen = 0
        for shard, size in enumerate(self.manifest.get("sizes", ())):
            _check_size(shard_path(folder, shard), int(size))

    def __iter__(self) -> Iterator[tuple[pyarrow.RecordBatch, dict[str, bytes]]]:
        for batch in range(-(-self.count // BATCH)):
            yield self.batch(batch)

    def batch(self, number: int) -> tuple[pyarrow.RecordBatch, dict[str, bytes]]:
        """A batch, and what was written of it.

        Raises:
            DataError: its file is gone or damaged.
        """
        import pyarrow as pa

        self._seen += 1
        if self._seen > MAPPED:
            self._open.clear()
            self._seen = 1
        shard = shard_of(number)
        path = shard_path(self.folder, shard)
        try:
            if shard not in self._open:
                self._open[shard] = pa.ipc.open_file(pa.memory_map(str(path)))
            found = self._open[shard].get_batch_with_custom_metadata(number - batches_of(shard).start)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: damaged: {error}; remove its folder, and it is made anew") from error
        about = found.custom_metadata or {}
        return found.batch, {key.decode(): value for key, value in about.items()}


# Arrow's own ways from and to columns import pandas where that is installed, which takes as long as thousands of rows.


def numbers_of(column: pyarrow.Array, kind: type[np.generic]) -> NDArray[Any]:
    """A column without gaps as it lies in its file."""
    if kind is np.bool_:
        bits = np.frombuffer(column.buffers()[1] or b"", np.uint8)
        return np.unpackbits(bits, bitorder="little").view(bool)[column.offset : column.offset + len(column)]
    return np.frombuffer(column.buffers()[1] or b"", kind)[column.offset : column.offset + len(column)]


def texts_of(column: pyarrow.Array) -> list[str] | list[None] | list[str | None]:
    """The texts of a column; None are gaps."""
    if column.null_count == len(column):
        return [None] * len(column)
    if column.null_count:
        found: list[str | None] = column.to_pylist()
        return found
    _, ends, held = column.buffers()
    borders = np.frombuffer(ends, np.int64)[column.offset : column.offset + len(column) + 1]
    written = memoryview(held)[borders[0] : borders[-1]].tobytes()
    places = itertools.pairwise((borders - borders[0]).tolist())
    if written.isascii():
        whole = written.decode("ascii")
        return [whole[first:end] for first, end in places]
    return [written[first:end].decode() for first, end in places]


def column_of(values: NDArray[Any]) -> pyarrow.Array:
    """Numbers, or yes and no, as a column."""
    import pyarrow as pa

    held = np.packbits(values, bitorder="little") if values.dtype == bool else np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(held)])


def texts_column(texts: Sequence[str | None]) -> pyarrow.Array:
    """Texts as a column; None is a gap."""
    import pyarrow as pa

    written = [b"" if text is None else text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, written)], dtype=np.int64)
    there = np.packbits([text is not None for text in texts], bitorder="little") if None in texts else None
    gaps = None if there is None else pa.py_buffer(there)
    return pa.Array.from_buffers(
        pa.large_string(), len(texts), [gaps, pa.py_buffer(ends), pa.py_buffer(b"".join(written))]
    )


def is_complete(folder: Path) -> bool:
    """Whether a store is there, and can be read by this version."""
    return (folder / MANIFEST).is_file() and read_manifest(folder).get("format") == FORMAT


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a store says of itself.

    Raises:
        DataError: it is absent or damaged.
    """
    return read_json_object(folder / MANIFEST, advice="; remove its folder, and it is made anew")


def write_manifest(folder: Path, rows: int, **about: object) -> None:
    """The last file of a store, without which it is not complete."""
    count = shard_of((rows - 1) // BATCH) + 1 if rows else 0
    sizes = [shard_path(folder, shard).stat().st_size for shard in range(count)]
    write_json(folder / MANIFEST, {"format": FORMAT, "rows": rows, "sizes": sizes, **about}, error=DataError)


def _check_size(path: Path, wanted: int) -> None:
    """Tell of a damaged file before anything is begun with it."""
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: gone: {error.strerror or error}; remove its folder, and it is made anew") from error
    if found != wanted:
        raise DataError(
            f"{path}: damaged: it has {found:,} bytes, and had {wanted:,} when it was written; remove its folder, and "
            "it is made anew"
        )


def size_of(*folders: Path) -> int:
    """Bytes that stores take on disk."""
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
