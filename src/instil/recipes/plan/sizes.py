"""How many numbers a model is made of, as it is trained; counted on torch's meta device, without a weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from instil.model.decoder import Decoder
from instil.model.fast.gemm import Linear
from instil.model.frozen import FrozenLinear
from instil.model.load import blank_decoder
from instil.model.lora import trained_parameters
from instil.model.lora_layer import LoraLinear
from instil.model.spec import DecoderSpec
from instil.settings.options import Settings
from instil.tasks.adapters import adapt

FLOAT = 4  # bytes; weights, gradients and moments are in float32


@dataclass(frozen=True, slots=True)
class Part:
    """Numbers of some of a model: ``all``, those ``trained``, and the ``bytes`` that all of them take as held.

    ``products`` are the weights of its linear layers, by which each token is multiplied, ``largest`` those of the
    largest one, and ``codes`` the bytes of those that are held in few bits. ``ranks`` is the width of all its adapters
    together. ``trained`` counts what has a gradient and moments: adapters of several projections are one matrix with
    zeros between the blocks, which are held like the rest.
    """

    all: int
    trained: int
    bytes: int
    codes: int
    products: int
    largest: int
    ranks: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model as it is trained.

    ``block`` is the largest of its blocks, ``blocks`` all of them, ``outside`` the rest: embedding, positions, last
    norm, head. ``parameters`` counts the model without adapters, ``adapters`` what is trained in those.
    ``largest_gradient`` is the largest parameter with a gradient, ``head_trained`` whether the head's is one.
    """

    parameters: int
    adapters: int
    block: Part
    blocks: Part
    outside: Part
    largest_gradient: int
    head_trained: bool
    few_bits: bool

    @property
    def all(self) -> int:
        """Numbers of the model and its adapters."""
        return self.blocks.all + self.outside.all

    @property
    def trained(self) -> int:
        """Numbers that have a gradient and two moments."""
        return self.blocks.trained + self.outside.trained

    @property
    def bytes(self) -> int:
        """What all weights take as they are held."""
        return self.blocks.bytes + self.outside.bytes


def sizes_of(spec: DecoderSpec, settings: Settings) -> Sizes:
    """Count a model of that shape as ``train.method`` and ``lora.*`` have it trained.

    Raises:
        SettingsError: adapters cannot be put on so (`instil.model.lora.add_lora`).
    """
    decoder = blank_decoder(spec)
    if settings.train.untie_head:
        decoder.untie()
    parameters, adapters = decoder.parameter_count, 0
    if settings.train.method == "lora":
        adapt(decoder, settings)
        adapters = trained_parameters(decoder)
    every = [_part([block]) for block in decoder.blocks]
    outside = [child for name, child in decoder.named_children() if name != "blocks"]
    trained = [parameter.numel() for parameter in decoder.parameters() if parameter.requires_grad]
    return Sizes(
        parameters=parameters,
        adapters=adapters,
        block=max(every, key=lambda part: part.all),
        blocks=_sum(every),
        outside=_part(outside),
        largest_gradient=max(trained, default=0),
        head_trained=_head_trained(decoder),
        few_bits=any(isinstance(module, FrozenLinear) for module in decoder.modules()),
    )


def _head_trained(decoder: Decoder) -> bool:
    return bool(decoder.head._parameters["weight"] is not None and decoder.head.weight.requires_grad)


def _part(modules: Iterable[nn.Module]) -> Part:
    """Count modules; what two of them share counts once."""
    together = nn.ModuleList(modules)
    parameters, buffers = list(together.parameters()), list(together.buffers())
    layers = [layer for layer in together.modules() if isinstance(layer, Linear | FrozenLinear)]
    own = [layer for layer in layers if not (isinstance(layer, LoraLinear) and layer.held is not None)]  # its held one
    products = [layer.in_features * layer.out_features for layer in own]
    adapted = [layer for layer in layers if isinstance(layer, LoraLinear)]
    frozen = [layer for layer in layers if isinstance(layer, FrozenLinear)]
    few = sum(layer.in_features * layer.out_features for layer in frozen)
    return Part(
        all=sum(parameter.numel() for parameter in parameters) + few,
        trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        bytes=sum(tensor.nbytes for tensor in (*parameters, *buffers)),
        codes=sum(layer.nbytes for layer in frozen),
        products=sum(products),
        largest=max(products, default=0),
        ranks=sum(layer.lora_a.shape[0] for layer in adapted),
    )


def _sum(parts: list[Part]) -> Part:
    return Part(
        all=sum(part.all for part in parts),
        trained=sum(part.trained for part in parts),
        bytes=sum(part.bytes for part in parts),
        codes=sum(part.codes for part in parts),
        products=sum(part.products for part in parts),
        largest=max((part.largest for part in parts), default=0),
        ranks=sum(part.ranks for part in parts),
    )
