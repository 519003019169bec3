"""One safetensors file, read tensor by tensor into memory of its own, and written tensor by tensor.

The `safetensors` package checks the file; the bytes are read here, because its own tensors lie in a memory
map, and the pages of a map count as memory of this process: a model of 1.4 GB would seem to take 2.8, where its tensors
are copied. What needs no copy can be left in the file (`SafetensorsFile.mapped`). They are written here, because the
package wants all tensors at once in the form they have in the file, and GPT-2's lie the other way round: a second model
in memory. Format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instil.errors import ModelError
from instil.model.memory import own_memory

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
PIECE = 1 << 20  # values that are compared at once
LINE = 64  # bytes that a processor reads together; numbers that begin elsewhere are read more slowly


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: its type by the format's name, its shape, its first byte and its bytes."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Later:
    """A tensor that is made when it is written; ``like`` has its type and shape, and no memory (``meta`` device)."""

    like: Tensor
    make: Callable[[], Tensor]


class SafetensorsFile:
    """An opened file; nothing but its header has been read.

    Raises:
        ModelError: it is damaged or cut off.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            file = path.open("rb")  # first: the package calls a file missing that it must not read
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
        with file:
            try:
                with safe_open(str(path), framework="np"):  # header, offsets and size of the file fit together
                    pass
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path}: damaged or cut off: {error}. Fetch it again.") from error
            self._map: mmap.mmap | None = None
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        self._entries = {
            name: Entry(
                kind=stored["dtype"],
                shape=tuple(stored["shape"]),
                offset=8 + length + stored["data_offsets"][0],
                size=stored["data_offsets"][1] - stored["data_offsets"][0],
            )
            for name, stored in header.items()
            if name != "__metadata__"
        }

    def names(self) -> set[str]:
        """Names of the tensors as the file has them."""
        return set(self._entries)

    def get(self, name: str) -> Tensor:
        """One tensor, in memory that nobody else holds.

        Raises:
            ModelError: it is not of floating point, or the file has become shorter.
        """
        entry = self.entry(name)
        return self._read(name, entry.shape, entry.offset)

    def rows(self, name: str, rows: slice) -> Tensor:
        """Some rows of a tensor; nothing else of it is read. Errors as those of `get`."""
        entry = self.entry(name)
        start, stop, _ = rows.indices(entry.shape[0])
        each = math.prod(entry.shape[1:]) * TYPES[entry.kind].itemsize
        return self._read(name, (stop - start, *entry.shape[1:]), entry.offset + start * each)

    def mapped(self, names: Sequence[str], dtype: torch.dtype) -> Tensor | None:
        """Tensors under one another as they lie in the file, read when they are used; what is written stays in memory.

        None where they are of another type, do not follow one another, or begin amid a line of the processor's.

        Raises:
            ModelError: the file has become shorter, or cannot be mapped.
        """
        entries = [self.entry(name) for name in names]
        first, at = entries[0], entries[0].offset
        for one in entries:
            if TYPES[one.kind] != dtype or one.offset != at or not one.shape or one.shape[1:] != first.shape[1:]:
                return None
            at += one.size
        if first.offset % LINE or at == first.offset:
            return None
        if self._map is None:
            try:
                with self.path.open("rb") as file:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise ModelError(f"{self.path}: cannot be read: {error}") from error
        if at > len(self._map):
            raise ModelError(f"{self.path}: tensor {names[-1]} is cut off. Fetch it again.")
        count = (at - first.offset) // dtype.itemsize
        flat = torch.frombuffer(self._map, dtype=dtype, count=count, offset=first.offset)
        return flat.view(sum(one.shape[0] for one in entries), *first.shape[1:])

    def entry(self, name: str) -> Entry:
        """Type, shape and place of a tensor.

        Raises:
            ModelError: it is not of floating point.
        """
        entry = self._entries[name]
        if entry.kind not in TYPES:
            raise ModelError(f"{self.path}: tensor {name} is stored as {entry.kind}; wanted floating point")
        return entry

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor's values in their order, some at a time; errors as those of `get`."""
        entry = self.entry(name)
        width, count = TYPES[entry.kind].itemsize, math.prod(entry.shape)
        for at in range(0, count, PIECE):
            yield self._read(name, (min(PIECE, count - at),), entry.offset + at * width)

    def _read(self, name: str, shape: tuple[int, ...], offset: int) -> Tensor:
        tensor = own_memory(shape, TYPES[self._entries[name].kind])
        if tensor.numel():
            target = tensor.view(-1).view(torch.uint8).numpy().data
            with self.path.open("rb", buffering=0) as file:
                file.seek(offset)
                while target:  # one call reads 2 GB at most
                    read = file.readinto(target)
                    if not read:
                        raise ModelError(f"{self.path}: tensor {name} is cut off. Fetch it again.")
                    target = target[read:]
        return tensor


def same(one: SafetensorsFile, first: str, other: SafetensorsFile, second: str) -> bool:
    """Whether two tensors have the same shape and values, whatever their types; read no further than they are."""
    if one.entry(first).shape != other.entry(second).shape:
        return False
    pairs = zip(one.pieces(first), other.pieces(second), strict=True)
    return all(torch.equal(a.double(), b.double()) for a, b in pairs)


def write_safetensors(path: Path, tensors: Iterable[tuple[str, Tensor | Later]]) -> None:
    """Write tensors, which may be views of any strides on any device; beside them one at a time is in memory.

    Those that are to be made are made in the order in which they are given, where all are of one type.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "one.safetensors"
    >>> write_safetensors(path, [("a", torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T)])
    >>> SafetensorsFile(path).get("a").tolist()
    [[1.0, 3.0], [2.0, 4.0]]

    Raises:
        ValueError: a name comes twice.
        OSError: it cannot be written.
    """
    pieces = safetensors_pieces(tensors)
    first = next(pieces)  # what is wrong with the names is found before there is a file
    try:
        with path.open("wb") as file:
            file.write(first)
            for piece in pieces:
                file.write(piece)
    except OSError as error:  # of a full disk it does not say which file
        error.filename = error.filename or str(path)
        raise


def described(tensor: Tensor | Later) -> Tensor:
    """What has the type and shape of a tensor."""
    return tensor.like if isinstance(tensor, Later) else tensor


def safetensors_pieces(tensors: Iterable[tuple[str, Tensor | Later]]) -> Iterator[bytes | memoryview]:
    """What `write_safetensors` writes, piece by piece: what describes the tensors, then each of them.

    Raises:
        ValueError: a name comes twice.
    """
    names = {kind: name for name, kind in TYPES.items()}
    ordered = sorted(
        tensors, key=lambda one: -described(one[1]).dtype.itemsize
    )  # so that each begins at a multiple of its type
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, given in ordered:
        if name in header:
            raise ValueError(f"two tensors are named {name!r}")
        tensor = described(given)
        size = tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % LINE)
    yield struct.pack("<Q", len(text)) + text
    for _, given in ordered:
        made = given.make() if isinstance(given, Later) else given
        flat = made.detach().contiguous().cpu().reshape(-1)
        yield flat.view(torch.uint8).numpy().data
