"""A model folder of `transformers`: ``config.json`` and safetensors files, read and written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instil.errors import ModelError
from instil.files import json_text, read_json_object
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.families.closed import what_is_missing
from instil.model.families.family import NONSENSE, Family, Stored
from instil.model.families.keys import dropped
from instil.model.files.names import plain_names
from instil.model.files.reader import hub_tensors, hub_tensors_later
from instil.model.files.safetensors import same
from instil.model.files.shards import NO_JSON, open_shards, weight_files, write_shards
from instil.model.spec import DecoderSpec


class SafetensorsFolder:
    """A folder as ``save_pretrained`` writes it: ``config.json`` and one or more safetensors files."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        config = _read_config(folder)
        self.family, self.spec = _described(folder, config)
        self.table = self.family.hub
        files = weight_files(folder)
        self.files = tuple(folder / name for name in files.names)
        self._files, inexact = open_shards(folder, files)
        heads = Stored((*self.table["head.weight"].names, *self.family.renamed))  # of older transformers, too
        where, problem = plain_names(self._files, {**self.table, "head.weight": heads}, self.family.prefix)
        if problem:
            raise ModelError(f"{folder}: {problem}")
        self._where = {self.family.renamed.get(name, name): stored for name, stored in where.items()}
        self.training_notes = tuple(_dropout(folder, config))
        self.notes = (*files.notes, *inexact, *self._head())

    def names(self) -> set[str]:
        return set(self._where)

    def kinds(self) -> dict[str, int]:
        """How many values are stored in which way."""
        found: Counter[str] = Counter()
        for stored in self._where.values():
            entry = self._files[stored].entry(stored)
            found[entry.kind.lower()] += math.prod(entry.shape)
        return found

    def get(self, name: str) -> Tensor:
        full_name = self._where[name]
        return self._files[full_name].get(full_name)

    def shape(self, name: str) -> tuple[int, ...]:
        full_name = self._where[name]
        return self._files[full_name].entry(full_name).shape

    def rows(self, name: str, rows: slice) -> Tensor:
        full_name = self._where[name]
        return self._files[full_name].rows(full_name, rows)

    def mapped(self, names: Sequence[str], dtype: torch.dtype) -> Tensor | None:
        full_names = [self._where[name] for name in names]
        file = self._files[full_names[0]]
        if any(self._files[name] is not file for name in full_names):
            return None
        return file.mapped(full_names, dtype)

    def _head(self) -> Iterator[str]:
        """Where the configuration ties head and embedding, look at what the files have, as transformers does.

        One of the two is both; of two that differ each is what it is.
        """
        (head,), (embedding,) = self.table["head.weight"].names, self.table["embed.weight"].names
        if not self.spec.tied or head not in self._where:
            return
        if embedding not in self._where:
            self._where[embedding] = self._where.pop(head)
        elif not self._equal(head, embedding):
            self.spec = replace(self.spec, tied=False)
            yield (
                f"{self.path}: config.json ties the head to the embedding, but the file holds two that differ; each is "
                "read as it is, as transformers does"
            )

    def _equal(self, one: str, other: str) -> bool:
        """Whether two tensors are the same, read in pieces: they may be the largest, and mostly differ at once."""
        a, b = self._where[one], self._where[other]
        return same(self._files[a], a, self._files[b], b)


def spec_of_config(folder: Path) -> DecoderSpec:
    """The spec that a folder's ``config.json`` describes, whether or not weights lie beside it.

    Raises:
        ModelError: there is none, it is damaged, or it is of a kind that is not read here.
    """
    return _described(folder, _read_config(folder))[1]


def save_decoder(
    decoder: Decoder, folder: Path, *, eos_id: int, stop_ids: Collection[int] = (), begin_ids: Sequence[int] = ()
) -> None:
    """Write ``config.json``, ``generation_config.json`` and ``model.safetensors`` (shards of 5 GB if it is larger).

    Args:
        decoder: its weights are written in the precision they have.
        folder: must exist.
        eos_id: the end token it was tuned to say.
        stop_ids: other ids that end an answer; they stand after ``eos_id`` in the generation settings.
        begin_ids: what every text begins with.
    """
    family = FAMILIES[decoder.spec.family]
    dtype = str(decoder.embed.weight.dtype).removeprefix("torch.")
    config = {
        **family.config_from_spec(decoder.spec),
        "dtype": dtype,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        "bos_token_id": begin_ids[0] if begin_ids else None,
        "use_cache": True,
    }
    others = sorted(set(stop_ids) - {eos_id})
    generation = {"eos_token_id": [eos_id, *others] if others else eos_id, "pad_token_id": eos_id, "do_sample": False}
    if begin_ids:
        generation["bos_token_id"] = begin_ids[0]
    for name, value in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json_text(value, ascii_only=True), encoding="utf-8")
    write_shards(folder, hub_tensors(decoder) if decoder.elsewhere is None else hub_tensors_later(decoder))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        more = ": these are adapters of PEFT; give their base model, and them as its adapter" if adapter else ""
        raise ModelError(f"{folder}: no config.json in it, so it is not a model folder of transformers{more}")
    return read_json_object(path, error=ModelError, problem=NO_JSON)


def _described(folder: Path, config: dict[str, Any]) -> tuple[Family, DecoderSpec]:
    """Family and spec of a configuration."""
    kind = config.get("model_type")
    families = {family.model_type: family for family in FAMILIES.values()}
    if not isinstance(kind, str) or kind not in families:
        more = " (the config describes a vision tower, too, and only text models are read)"
        raise ModelError(
            f"{folder}: config.json says model_type {kind!r}{more if 'vision_config' in config else ''}; "
            f"read here: {', '.join(families)}{what_is_missing(str(kind))}"
        )
    try:
        return families[kind], families[kind].spec_from_config(config)
    except KeyError as error:
        raise ModelError(f"{folder}: config.json lacks {error.args[0]!r}") from error
    except NONSENSE as error:
        raise ModelError(f"{folder}: config.json makes no sense: {error}") from error


def _dropout(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    """That what a configuration would drop in training is kept here."""
    if found := dropped(config):
        shown = ", ".join(f"{key}={value}" for key, value in found.items())
        yield f"{folder / 'config.json'} asks for dropout ({shown}), which is ignored: training here drops nothing"
