"""A decoder whose weights stay where they are stored until somebody asks for them, a parameter or some rows at a time.

So several processes can each take their own part of a model that none of them could hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from instil.model.decoder import Decoder
from instil.model.files.reader import Reader, check_head, check_layers, check_names, parameter
from instil.model.find import find_model
from instil.model.load import blank_decoder, open_model
from instil.model.lora_layer import LoraLinear
from instil.model.resize import grow_vocabulary, grown
from instil.model.token_rows import TokenRows

EMBEDDING, HEAD = "embed.weight", "head.weight"


class InFiles:
    """The parameters of a model in its files (`instil.model.decoder.Elsewhere`).

    Args:
        path: the model's folder or file.
        reader: that opened it.
        device: of what is read.
        new: rows by which the vocabulary grows.
        dtype: of what is read.

    Raises:
        ModelError: the files lack a tensor, or have others.
    """

    def __init__(
        self, path: Path, reader: Reader, device: torch.device, new: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        self._path, self._reader, self.device, self._new, self._dtype = path, reader, device, new, dtype
        self._decoder = blank_decoder(reader.spec)
        check_names(self._decoder, reader)
        self._shapes = {name: one.shape for name, one in self._decoder.named_parameters()}
        self._asked: set[str] = set()

    def parameter(self, name: str, rows: slice | None = None) -> Tensor:
        asked = EMBEDDING if name not in self._shapes else name  # a head that was untied
        if asked in self._asked:  # of which some readers give each tensor once
            self._reader, self._asked = open_model(self._path), set()
        self._asked.add(asked)
        grows = self._new if asked in (EMBEDDING, HEAD) else 0
        value = parameter(
            self._reader, asked, self._shapes[asked], self._dtype, self.device, None if grows else rows
        )  # fmt: skip
        if name == EMBEDDING and self._decoder.spec.tied:
            check_head(self._reader, value, slice(None) if rows is None or grows else rows)
        if not grows:
            return value
        value = grown(value, grows)
        return value if rows is None else value[rows].clone()


def begins_at(decoder: Decoder, name: str) -> LoraLinear | TokenRows | None:
    """The layer with this parameter, where what it trains begins at what the whole of it says: at the lengths of its
    rows, or at some of its rows.
    """
    owner, _, leaf = name.rpartition(".")
    layer = decoder.get_submodule(owner)
    if leaf == "weight" and (isinstance(layer, TokenRows) or (isinstance(layer, LoraLinear) and layer.is_dora)):
        return layer
    return None


class Trained(Mapping[str, Tensor]):
    """What is trained of a decoder, by its names; what is elsewhere is read when it is asked for."""

    def __init__(self, decoder: Decoder) -> None:
        self._elsewhere = elsewhere = decoder.elsewhere
        self._own = {name: one.detach() for name, one in decoder.named_parameters() if one.requires_grad}
        for name, one in decoder.named_parameters():
            if elsewhere is not None and one.is_meta and (layer := begins_at(decoder, name)) is not None:
                layer.begin_at(elsewhere.parameter(name))

    def __getitem__(self, name: str) -> Tensor:
        own = self._own[name]
        return self._elsewhere.parameter(name) if self._elsewhere is not None and own.is_meta else own

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


def load_elsewhere(
    model: str | Path, *, vocab_size: int = 0, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Decoder:
    """A decoder as `instil.model.load.load_decoder` and `grow_vocabulary` make it, without its weights.

    Args:
        model: its name, folder or file.
        vocab_size: what its vocabulary grows to, where that is more than it has.
        dtype: of the weights.
        device: of what is computed with them.

    Raises:
        ModelError: there is no such model, it is damaged, or of a kind that is not read here.
    """
    path = find_model(model)
    reader = open_model(path)
    check_layers(reader)
    decoder = blank_decoder(reader.spec, dtype)
    new = max(0, vocab_size - reader.spec.vocab_size)
    decoder.elsewhere = InFiles(path, reader, torch.device(device), new, dtype)
    grow_vocabulary(decoder, reader.spec.vocab_size + new)
    decoder.notes = reader.notes
    return decoder.eval()
