"""A GGUF file, or several of one model, as a source of weights; quantised tensors through the `gguf` package.

Before anything is allocated the header is held against the file: every tensor must lie inside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instil.errors import ModelError
from instil.gguf_header import read_gguf, shards_of
from instil.model.families import FAMILIES
from instil.model.families.closed import what_is_missing
from instil.model.families.family import NONSENSE, Family, Stored
from instil.model.spec import DecoderSpec

MAGIC = b"GGUF"
SHORT_LIST = 512  # a value for every layer is shorter than that, a vocabulary longer


class GgufFile:
    """An opened GGUF file of a supported architecture."""

    path: Path
    family: Family
    spec: DecoderSpec
    table: Mapping[str, Stored]
    notes: tuple[str, ...] = ()
    training_notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = tuple(shards_of(path))
        with path.open("rb") as file:
            start = file.read(4)
        if start != MAGIC:
            raise ModelError(
                f"{path}: not a GGUF file (it starts with {start!r}, not {MAGIC!r}); wanted a GGUF file "
                "or a folder of transformers"
            )
        header = read_gguf(path)
        self._tensors = header.tensors
        self._meta = _scalars(header.values)
        self._check_extent()
        self.family = self._family()
        self.table = self.family.gguf
        shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        try:
            self.spec = self.family.spec_from_gguf(self._meta, shapes, self.get)
        except KeyError as error:
            raise ModelError(f"{path}: its header lacks {error.args[0]!r}") from error
        except NONSENSE as error:
            raise ModelError(f"{path}: its header makes no sense: {error}") from error

    def names(self) -> set[str]:
        return set(self._tensors)

    @property
    def quantised(self) -> bool:
        """Whether any tensor is stored in blocks of few bits, not number by number."""
        from gguf import GGML_QUANT_SIZES

        return any(GGML_QUANT_SIZES[tensor.kind][0] > 1 for tensor in self._tensors.values())

    def kinds(self) -> dict[str, int]:
        """How many values are stored in which way."""
        found: Counter[str] = Counter()
        for tensor in self._tensors.values():
            found[tensor.kind.name.lower()] += math.prod(tensor.shape)
        return found

    def get(self, name: str) -> Tensor:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        kind = tensor.kind.name
        try:  # read here, not through the package's memory map: its pages would count as our memory
            stored = np.fromfile(tensor.path, tensor.dtype, math.prod(tensor.stored_shape), offset=tensor.offset)
            values = dequantize(stored.reshape(tensor.stored_shape), tensor.kind)
        except NotImplementedError as error:
            raise ModelError(
                f"{self.path}: tensor {name} is stored as {kind}; read here: {', '.join(readable())}"
            ) from error
        except ValueError as error:
            raise ModelError(f"{self.path}: tensor {name} ({kind}) cannot be dequantised: {error}") from error
        return torch.from_numpy(values.reshape(tensor.shape))

    def _family(self) -> Family:
        architecture = self._meta.get("general.architecture")
        families: dict[str, Family] = {}
        for family in FAMILIES.values():
            families.setdefault(family.architecture_in_gguf, family)
        if not isinstance(architecture, str) or architecture not in families:
            raise ModelError(
                f"{self.path}: its architecture is {architecture!r}; read here: {', '.join(families)}"
                f"{what_is_missing(str(architecture))}"
            )
        return families[architecture]

    def _check_extent(self) -> None:
        sizes = {path: path.stat().st_size for path in {tensor.path for tensor in self._tensors.values()}}
        for tensor in self._tensors.values():
            end, size = tensor.offset + tensor.size, sizes[tensor.path]
            if end > size:
                raise ModelError(
                    f"{tensor.path}: tensor {tensor.name} ends at byte {end:,} of a file of {size:,}; "
                    "the file is cut off, fetch it again"
                )


def readable() -> list[str]:
    """The kinds of tensors that the installed `gguf` package dequantises: a block of each is tried."""
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    found = []
    for kind, (_, size) in GGML_QUANT_SIZES.items():
        try:
            dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind.name)
    return found


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """The header's single values and short lists; the vocabulary's long ones are the tokenizer's business."""
    return {name: value for name, value in values.items() if not isinstance(value, list) or len(value) <= SHORT_LIST}
