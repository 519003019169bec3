"""A model folder of `transformers`: ``config.json`` and safetensors files, read and written."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from instil.errors import ModelError
from instil.files import json_text, read_json_object
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.families.closed import what_is_missing
from instil.model.files.reader import hub_tensors
from instil.model.files.safetensors import SafetensorsFile, write_safetensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NO_JSON = "cannot be read as JSON"


class SafetensorsFolder:
    """A folder as ``save_pretrained`` writes it: ``config.json`` and one or more safetensors files."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        config = _read_config(folder)
        kind = config.get("model_type")
        families = {family.model_type: family for family in FAMILIES.values()}
        if not isinstance(kind, str) or kind not in families:
            more = " (the config describes a vision tower, too, and only text models are read)"
            raise ModelError(
                f"{folder}: config.json says model_type {kind!r}{more if 'vision_config' in config else ''}; "
                f"read here: {', '.join(families)}{what_is_missing(str(kind))}"
            )
        self.family = families[kind]
        self.table = self.family.hub
        try:
            self.spec = self.family.spec_from_config(config)
        except KeyError as error:
            raise ModelError(f"{folder}: config.json lacks {error.args[0]!r}") from error
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ModelError(f"{folder}: config.json makes no sense: {error}") from error
        self._files = self._open_files()
        self._where = {
            self.family.renamed.get(name, name).removeprefix(self.family.prefix): (file, name)
            for file, handle in self._files.items()
            for name in handle.names()
        }

    def names(self) -> set[str]:
        return set(self._where)

    def get(self, name: str) -> Tensor:
        file, full_name = self._where[name]
        return self._files[file].get(full_name)

    def _open_files(self) -> dict[str, SafetensorsFile]:
        if (self.path / INDEX).is_file():
            index = read_json_object(self.path / INDEX, error=ModelError, problem=NO_JSON)
            where = index.get("weight_map")
            if not isinstance(where, dict):
                raise ModelError(f"{self.path / INDEX}: damaged, it has no weight_map")
            names = sorted({str(file) for file in where.values()})
        elif (self.path / WEIGHTS).is_file():
            names = [WEIGHTS]
        else:
            found = sorted(entry.name for entry in self.path.iterdir())[:10]
            raise ModelError(f"{self.path}: no {WEIGHTS} in it; found {', '.join(found) or 'nothing'}")
        opened: dict[str, SafetensorsFile] = {}
        for name in names:
            if Path(name).name != name or not (self.path / name).is_file():
                raise ModelError(f"{self.path}: the index names {name!r}, which is not in the folder")
            opened[name] = SafetensorsFile(self.path / name)
        return opened


def save_decoder(
    decoder: Decoder, folder: Path, *, eos_id: int, stop_ids: Collection[int] = (), begin_ids: Sequence[int] = ()
) -> None:
    """Write ``config.json``, ``generation_config.json`` and ``model.safetensors``.

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
    write_safetensors(folder / WEIGHTS, hub_tensors(decoder))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: no config.json in it, so it is not a model folder of transformers")
    return read_json_object(path, error=ModelError, problem=NO_JSON)


def file_hash(path: Path) -> str:
    """SHA-256 of a model file, or of all weight files of a folder in order of name."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{path}: no weight files in it")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
