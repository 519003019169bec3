"""The header of a GGUF file, read once for all who ask: the tokenizer, the model's shape, its weights.

A header holds the whole vocabulary, string by string. The `gguf` package takes seconds over it, since each slice of the
file is a memory map of its own and each entry of a list two or three arrays, and keeps a few hundred megabytes of them;
here a list is read at once, and what is kept is what it says. A model in several files
(``NAME-00001-of-00003.gguf``, llama.cpp's ``gguf-split``) is read as one, whichever of them is given.
"""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instil.errors import ModelError

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies and how: ``shape`` as ours (rows first), ``stored_shape`` and ``dtype`` as in the file."""

    name: str
    path: Path
    kind: Any  # a gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    size: int  # bytes
    dtype: Any
    stored_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """The values of a GGUF file by their keys, and its tensors by their names."""

    values: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_gguf(path: Path) -> Header:
    """The header of this file as it is now; of all files of the model, where it is one of several.

    Raises:
        ModelError: it cannot be read, or is damaged, or others that belong to it are not beside it.
    """
    whole = _one(path)
    shards = shards_of(path)
    if len(shards) == 1:
        _check_alone(path, whole)
        return whole
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ModelError(
            f"{path}: one of {len(shards)} files of a model; not beside it: {', '.join(missing)}. Fetch all of them."
        )
    headers = [_one(shard) for shard in shards]
    for number, (shard, header) in enumerate(zip(shards, headers, strict=True)):
        said = header.values.get("split.no"), header.values.get("split.count")
        if said != (number, len(shards)):
            raise ModelError(
                f"{shard}: by its name it is file {number + 1} of {len(shards)}, by its header "
                f"split.no {said[0]} and split.count {said[1]}. Give it back its name, or fetch it again."
            )
    tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    wanted = headers[0].values.get("split.tensors.count", len(tensors))
    if len(tensors) != wanted:
        said_of_all = f"{wanted:,}" if isinstance(wanted, int) else repr(wanted)
        raise ModelError(
            f"{path}: the {len(shards)} files hold {len(tensors):,} tensors, and the model has {said_of_all}; they do "
            "not belong together. Fetch them again."
        )
    return Header(headers[0].values, tensors)


def shards_of(path: Path) -> list[Path]:
    """The files of a model of which this is one, by its name: itself alone, where it has no number."""
    found = _SHARD.fullmatch(path.name)
    if found is None or not 0 < int(found[2]) <= int(found[3]):
        return [path]
    name, _, count, ending = found.groups()
    return [path.with_name(f"{name}-{number:05d}-of-{count}{ending}") for number in range(1, int(count) + 1)]


def _check_alone(path: Path, header: Header) -> None:
    """ModelError for one of several files under a name that does not say so."""
    count = header.values.get("split.count", 1)
    if isinstance(count, int) and count > 1:
        said = header.values.get("split.no")
        number = said if isinstance(said, int) else 0
        raise ModelError(
            f"{path}: file {number + 1} of {count} of a model. Call it NAME-{number + 1:05d}-of-{count:05d}.gguf, "
            "with the others beside it."
        )


def _one(path: Path) -> Header:
    try:
        found = path.stat()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _read(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read(path: Path, size: int, changed: int) -> Header:
    del changed  # it only tells one state of the file from another
    import numpy as np
    from gguf import GGUFReader, GGUFValueType

    class Reader(GGUFReader):  # type: ignore[misc]
        """The same reader on a plain view of the file."""

        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = mapped.view(np.ndarray)

        def _get(self, offset: int, dtype: Any, count: Any = 1, *order: Any, **named: Any) -> Any:
            """What lies at a place; nothing lies beyond the end, where the package would read on without one."""
            if offset + np.dtype(dtype).itemsize * int(count) > len(self._plain):
                raise ValueError(f"byte {offset:,} is the last of what is there")
            return super()._get(offset, dtype, count, *order, **named)

        def _get_field_parts(self, orig_offs: int, raw_type: Any, *more: Any, **named: Any) -> Any:
            """A value; of a list all numbers are one part, and its texts as many views of the file."""
            if more or named or raw_type != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type, *more, **named)
            head = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
            kind, count, first = int(head[0][0]), int(head[1][0]), orig_offs + 12
            types = [GGUFValueType.ARRAY, GGUFValueType(kind)]
            if numbers := self.gguf_scalar_to_np.get(types[1]):
                whole = self._get(first, numbers, count)
                return 12 + whole.nbytes, [*head, whole], [2], types
            if kind != GGUFValueType.STRING:
                return super()._get_field_parts(orig_offs, raw_type)
            texts, end = self._texts(first, count)
            return end - orig_offs, [*head, *texts], range(2, 2 + count), types

        def _texts(self, at: int, count: int) -> tuple[list[memoryview], int]:
            """So many texts from a place on, and where they end."""
            view = memoryview(self._plain)
            length_of = struct.Struct(np.dtype(np.uint64).newbyteorder(self.byte_order).byteorder + "Q").unpack_from
            texts = []
            for _ in range(count):
                (length,) = length_of(view, at)
                at += 8
                if at + length > len(view):
                    raise ValueError(f"byte {at:,} is the last of what is there")
                texts.append(view[at : at + length])
                at += length
            return texts, at

    try:
        reader = Reader(str(path))
        values = {name: field.contents() for name, field in reader.fields.items() if field.types}
        tensors = [
            StoredTensor(
                name=tensor.name,
                path=path,
                kind=tensor.tensor_type,
                shape=tuple(int(n) for n in reversed(tensor.shape)),
                offset=int(tensor.data_offset),
                size=int(tensor.n_bytes),
                dtype=tensor.data.dtype,
                stored_shape=tensor.data.shape,
            )
            for tensor in reader.tensors
        ]
    except ValueError as error:
        if "GGMLQuantizationType" not in str(error):
            raise ModelError(f"{path}: damaged or cut off ({size:,} bytes). Fetch it again.") from error
        raise ModelError(
            f"{path}: a tensor is stored in a way that the installed gguf package does not know ({error}). "
            "Take another file of the model, such as one of Q8_0, or a newer package: pip install -U gguf"
        ) from error
    except Exception as error:  # the package raises whatever numpy raises on a damaged file
        raise ModelError(f"{path}: damaged or cut off ({size:,} bytes). Fetch it again.") from error
    return Header(values, {tensor.name: tensor for tensor in tensors})
