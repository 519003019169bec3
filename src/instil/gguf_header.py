"""The header of a GGUF file, read once for all who ask: the tokenizer, the model's shape, its weights.

A header holds the whole vocabulary, string by string, and the `gguf` package takes seconds over it, most of
them spent on making each slice a memory map of its own.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from instil.errors import ModelError


def read_gguf(path: Path) -> Any:
    """A ``gguf.GGUFReader`` of this file as it is now.

    Raises:
        ModelError: it cannot be read, or is damaged.
    """
    found = path.stat()
    return _read(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _read(path: Path, size: int, changed: int) -> Any:
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
        return Reader(str(path))
    except Exception as error:  # the package raises whatever numpy raises on a damaged file
        raise ModelError(
            f"{path}: damaged or cut off ({size:,} bytes; {type(error).__name__}: {error}). Fetch it again."
        ) from error
