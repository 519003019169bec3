"""What every form of model file gives, and how a decoder is filled from it, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from instil.errors import ModelError
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.families.family import Family, Stored
from instil.model.frozen import FrozenLinear
from instil.model.int8 import refuse_int8
from instil.model.lora import LoraLinear
from instil.model.memory import own_memory
from instil.model.spec import DecoderSpec
from instil.model.token_rows import TokenRows


class Reader(Protocol):
    """An opened model file: its family and spec, and its tensors by the names of our table."""

    path: Path
    family: Family
    spec: DecoderSpec
    table: Mapping[str, Stored]
    notes: tuple[str, ...]  # what users are to be told of the files
    training_notes: tuple[str, ...]  # and what only those who train the model
    files: tuple[Path, ...]  # those that the weights are read from, in order

    def names(self) -> set[str]:
        """Names of the tensors, in the table's form."""

    def get(self, name: str) -> Tensor:
        """One tensor as the file has it, floating point, in memory that the caller may keep. Asked for once."""


def fill(decoder: Decoder, reader: Reader, dtype: torch.dtype, device: torch.device) -> None:
    """Give every parameter of a decoder its value from the file, one at a time.

    Raises:
        ModelError: a tensor is missing, left over, of another shape, or not finite.
    """
    known = reader.names()
    used: set[str] = set()
    seen: dict[int, torch.nn.Parameter] = {}
    for name, meta in list(decoder.named_parameters(remove_duplicate=False)):
        if id(meta) in seen:  # a tied head is the embedding
            _assign(decoder, name, seen[id(meta)])
            continue
        stored, names = _lookup(reader.table, name)
        missing = [source for source in names if source not in known]
        if missing:
            raise ModelError(f"{reader.path}: no tensor {missing[0]!r} for {name}; the file is incomplete")
        used.update(names)
        parts = [_as_ours(reader, stored, index, source) for index, source in enumerate(names)]
        rows = sum(part.shape[0] for part in parts if part.dim())
        if rows != meta.shape[0] or any(part.shape[1:] != meta.shape[1:] for part in parts):
            found = ", ".join(f"{source} {list(part.shape)}" for source, part in zip(names, parts, strict=True))
            raise ModelError(
                f"{reader.path}: {name} wants shape {list(meta.shape)}, the file has {found}; "
                "file and configuration do not belong together"
            )
        value = _joined(parts, dtype, device)
        del parts
        if not torch.stack(torch.aminmax(value)).isfinite().all():  # isfinite of all would need two copies more
            raise ModelError(f"{reader.path}: {', '.join(names)} hold values that are not finite numbers")
        seen[id(meta)] = torch.nn.Parameter(value)
        _assign(decoder, name, seen[id(meta)])
        if name == "embed.weight" and decoder.spec.tied:  # now, while little else is in memory
            used.update(_same_head(reader, known, value))
    left = {name for name in known - used if not name.endswith(reader.family.no_weights or ("\0",))}
    if left:
        raise ModelError(
            f"{reader.path}: tensors {', '.join(sorted(left)[:5])} are not part of a {reader.family.name} model "
            "as built here; loading without them would give wrong answers"
        )


def check_layers(reader: Reader) -> None:
    """Refuse a file that speaks of more layers than it can hold, before they are made.

    Raises:
        ModelError: it has fewer tensors than layers.
    """
    layers, tensors = reader.spec.layers, len(reader.names())
    if layers > tensors:
        raise ModelError(
            f"{reader.path}: speaks of {layers:,} layers, and holds {tensors:,} tensors; file and configuration do not "
            "belong together"
        )


def _joined(parts: list[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Parts under one another; a single one that is already what is wanted is taken as it is."""
    first = parts[0]
    if len(parts) == 1 and first.dtype == dtype and first.device == device and first.is_contiguous():
        return first
    rows = sum(part.shape[0] for part in parts)
    value = own_memory((rows, *first.shape[1:]), dtype, device)
    at = 0
    for part in parts:
        value[at : at + part.shape[0]].copy_(part)
        at += part.shape[0]
    return value


def _same_head(reader: Reader, known: set[str], embedding: Tensor) -> set[str]:
    """The tensors of a head that the file carries although it is said to be the embedding; they must be it."""
    heads = known & set(_lookup(reader.table, "head.weight")[1])
    for head in heads:
        if not torch.equal(reader.get(head).to(embedding), embedding):
            raise ModelError(
                f"{reader.path}: the head is said to be tied to the embedding, but {head} is another matrix"
            )
    return heads


def _as_ours(reader: Reader, stored: Stored, index: int, source: str) -> Tensor:
    part = reader.get(source)
    if not part.is_floating_point():
        raise ModelError(f"{reader.path}: tensor {source} is stored as {part.dtype}; wanted floating point")
    if stored.transposed and part.dim() == 2:
        part = part.T
    if stored.by_channel and part.dim() == 3 and part.shape[1] == 1:
        part = part.squeeze(1)
    paired, width = bool(stored.paired_heads) and stored.paired_heads[index], reader.spec.head_width
    if paired or stored.by_head:
        _check_heads(reader, source, part, 3 * width if stored.by_head else width)
    if paired:
        part = halves_from_pairs(part, width)
    if stored.by_head:
        part = parts_from_heads(part, width)
    return part - 1 if stored.one_added else part


def _check_heads(reader: Reader, source: str, part: Tensor, rows: int) -> None:
    """ModelError for a tensor that is not made of heads of so many rows."""
    if not part.dim() or part.shape[0] % rows:
        raise ModelError(
            f"{reader.path}: tensor {source} has the shape {list(part.shape)}; wanted a multiple of {rows} rows, the "
            "heads of its configuration; file and configuration do not belong together"
        )


def halves_from_pairs(rows: Tensor, head_width: int) -> Tensor:
    """Rows of a head from neighbouring rotary pairs to the two halves used here.

    >>> halves_from_pairs(torch.arange(4), 4).tolist()
    [0, 2, 1, 3]
    """
    heads = rows.shape[0] // head_width
    return rows.reshape(heads, head_width // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def pairs_from_halves(rows: Tensor, head_width: int) -> Tensor:
    """The other way round.

    >>> pairs_from_halves(torch.tensor([0, 2, 1, 3]), 4).tolist()
    [0, 1, 2, 3]
    """
    heads = rows.shape[0] // head_width
    return rows.reshape(heads, 2, head_width // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def parts_from_heads(rows: Tensor, head_width: int) -> Tensor:
    """Rows of query, key and value of each head in turn to all queries, then all keys, then all values.

    >>> parts_from_heads(torch.arange(6), 1).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    return rows.reshape(-1, 3, head_width, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def heads_from_parts(rows: Tensor, head_width: int) -> Tensor:
    """The other way round.

    >>> heads_from_parts(torch.tensor([0, 3, 1, 4, 2, 5]), 1).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    return rows.reshape(3, -1, head_width, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def _assign(decoder: Decoder, name: str, parameter: torch.nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(decoder.get_submodule(owner), leaf, parameter)


def _lookup(table: Mapping[str, Stored], name: str) -> tuple[Stored, tuple[str, ...]]:
    """The entry of a parameter, with the number of its layer put into the names."""
    parts = name.split(".")
    if parts[0] == "blocks":
        stored = table[".".join(["blocks", "{i}", *parts[2:]])]
        return stored, tuple(source.replace("{i}", parts[1]) for source in stored.names)
    stored = table[name]
    return stored, stored.names


def hub_tensors(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """The decoder's weights under the names and in the form that `transformers` uses."""
    family = FAMILIES[decoder.spec.family]
    for name, value in stored_tensors(decoder, family.hub):
        yield (name if name.startswith("lm_head") else family.prefix + name), value


def stored_tensors(decoder: Decoder, table: Mapping[str, Stored]) -> Iterator[tuple[str, Tensor]]:
    """The decoder's weights under the names and in the form of a table: views, where the form allows.

    Tensors joined in one parameter are cut apart: query, key and value by the widths of their heads,
    others evenly.
    """
    spec = decoder.spec
    refuse_int8(decoder)
    if any(isinstance(module, LoraLinear | FrozenLinear | TokenRows) for module in decoder.modules()):
        raise ModelError(
            "this decoder has adapters or weights in few bits, which are no part of a model; merge them first"
        )
    for name, value in decoder.named_parameters():
        stored, names = _lookup(table, name)
        widths = [value.shape[0] // len(names)] * len(names)
        if name.rpartition(".")[0].endswith("attention.qkv") and len(names) == 3:
            widths = [spec.heads * spec.head_width, *(spec.kv_heads * spec.head_width,) * 2]
        for source, part in zip(names, torch.split(value.detach(), widths), strict=True):
            yield source, _as_theirs(part, stored, names.index(source), spec.head_width)


def _as_theirs(part: Tensor, stored: Stored, index: int, head_width: int) -> Tensor:
    """What `_as_ours` takes back."""
    if stored.by_head:
        part = heads_from_parts(part, head_width)
    if stored.paired_heads and stored.paired_heads[index]:
        part = pairs_from_halves(part, head_width)
    if stored.by_channel:
        part = part.unsqueeze(1)
    if stored.transposed and part.dim() == 2:
        part = part.T
    return part + 1 if stored.one_added else part
