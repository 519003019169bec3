"""What a family has to say: the names of its tensors and of its configuration's keys, and the shape of its decoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from instil.model.families.keys import Fields, Header, Row, refuse_unread
from instil.model.spec import DecoderSpec

Shapes = Mapping[str, tuple[int, ...]]
# What reading a configuration raises whose values are of other kinds than those of a decoder.
NONSENSE = (TypeError, ValueError, AttributeError, ArithmeticError, IndexError)


@dataclass(frozen=True, slots=True)
class Stored:
    """How a parameter of ours lies in a file: one tensor, or several joined along the first axis.

    ``transposed`` marks GPT-2's Conv1D, which keeps [in, out]; ``paired_heads`` names, for each tensor,
    whether its rows are in the order of neighbouring rotary pairs (Llama in GGUF). ``one_added`` marks the
    norms of Gemma in GGUF, which hold the scale itself and not how far it is from one. ``by_head`` marks one tensor
    in which query, key and value of the first head are followed by those of the second (GPT-NeoX), and ``by_channel``
    the Conv1d of transformers that has a group for each channel, and keeps [channels, 1, taps] (LFM2).
    """

    names: tuple[str, ...]
    transposed: bool = False
    paired_heads: tuple[bool, ...] = ()
    one_added: bool = False
    by_head: bool = False
    by_channel: bool = False

    @property
    def plain(self) -> bool:
        """Whether the rows of the file are those of the parameter, one after the other."""
        return not (self.transposed or any(self.paired_heads) or self.one_added or self.by_head or self.by_channel)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDict:
    """A state dictionary with names of its own that carries no configuration: that of the book's ``GPTModel``.

    Attributes:
        names: of its tensors.
        mark: the name by which it is known: the embedding's.
        head: the name of its head, which it has even where that is the embedding.
        derived: how the names of its buffers end.
        buffers: those of a spec.
        spec: is read off the shapes; a ModelError says why it cannot be.
        reads_back: whether that spec would be this one.
    """

    names: Mapping[str, Stored]
    mark: str
    head: str
    derived: str
    buffers: Callable[[DecoderSpec], dict[str, Tensor]]
    spec: Callable[[Shapes], DecoderSpec]
    reads_back: Callable[[DecoderSpec], bool]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint of TensorFlow: the names of its tensors, and the spec from ``hparams.json`` and their shapes."""

    names: Mapping[str, Stored]
    spec: Callable[[Mapping[str, Any], Shapes], DecoderSpec]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family. ``{i}`` in a name stands for the number of the layer.

    Attributes:
        name: ours.
        model_type: the name in transformers.
        architecture: the class there.
        spec: makes a spec of the fields that ``keys`` say, with what all of the family have in common.
        keys: of its configuration, in the order in which they are written.
        prefix: of its tensors' names in transformers.
        hub: names of tensors in transformers, without the prefix.
        gguf: names of tensors in GGUF.
        gguf_architecture: what GGUF calls it, if not by our name. Where two families share one, a file is read as the
            first of them.
        gguf_lacks: parameters that llama.cpp does not take in this family, which it calls a damaged file.
        gguf_needs: those without which it reads none, though this family can be without.
        gguf_even: whether llama.cpp takes it for granted that heads share the width evenly.
        unused: endings of tensors that hold no weights.
        renamed: names of whole tensors that older transformers gave, and those of today.
        state_dict: its form without a configuration, if it has one.
        checkpoint: its form in TensorFlow, if it has one.
    """

    name: str
    model_type: str
    architecture: str
    spec: Callable[..., DecoderSpec]
    keys: tuple[Row, ...]
    prefix: str
    hub: Mapping[str, Stored]
    gguf: Mapping[str, Stored]
    gguf_architecture: str = ""
    gguf_lacks: tuple[str, ...] = ()
    gguf_needs: tuple[str, ...] = ()
    gguf_even: bool = False
    unused: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    state_dict: StateDict | None = None
    checkpoint: Checkpoint | None = None

    def spec_from_config(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The spec that a ``config.json`` describes.

        Raises:
            KeyError: a key is missing.
            ModelError: it says something that is not implemented here.
            others of `NONSENSE`: the values cannot be those of a decoder.
        """
        understood = {key: values for row in self.keys for key, values in row.understood.items()}
        refuse_unread(self.name, config, understood)
        return self._spec(lambda row, known: row.from_config(config, known))

    def config_from_spec(self, spec: DecoderSpec) -> dict[str, Any]:
        """What ``config.json`` says of a spec.

        Raises:
            ModelError: the file has no words for it.
        """
        config = {"model_type": self.model_type, "architectures": [self.architecture]}
        for row in self.keys:
            config |= row.to_config(spec)
        return config

    def spec_from_gguf(self, values: Mapping[str, Any], shapes: Shapes, tensor: Callable[[str], Tensor]) -> DecoderSpec:
        """The spec that a GGUF file's header and the shapes of its tensors describe; errors as above.

        ``tensor`` gives one of them, for those that say something of the spec.
        """
        header = Header(self.architecture_in_gguf, values, shapes, tensor)
        return self._spec(lambda row, known: row.from_gguf(header, known))

    def header_in_gguf(self, spec: DecoderSpec) -> dict[str, Any]:
        """What GGUF says of a spec: keys of the header, and tensors that are no weights, by their names.

        Raises:
            ModelError: llama.cpp does not compute what this spec says.
        """
        said: dict[str, Any] = {}
        for row in self.keys:
            more = row.to_gguf(spec)
            shortest = min(more.get("context_length", spec.context), said.get("context_length", spec.context))
            said |= more | ({"context_length": shortest} if "context_length" in {**said, **more} else {})
        if "attention.key_length" in said:
            said.setdefault("attention.value_length", said["attention.key_length"])
        return {
            key if isinstance(value, Tensor) else f"{self.architecture_in_gguf}.{key}": value
            for key, value in said.items()
        }

    def hub_modules(self, parameter: str) -> tuple[str, ...]:
        """What transformers calls the modules that hold a parameter: ``("q_proj", "k_proj", "v_proj")``."""
        return tuple(name.split(".")[-2] for name in self.hub[parameter].names)

    @property
    def no_weights(self) -> tuple[str, ...]:
        """How names of tensors end that a file may have and that fill no parameter."""
        return (*self.unused, *(name for row in self.keys for name in row.tensors))

    @property
    def architecture_in_gguf(self) -> str:
        """What GGUF calls it."""
        return self.gguf_architecture or self.name

    @property
    def transposed(self) -> bool:
        """Whether transformers keeps its matrices the other way round."""
        return any(stored.transposed for stored in self.hub.values())

    def _spec(self, read: Callable[[Row, Fields], Mapping[str, Any]]) -> DecoderSpec:
        fields = Fields(self.keys, read)
        for row in sorted(self.keys, key=lambda row: not row.optional):  # they name what their defaults hang on
            if not row.fields or row.fields[0] not in fields:
                fields.take(read(row, fields))
        return self.spec(**fields)
