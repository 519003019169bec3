"""Adapters module by module, under the names of a form of file: what every program that reads them wants to have.

A form holds query, key and value as one matrix or as three, and some in another order of rows. Where it holds several
of our projections as one matrix, their adapters become one of the sum of their ranks, with a B that is zero outside its
blocks; where it orders rows in another way, those of B follow.

Shape suffixes: I input width · O output width of a module · R its rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from instil.errors import ModelError
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.families.family import Stored
from instil.model.files.reader import halves_from_pairs, heads_from_parts, pairs_from_halves, parts_from_heads
from instil.model.lora import HEAD, projections
from instil.model.lora_layer import TINY, LoraLinear

Place = tuple[str, slice]  # a module's name, and its rows of a layer
Layer = tuple[nn.Module, str, Stored, Any, list[Place]]


@dataclass(frozen=True, slots=True)
class ModuleAdapter:
    """The adapter of one module: to its weight is added ``scale * b @ a``.

    ``magnitude`` [O] of DoRA are the lengths of the rows of the sum.
    """

    module: str
    a_RI: Tensor
    b_OR: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """R."""
        return len(self.a_RI)


def module_adapters(decoder: Decoder, table: Mapping[str, Stored], prefix: str = "") -> Iterator[ModuleAdapter]:
    """A decoder's adapters under the names of a table of its family; ``prefix`` goes before all but the head's."""
    for _, _, stored, layer, places in stored_layers(decoder, table, prefix):
        if not isinstance(layer, LoraLinear):
            continue
        for index, (module, span) in enumerate(places):
            inside = [n for n, rows in enumerate(layer.rows) if span.start <= rows.start and rows.stop <= span.stop]
            if inside:
                yield _in_order(_adapter(module, layer, inside, span), stored, index, decoder.spec.head_width)


def stored_layers(decoder: Decoder, table: Mapping[str, Stored], prefix: str = "") -> list[Layer]:
    """Every linear layer (its owner, its name there, itself) with the modules that a table makes of it."""
    found: list[Layer] = []
    for number, block in enumerate(decoder.blocks):
        for room, owner in block.named_children():
            for leaf, layer in list(owner.named_children()):
                stored = table.get(f"blocks.{{i}}.{room}.{leaf}.weight")
                if stored is None or not hasattr(layer, "out_features"):
                    continue
                names = [prefix + name.replace("{i}", str(number)).removesuffix(".weight") for name in stored.names]
                spans = [part.rows for part in projections(decoder, owner, leaf)]
                if len(names) == 1:
                    spans = [slice(0, layer.out_features)]
                found.append((owner, leaf, stored, layer, list(zip(names, spans, strict=True))))
    stored = table["head.weight"]
    place = (stored.names[0].removesuffix(".weight"), slice(0, decoder.head.out_features))
    found.append((decoder, HEAD, stored, decoder.head, [place]))
    return found


def hub_layers(decoder: Decoder) -> list[Layer]:
    """The same with the modules of `transformers`."""
    family = FAMILIES[decoder.spec.family]
    return stored_layers(decoder, family.hub, family.prefix)


def _adapter(module: str, layer: LoraLinear, indexes: list[int], span: slice) -> ModuleAdapter:
    """Those adapters of a layer that are in a module, with its one scale.

    ``span`` are its rows of the layer; each adapter's B stands in its own rows and columns.
    """
    a = torch.cat([layer.lora_a.detach()[layer.columns[n]] for n in indexes])
    b = a.new_zeros(span.stop - span.start, len(a))
    scale, at = next((layer.scales[n] for n in indexes if layer.scales[n]), 0.0), 0
    for n in indexes:
        rows, block = layer.rows[n], layer.block(n).detach()
        if layer.scales[n] != scale:  # a module has one scale
            block = block * (layer.scales[n] / scale)
        b[rows.start - span.start : rows.stop - span.start, at : at + block.shape[1]] = block
        at += block.shape[1]
    lengths = None
    if layer.length_O is not None:
        lengths = layer.length_O[span].clone()
        for n in indexes:
            rows = layer.rows[n]
            lengths[rows.start - span.start : rows.stop - span.start] = layer.lora_magnitude[n].detach()
    return ModuleAdapter(module, a.contiguous(), b.contiguous(), scale, lengths)


def _in_order(adapter: ModuleAdapter, stored: Stored, index: int, head_width: int) -> ModuleAdapter:
    """With the rows in the order of the form."""

    def ordered(rows: Tensor) -> Tensor:
        if stored.by_head:
            rows = heads_from_parts(rows, head_width)
        if stored.paired_heads and stored.paired_heads[index]:
            rows = pairs_from_halves(rows, head_width)
        return rows.contiguous()

    lengths = None if adapter.magnitude is None else ordered(adapter.magnitude)
    return replace(adapter, b_OR=ordered(adapter.b_OR), magnitude=lengths)


@torch.no_grad()
def add_adapters(
    decoder: Decoder, found: Iterable[ModuleAdapter], table: Mapping[str, Stored], prefix: str = ""
) -> None:
    """Add adapters, as a file of this table has them, to the weights of a plain decoder.

    Raises:
        ModelError: it has no such module, or one of other widths.
    """
    places = {
        module: (layer.weight[span], stored, index)
        for _, _, stored, layer, modules in stored_layers(decoder, table, prefix)
        for index, (module, span) in enumerate(modules)
    }
    width = decoder.spec.head_width
    for one in found:
        if one.module not in places:
            raise ModelError(f"an adapter for {one.module}, which a {decoder.spec.family} model does not have")
        weight_OI, stored, index = places[one.module]
        change_OI, magnitude = one.scale * (one.b_OR @ one.a_RI), one.magnitude
        if change_OI.shape != weight_OI.shape:
            raise ModelError(
                f"an adapter for {one.module} of shape {list(change_OI.shape)}; wanted {list(weight_OI.shape)}"
            )
        if stored.paired_heads and stored.paired_heads[index]:
            change_OI = halves_from_pairs(change_OI, width)
            magnitude = None if magnitude is None else halves_from_pairs(magnitude, width)
        if stored.by_head:
            change_OI = parts_from_heads(change_OI, width)
            magnitude = None if magnitude is None else parts_from_heads(magnitude, width)
        weight_OI += change_OI.to(weight_OI)
        if magnitude is not None:
            lengths = torch.linalg.vector_norm(weight_OI, dim=1).clamp_min(TINY)
            weight_OI *= (magnitude.to(weight_OI) / lengths)[:, None]
