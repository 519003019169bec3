"""GPT-2 as OpenAI published it: a TensorFlow checkpoint, read without TensorFlow (chapter 5.5).

The index file is a table in LevelDB's format: sorted keys in blocks, each key without the beginning it
shares with the one before, each block with a checksum, and a footer that says where the index of the
blocks lies. Its values are small protocol buffers that say where in the data file a tensor's bytes are.
Sources: tensorflow/core/lib/io/table_format.txt and tensorflow/core/protobuf/tensor_bundle.proto.

Nothing that the files say is believed before it is checked: lengths against what is there, bytes against
their checksums. A tensor is read into memory of its own when it is asked for. A memory map would do too,
but its pages count as this process's memory, and a model of 1.4 GB would seem to take 2.8.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instil.errors import ModelError
from instil.files import read_json_object
from instil.model.families import FAMILIES
from instil.model.families.family import NONSENSE, Checkpoint, Family, Stored
from instil.model.spec import DecoderSpec

HPARAMS = "hparams.json"
INDEX = "model.ckpt.index"
DATA = "model.ckpt.data-00000-of-00001"

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes: two block handles, padding, the magic number
TRAILER = 5  # bytes after a block: how it is compressed, and its checksum
LARGEST_INDEX = 64 * 1024**2  # bytes; that of the largest GPT-2 has twenty thousand
MOST_TENSORS = 100_000
FLOAT = 1  # tensorflow.DataType
TYPES = {1: "float32", 2: "float64", 3: "int32", 9: "int64", 14: "bfloat16", 19: "float16"}
CHUNK = 1 << 20  # bytes given to the checksum at a time


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies in the data file, and the checksum of its bytes."""

    shape: tuple[int, ...]
    offset: int
    size: int
    checksum: int


class TensorflowCheckpoint:
    """A folder of OpenAI's: ``hparams.json``, ``model.ckpt.index`` and one data file."""

    path: Path
    family: Family
    spec: DecoderSpec
    table: Mapping[str, Stored]
    notes: tuple[str, ...] = ()
    training_notes: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.files = tuple(folder / name for name in (HPARAMS, INDEX, DATA))
        self.family, form = _family()
        self.table = form.names
        missing = [name for name in (HPARAMS, INDEX, DATA) if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"{folder}: no {missing[0]} in it; OpenAI's GPT-2 folders hold {HPARAMS}, {INDEX}, {DATA}")
        self._entries = read_index(folder / INDEX)
        size, end = (folder / DATA).stat().st_size, data_size(self._entries)
        if end > size:
            raise ModelError(
                f"{folder / DATA}: {size:,} bytes, but its index speaks of {end:,}; it is cut off. Fetch it again."
            )
        self.spec = spec_of_sizes(folder, self._entries)

    def names(self) -> set[str]:
        return set(self._entries)

    def get(self, name: str) -> Tensor:
        """One tensor, its checksum verified; a convolution of width one ([1, in, out]) becomes [in, out]."""
        entry = self._entries[name]
        tensor = torch.empty(entry.shape, dtype=torch.float32)
        with (self.path / DATA).open("rb") as file:
            file.seek(entry.offset)
            found = _read_into(file, tensor.view(-1).numpy().data.cast("B"))
        if found != entry.checksum:
            raise ModelError(f"{self.path / DATA}: the bytes of {name} are damaged (wrong checksum). Fetch it again.")
        return tensor[0] if tensor.dim() == 3 and tensor.shape[0] == 1 else tensor

    def verify(self) -> None:
        """Read every tensor and compare its checksum.

        Raises:
            ModelError: one is damaged.
        """
        for name in self._entries:
            self.get(name)


def spec_of_sizes(folder: Path, entries: Mapping[str, Entry] | None = None) -> DecoderSpec:
    """The spec that ``hparams.json`` and the index of the tensors describe, whether or not the data lie beside them.

    Raises:
        ModelError: one of both cannot be read, or makes no sense.
    """
    entries = read_index(folder / INDEX) if entries is None else entries
    shapes = {name: entry.shape for name, entry in entries.items()}
    try:
        return _family()[1].spec(read_hparams(folder / HPARAMS), shapes)
    except KeyError as error:
        raise ModelError(f"{folder}: neither {HPARAMS} nor {INDEX} knows {error.args[0]!r}") from error
    except NONSENSE as error:
        raise ModelError(f"{folder / HPARAMS}: makes no sense: {error}") from error


def _family() -> tuple[Family, Checkpoint]:
    """The family that has checkpoints of TensorFlow, and their form."""
    return next((family, family.checkpoint) for family in FAMILIES.values() if family.checkpoint)


def read_index(path: Path) -> dict[str, Entry]:
    """The tensors of a checkpoint by name, from its ``.index`` file.

    Raises:
        ModelError: it is damaged, or holds what is not read here.
    """
    size = path.stat().st_size
    if size > LARGEST_INDEX:
        raise ModelError(f"{path}: {size:,} bytes; at most {LARGEST_INDEX:,} are read of an index")
    try:
        values = _table(path.read_bytes())
        _check_header(values.pop(b"", b""))
        return {key.decode(): _entry(key.decode(), value) for key, value in values.items()}
    except _NotReadHere as error:
        raise ModelError(f"{path}: {error}") from error
    except (ValueError, struct.error) as error:  # a name that is not UTF-8 is a ValueError as well
        raise ModelError(
            f"{path}: not a TensorFlow index, or damaged or cut off ({size:,} bytes): {error}. Fetch it again."
        ) from error


def data_size(entries: Mapping[str, Entry]) -> int:
    """How many bytes of the data file an index speaks of."""
    return max((entry.offset + entry.size for entry in entries.values()), default=0)


class _NotReadHere(ValueError):
    """Well formed as far as can be seen, but not of the kind that is read here."""


def read_hparams(path: Path) -> dict[str, Any]:
    """The object in an ``hparams.json``.

    Raises:
        ModelError: it is none.
    """
    return read_json_object(path, error=ModelError, problem="cannot be read as JSON")


# The table: blocks of keys and values.


def _table(raw: bytes) -> dict[bytes, bytes]:
    footer = raw[-FOOTER:]
    if len(footer) < FOOTER or struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise ValueError(f"it ends with {footer[-8:].hex() or 'nothing'}, not with {struct.pack('<Q', MAGIC).hex()}")
    _, at = _handle(footer, 0)  # of a block of statistics, which is empty here
    index, _ = _handle(footer, at)
    body = raw[:-FOOTER]
    values: dict[bytes, bytes] = {}
    last: bytes | None = None
    for _, value in _block(body, *index):
        for key, stored in _block(body, *_handle(value, 0)[0]):
            if last is not None and key <= last:
                raise ValueError(f"the name {key!r} comes after {last!r}, out of order")
            if len(values) >= MOST_TENSORS:
                raise ValueError(f"more than {MOST_TENSORS:,} names")
            values[key] = stored
            last = key
    return values


def _handle(raw: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and where the next thing begins."""
    offset, at = _varint(raw, at)
    size, at = _varint(raw, at)
    return (offset, size), at


def _block(body: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block; every key says how much of the one before it repeats."""
    end = offset + size
    if end + TRAILER > len(body):
        raise ValueError(f"a block ends at byte {end + TRAILER:,} of {len(body):,}")
    if masked_checksum(body[offset : end + 1]) != struct.unpack_from("<I", body, end + 1)[0]:
        raise ValueError(f"the block at byte {offset:,} has the wrong checksum")
    if body[end] != 0:
        kind = {1: "snappy", 2: "zlib"}.get(body[end], f"kind {body[end]}")
        raise _NotReadHere(f"its blocks are compressed ({kind}); read here are uncompressed ones, as TensorFlow writes")
    block = body[offset:end]
    restarts = struct.unpack("<I", block[-4:])[0]
    limit = len(block) - 4 - 4 * restarts
    if limit < 0:
        raise ValueError(f"the block at byte {offset:,} has {restarts:,} restarts in {size:,} bytes")
    at, key = 0, b""
    while at < limit:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + fresh + length > limit:
            raise ValueError(f"a name or value reaches out of the block at byte {offset:,}")
        key = key[:shared] + block[at : at + fresh]
        at += fresh
        yield key, block[at : at + length]
        at += length


def masked_checksum(raw: bytes) -> int:
    """CRC-32C in the disguise that LevelDB stores (a checksum of checksums would otherwise be weak).

    >>> hex(masked_checksum(b"123456789"))
    '0xc78ab0e5'
    """
    import google_crc32c

    return _mask(google_crc32c.value(raw))


def _mask(checksum: int) -> int:
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _read_into(file: Any, target: memoryview) -> int:
    """Fill memory from a file; returns the masked checksum of what came (too little gives another one)."""
    import google_crc32c

    checksum = 0
    for start in range(0, len(target), CHUNK):
        piece = target[start : start + CHUNK]
        piece[:] = file.read(len(piece)).ljust(len(piece), b"\0")
        checksum = google_crc32c.extend(checksum, bytes(piece))
    return _mask(checksum)


# The values: protocol buffers, as far as they occur here.


def _entry(name: str, raw: bytes) -> Entry:
    """A BundleEntryProto."""
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}  # dtype, shard, offset, size, checksum
    shape: tuple[int, ...] = ()
    for field, value in _fields(raw):
        if field == 2 and isinstance(value, bytes):
            shape = _shape(name, value)
        elif field in numbers and isinstance(value, int):
            numbers[field] = value
        elif field == 7:
            raise _NotReadHere(f"tensor {name} is stored in slices; read here are whole ones")
        else:
            raise ValueError(f"tensor {name} has a field {field} that is not known")
    if numbers[1] != FLOAT:
        kind = TYPES.get(numbers[1], f"type {numbers[1]}")
        raise _NotReadHere(f"tensor {name} is stored as {kind}; read here is float32")
    entry = Entry(shape, numbers[4], numbers[5], numbers[6])
    if numbers[3] or math.prod(shape) * 4 != entry.size:
        raise ValueError(
            f"tensor {name} of shape {list(shape)} takes {entry.size:,} bytes in data file {numbers[3]}; "
            f"wanted {math.prod(shape) * 4:,} in data file 0"
        )
    return entry


def _shape(name: str, raw: bytes) -> tuple[int, ...]:
    """A TensorShapeProto."""
    sizes = []
    for field, dimension in _fields(raw):
        if field != 2 or not isinstance(dimension, bytes):
            raise ValueError(f"tensor {name} has no fixed shape")
        size = dict(_fields(dimension)).get(1, 0)
        if not isinstance(size, int) or not 0 < size < 2**40:
            raise ValueError(f"tensor {name} has a side of {size!r}")
        sizes.append(size)
    return tuple(sizes)


def _check_header(raw: bytes) -> None:
    """A BundleHeaderProto: one data file, little-endian."""
    if not raw:
        raise ValueError("it has no header")
    header = dict(_fields(raw))
    if header.get(1) != 1:
        raise _NotReadHere(f"its tensors are spread over {header.get(1)!r} data files; read here is one")
    if header.get(2, 0) != 0:
        raise _NotReadHere("its numbers are big-endian; read here are little-endian ones")


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protocol buffer's fields."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(raw, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _varint(raw, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of wire type {kind}")
        if at + length > len(raw):
            raise ValueError("a field reaches out of its message")
        piece = raw[at : at + length]
        yield tag >> 3, piece if kind == 2 else int.from_bytes(piece, "little")
        at += length


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where the next thing begins.

    >>> _varint(bytes([0xAC, 0x02]), 0)
    (300, 2)
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(raw):
            raise ValueError("a number is cut off")
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
