"""The header of a GGUF file, read once for all who ask: the tokenizer, the model's shape, its weights.

A header holds the whole vocabulary, string by string. The `gguf` package takes seconds over it, most of them
spent on making each slice a memory map of its own, and keeps a few hundred megabytes of small arrays; what is
kept here is what they say.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instil.errors import ModelError


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies and how: ``shape`` as ours (rows first), ``stored_shape`` and ``dtype`` as in the file."""

    name: str
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
    """The header of this file as it is now.

    Raises:
        ModelError: it cannot be read, or is damaged.
    """
    found = path.stat()
    return _read(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _read(path: Path, size: int, changed: int) -> Header:
    del changed  # it only tells one state of the file from another
    import numpy as np
    from gguf import GGUFReader

    class Reader(GGUFReader):  # type: ignore[misc]
        """The same reader on a plain view of the file."""

        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = mapped.view(np.ndarray)

    try:
        reader = Reader(str(path))
        values = {name: field.contents() for name, field in reader.fields.items() if field.types}
        tensors = [
            StoredTensor(
                name=tensor.name,
                kind=tensor.tensor_type,
                shape=tuple(int(n) for n in reversed(tensor.shape)),
                offset=int(tensor.data_offset),
                size=int(tensor.n_bytes),
                dtype=tensor.data.dtype,
                stored_shape=tensor.data.shape,
            )
            for tensor in reader.tensors
        ]
    except Exception as error:  # the package raises whatever numpy raises on a damaged file
        raise ModelError(f"{path}: damaged or cut off ({size:,} bytes). Fetch it again.") from error
    return Header(values, {tensor.name: tensor for tensor in tensors})
