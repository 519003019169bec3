"""Real weights into a decoder, and out again as a folder that `transformers` opens.

Readers differ (`SafetensorsFolder` here, `GgufFile` and `TensorflowCheckpoint` beside); the filling is
one: each parameter of ours is looked up in its family's table, put together from the tensors named there,
checked for shape, and taken over, one at a time, so that no second copy of the model is ever in memory.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from instil.errors import ModelError, parsing_problem
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.families.family import Family, Stored
from instil.model.frozen import FrozenLinear
from instil.model.hub import find_model
from instil.model.lora import LoraLinear
from instil.model.memory import own_memory
from instil.model.safetensors_file import SafetensorsFile, write_safetensors
from instil.model.spec import DecoderSpec
from instil.records import json_kind

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Reader(Protocol):
    """An opened model file: its family and spec, and its tensors by the names of our table."""

    path: Path
    family: Family
    spec: DecoderSpec
    table: Mapping[str, Stored]

    def names(self) -> set[str]:
        """Names of the tensors, in the table's form."""

    def get(self, name: str) -> Tensor:
        """One tensor as the file has it, floating point, in memory that the caller may keep. Asked for once."""


def load_decoder(
    model: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Decoder:
    """Load a decoder by name, from a folder of `transformers` or of OpenAI's, or from a GGUF file.

    Quantised weights are dequantised. Every tensor of the file must be used and every parameter found;
    anything else is refused rather than guessed.

    Raises:
        ModelError: there is no such model, it is damaged, or of a kind that is not read here.
    """
    reader = open_model(find_model(model))
    decoder = blank_decoder(reader.spec)
    fill(decoder, reader, dtype, torch.device(device))
    return decoder.eval()


def blank_decoder(spec: DecoderSpec) -> Decoder:
    """A decoder whose parameters have shapes and no memory (torch's ``meta`` device)."""
    with torch.device("meta"), _NoValues():
        return Decoder(spec)


class _NoValues(TorchFunctionMode):
    """Leaves out the drawing of first values: on the meta device it does nothing but import 75 MB of torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def open_model(path: Path) -> Reader:
    """The right reader for a folder or file."""
    if path.is_dir():
        openai = any((path / name).is_file() for name in ("hparams.json", "model.ckpt.index"))
        if openai and not (path / "config.json").is_file():
            from instil.model.tensorflow_checkpoint import TensorflowCheckpoint

            return TensorflowCheckpoint(path)
        return SafetensorsFolder(path)
    if path.suffix == ".pth":
        from instil.model.pth_file import PthFile

        return PthFile(path)
    from instil.model.gguf_file import GgufFile

    return GgufFile(path)


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
                f"read here: {', '.join(families)}"
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
            name.removeprefix(self.family.prefix): (file, name)
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
            index = _json_object(self.path / INDEX)
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
    left = {name for name in known - used if not name.endswith(reader.family.unused or ("\0",))}
    if left:
        raise ModelError(
            f"{reader.path}: tensors {', '.join(sorted(left)[:5])} are not part of a {reader.family.name} model "
            "as built here; loading without them would give wrong answers"
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
    if stored.paired_heads and stored.paired_heads[index]:
        part = halves_from_pairs(part, reader.spec.head_width)
    return part - 1 if stored.one_added else part


def halves_from_pairs(rows: Tensor, head_width: int) -> Tensor:
    """Rows of a head from neighbouring rotary pairs to the two halves used here.

    >>> halves_from_pairs(torch.arange(4), 4).tolist()
    [0, 2, 1, 3]
    """
    heads = rows.shape[0] // head_width
    return rows.reshape(heads, head_width // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


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
    if any(isinstance(module, LoraLinear | FrozenLinear) for module in decoder.modules()):
        raise ModelError(
            "this decoder has adapters or weights in few bits, which are no part of a model; merge them first"
        )
    for name, value in decoder.named_parameters():
        stored, names = _lookup(table, name)
        rows = [value.shape[0] // len(names)] * len(names)
        if name.rpartition(".")[0].endswith("attention.qkv") and len(names) == 3:
            rows = [spec.heads * spec.head_width, *(spec.kv_heads * spec.head_width,) * 2]
        for source, part in zip(names, torch.split(value.detach(), rows), strict=True):
            yield source, part.T if stored.transposed and part.dim() == 2 else part


def save_decoder(decoder: Decoder, folder: Path, *, eos_id: int, stop_ids: Collection[int] = ()) -> None:
    """Write ``config.json``, ``generation_config.json`` and ``model.safetensors``.

    Args:
        decoder: its weights are written in the precision they have.
        folder: must exist.
        eos_id: the end token it was tuned to say.
        stop_ids: other ids that end an answer; they stand after ``eos_id`` in the generation settings.
    """
    family = FAMILIES[decoder.spec.family]
    dtype = str(decoder.embed.weight.dtype).removeprefix("torch.")
    config = {
        **family.config_from_spec(decoder.spec),
        "dtype": dtype,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        "bos_token_id": None,
        "use_cache": True,
    }
    others = sorted(set(stop_ids) - {eos_id})
    generation = {"eos_token_id": [eos_id, *others] if others else eos_id, "pad_token_id": eos_id, "do_sample": False}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation)
    write_safetensors(folder / WEIGHTS, hub_tensors(decoder))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: no config.json in it, so it is not a model folder of transformers")
    return _json_object(path)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {parsing_problem(error)}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: wanted a JSON object, found: {json_kind(value)}")
    return value
