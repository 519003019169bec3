"""What every form of model file gives, and how a decoder is filled from it, one tensor at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from instil.errors import ModelError
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.families.family import Family, Stored
from instil.model.files.safetensors import Later
from instil.model.frozen import FrozenLinear
from instil.model.lora_layer import LoraLinear
from instil.model.memory import own_memory
from instil.model.rounded.layer import refuse_rounded
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


@runtime_checkable
class ReadsRows(Protocol):
    """A reader that can read a part of a tensor."""

    def shape(self, name: str) -> tuple[int, ...]:
        """That of a tensor."""

    def rows(self, name: str, rows: slice) -> Tensor:
        """Some rows of a tensor, in memory that the caller may keep."""


@runtime_checkable
class Maps(Protocol):
    """A reader that can leave tensors in their file."""

    def mapped(self, names: Sequence[str], dtype: torch.dtype) -> Tensor | None:
        """Tensors under one another as they lie in the file, if they do; see `SafetensorsFile.mapped`."""


def fill(decoder: Decoder, reader: Reader, dtype: torch.dtype, device: torch.device, *, mapped: bool = False) -> None:
    """Give every parameter of a decoder its value from the file, one at a time; ``mapped`` leaves there what can be.

    Raises:
        ModelError: a tensor is missing, left over, of another shape, or not finite.
    """
    check_names(decoder, reader)
    seen: dict[int, torch.nn.Parameter] = {}
    for name, meta in list(decoder.named_parameters(remove_duplicate=False)):
        if id(meta) not in seen:  # a tied head is the embedding
            value = parameter(reader, name, meta.shape, dtype, device, mapped=mapped and device.type == "cpu")
            seen[id(meta)] = torch.nn.Parameter(value)
            if name == "embed.weight" and decoder.spec.tied:  # now, while little else is in memory
                check_head(reader, value)
        _assign(decoder, name, seen[id(meta)])


def check_names(decoder: Decoder, reader: Reader) -> None:
    """Make sure that a file has what a decoder consists of, and nothing else; no tensor of it is read.

    Raises:
        ModelError: a tensor is missing or left over.
    """
    known = reader.names()
    used = _heads(reader) if decoder.spec.tied else set()
    for name, _ in decoder.named_parameters():
        names = _lookup(reader.table, name)[1]
        missing = [source for source in names if source not in known]
        if missing:
            raise ModelError(f"{reader.path}: no tensor {missing[0]!r} for {name}; the file is incomplete")
        used.update(names)
    left = {name for name in known - used if not name.endswith(reader.family.no_weights or ("\0",))}
    if left:
        raise ModelError(
            f"{reader.path}: tensors {', '.join(sorted(left)[:5])} are not part of a {reader.family.name} model "
            "as built here; loading without them would give wrong answers"
        )


def parameter(
    reader: Reader,
    name: str,
    shape: torch.Size,
    dtype: torch.dtype,
    device: torch.device,
    rows: slice | None = None,
    *,
    mapped: bool = False,
) -> Tensor:
    """The value of one of our parameters of [*shape], or some of its rows, read no further than needed where it can be.

    ``mapped``: it may be left in the file.

    Raises:
        ModelError: it is of another shape in the file, or not finite.
    """
    stored, names = _lookup(reader.table, name)
    if rows is not None and stored.plain and isinstance(reader, ReadsRows):
        _check_shape(reader, name, shape, names, [reader.shape(source) for source in names])
        value = _some_rows(reader, names, rows, shape, dtype, device)
    elif mapped and stored.plain and isinstance(reader, Maps) and (left := reader.mapped(names, dtype)) is not None:
        _check_shape(reader, name, shape, names, [tuple(left.shape)])
        value = left
    else:
        parts = [_as_ours(reader, stored, index, source) for index, source in enumerate(names)]
        _check_shape(reader, name, shape, names, [tuple(part.shape) for part in parts])
        value = _joined(parts, dtype, device)
        del parts
        if rows is not None:
            some = own_memory((len(range(*rows.indices(shape[0]))), *shape[1:]), dtype, device)
            value = some.copy_(value[rows])
    # isfinite of all would need two copies more
    if value.numel() and not torch.stack(torch.aminmax(value)).isfinite().all():
        raise ModelError(f"{reader.path}: {', '.join(names)} hold values that are not finite numbers")
    return value


def _check_shape(
    reader: Reader, name: str, wanted: torch.Size, names: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> None:
    """ModelError for tensors that do not make up a parameter of such a shape."""
    rows = sum(shape[0] for shape in shapes if shape)
    if rows != wanted[0] or any(shape[1:] != tuple(wanted[1:]) for shape in shapes):
        found = ", ".join(f"{source} {list(shape)}" for source, shape in zip(names, shapes, strict=True))
        raise ModelError(
            f"{reader.path}: {name} wants shape {list(wanted)}, the file has {found}; "
            "file and configuration do not belong together"
        )


def _some_rows(
    reader: ReadsRows, names: Sequence[str], rows: slice, shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Rows of tensors that lie under one another."""
    start, stop, _ = rows.indices(shape[0])
    value = own_memory((max(0, stop - start), *shape[1:]), dtype, device)
    at = 0  # where the tensor begins
    for source in names:
        end = at + reader.shape(source)[0]
        first, last = max(at, start), min(end, stop)
        if first < last:
            value[first - start : last - start].copy_(reader.rows(source, slice(first - at, last - at)))
        at = end
    return value


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


def _heads(reader: Reader) -> set[str]:
    """The tensors of a head that the file carries."""
    return reader.names() & set(_lookup(reader.table, "head.weight")[1])


def check_head(reader: Reader, embedding: Tensor, rows: slice = slice(None)) -> None:
    """Make sure that a head which the file carries although it is said to be the embedding is it, in these rows.

    Raises:
        ModelError: it is another matrix.
    """
    for head in _heads(reader):
        if not torch.equal(reader.get(head)[rows].to(embedding), embedding):
            raise ModelError(
                f"{reader.path}: the head is said to be tied to the embedding, but {head} is another matrix"
            )


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
    refuse_rounded(decoder)
    if any(isinstance(module, LoraLinear | FrozenLinear | TokenRows) for module in decoder.modules()):
        raise ModelError(
            "this decoder has adapters or weights in few bits, which are no part of a model; merge them first"
        )
    for name, value in decoder.named_parameters():
        yield from _stored(decoder.spec, table, name, value.detach())


def hub_tensors_later(decoder: Decoder) -> Iterator[tuple[str, Later]]:
    """The same of a plain decoder whose weights are elsewhere: each is asked for when it is written."""
    family, elsewhere = FAMILIES[decoder.spec.family], decoder.elsewhere
    assert elsewhere is not None, "its weights are here"
    latest: dict[str, list[Tensor]] = {}  # several tensors of a file may be one parameter

    def made(name: str, index: int) -> Tensor:
        if name not in latest:
            latest.clear()
            latest[name] = [part for _, part in _stored(decoder.spec, family.hub, name, elsewhere.parameter(name))]
        return latest[name][index]

    for name, value in decoder.named_parameters():
        for index, (source, part) in enumerate(_stored(decoder.spec, family.hub, name, value.detach())):
            full_name = source if source.startswith("lm_head") else family.prefix + source
            yield full_name, Later(part, functools.partial(made, name, index))


def _stored(spec: DecoderSpec, table: Mapping[str, Stored], name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A parameter as the tensors that a table makes of it."""
    stored, names = _lookup(table, name)
    widths = [value.shape[0] // len(names)] * len(names)
    if name.rpartition(".")[0].endswith("attention.qkv") and len(names) == 3:
        widths = [spec.heads * spec.head_width, *(spec.kv_heads * spec.head_width,) * 2]
    for index, (source, part) in enumerate(zip(names, torch.split(value, widths), strict=True)):
        yield source, _as_theirs(part, stored, index, spec.head_width)


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
