"""Files of models: their headers, configurations and weights."""

from __future__ import annotations

import copy
import io
import math
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.files.peft import load_adapter
from instil.model.files.pth import save_pth
from instil.model.files.reader import hub_tensors, stored_tensors
from instil.model.files.safetensors import SafetensorsFile
from instil.model.load import load_decoder
from tests.fuzz.promise import Mutate, Target, file, folder
from tests.fuzz.trees import FILLED, content_of, dumped, lay_out, parsed, tree_mutator
from tests.model.family_cases import CASES
from tests.model.files.tensorflow_files import table

LARGEST = 1 << 22  # numbers that a decoder may have, so that one input does not take seconds


MISSING = {
    "layer_norm_epsilon": 1e-5,
    "rms_norm_eps": 1e-5,
    "norm_epsilon": 1e-5,
    "layer_norm_eps": 1e-5,
    "norm_eps": 1e-5,
}


def decoders(families: tuple[str, ...]) -> Iterator[Decoder]:
    """A tiny decoder of each family, of the first of its cases; what that leaves out is put in."""
    for name in families:
        config = {"model_type": FAMILIES[name].model_type, "vocab_size": 40, "tie_word_embeddings": True}
        config |= CASES[name].config
        while True:
            try:
                yield Decoder(FAMILIES[name].spec_from_config(config))
                break
            except KeyError as error:
                config[error.args[0]] = MISSING.get(error.args[0], 1)


# A folder of transformers


def read_folder(given: bytes) -> None:
    """``config.json`` with safetensors files."""
    with folder() as place:
        lay_out(place, parsed_or_empty(given))
        load_decoder(place)


def parsed_or_empty(given: bytes) -> Any:
    """The value in bytes, or an empty object."""
    try:
        return parsed(given)
    except ValueError:
        return {}


def told(tensors: Any) -> dict[str, list[Any]]:
    """Tensors by type and shape."""
    return {name: ["F32", list(tensor.shape)] for name, tensor in tensors}


def folders() -> list[Any]:
    """Tiny models of every family, and one in shards."""
    found: list[Any] = []
    for decoder in decoders(tuple(FAMILIES)):
        config = {**FAMILIES[decoder.spec.family].config_from_spec(decoder.spec), "eos_token_id": 1}
        weights = told(hub_tensors(decoder))
        found.append({"config.json": config, "model.safetensors": {"$tensors": weights}})
    config, weights = found[1]["config.json"], found[1]["model.safetensors"]["$tensors"]
    parts = {"a.safetensors": dict(list(weights.items())[:5]), "b.safetensors": dict(list(weights.items())[5:])}
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    shards = {name: {"$tensors": some} for name, some in parts.items()}
    return [*found, {"config.json": config, "model.safetensors.index.json": index, **shards}]


# One safetensors file


def read_safetensors(given: bytes) -> None:
    """Header, offsets and tensors."""
    with file("model.safetensors", given) as path:
        opened = SafetensorsFile(path)
        for name in sorted(opened.names()):
            opened.get(name)


def mutate_safetensors(given: bytes, draw: Random, mutate: Mutate) -> bytes:
    """A change of the header, with its length made right as a rule."""
    if draw.random() < 0.3 or len(given) < 8:
        return mutate(given, len(given) + 50)
    (length,) = struct.unpack("<Q", given[:8])
    text, rest = given[8 : 8 + length], given[8 + length :]
    text = HEADERS(text, draw, mutate)
    length = len(text) if draw.random() < 0.95 else draw.choice((0, 2**63, len(text) + 1))
    return struct.pack("<Q", length) + text + (rest if draw.random() < 0.9 else rest[:-1])


HEADERS = tree_mutator(
    ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "BOOL", "dtype", "shape", "data_offsets", "__metadata__")
)


def safetensors() -> list[bytes]:
    """One of each type."""
    some = {"a": ["F32", [2, 3]], "b": ["BF16", [4]], "c": ["F8_E4M3", [2]], "d": ["F64", []], "e": ["I64", [0]]}
    return [content_of({"$tensors": some}), content_of({"$tensors": {"a": ["F16", [1, 1, 1]]}})]


# The others


def read_pth(given: bytes) -> None:
    """A state dictionary."""
    with file("model.pth", given) as path:
        load_decoder(path)


def mutate_pth(given: bytes, draw: Random, mutate: Mutate) -> bytes:
    """A change of one of the members of the archive."""
    made = io.BytesIO()
    try:
        if draw.random() < 0.3:
            raise ValueError("its bytes, this time")
        with zipfile.ZipFile(io.BytesIO(given)) as old, zipfile.ZipFile(made, "w") as new:
            for name in old.namelist()[:60]:
                inner = old.read(name)[:10_000]
                if draw.random() < (0.8 if name.endswith(".pkl") else 0.02):
                    inner = mutate(inner, len(inner) + 50)
                new.writestr(zipfile.ZipInfo(name), inner)
    except Exception:
        return mutate(given, len(given) + 50)
    return made.getvalue()


def pths() -> Iterator[bytes]:
    """The book's GPT-2, and a dictionary of other tensors."""
    spec = next(decoders(("gpt2",))).spec
    sizes = {"width": 64, "layers": 1, "heads": 1, "kv_heads": 1, "head_width": 64, "mlp_width": 256, "context": 6}
    with tempfile.TemporaryDirectory() as place:
        save_pth(Decoder(replace(spec, vocab_size=5, **sizes)), Path(place) / "a.pth")
        state = torch.load(Path(place) / "a.pth", weights_only=True)
    yield _saved({name: torch.full((1,), 0.01).expand(tensor.shape) for name, tensor in state.items()})
    for other in ({"a": torch.ones(2)}, {"model_state_dict": {"tok_emb.weight": torch.ones(2, 2)}}, [1]):
        yield _saved(other)


def _saved(state: Any) -> bytes:
    made = io.BytesIO()
    torch.save(state, made)
    return made.getvalue()


def base() -> Decoder:
    """A tiny Llama, new each time."""
    if not _BASE:
        _BASE.append(next(decoders(("llama",))))
    return copy.deepcopy(_BASE[0])


_BASE: list[Decoder] = []


def read_adapter(given: bytes) -> None:
    """A folder of PEFT, put on a tiny Llama."""
    with folder() as place:
        lay_out(place, parsed_or_empty(given))
        load_adapter(base(), place)


def adapters() -> list[Any]:
    """LoRA on attention, DoRA, and an embedding saved whole."""
    prefix = "base_model.model.model.layers"
    weights = {}
    for layer in range(2):
        for module, rows, width in (("self_attn.q_proj", 48, 24), ("self_attn.v_proj", 16, 24)):
            weights[f"{prefix}.{layer}.{module}.lora_A.weight"] = ["F32", [3, width]]
            weights[f"{prefix}.{layer}.{module}.lora_B.weight"] = ["F32", [rows, 3]]
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    names = {
        name.replace("lora_A.weight", "lora_magnitude_vector"): ["F32", [48 if "q_proj" in name else 16]]
        for name in weights
        if "lora_A" in name
    }
    whole = {"base_model.model.model.embed_tokens.weight": ["F32", [40, 24]]}
    delta = {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": ["F32", [2, 24]]}

    def made(config: Mapping[str, Any], tensors: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        return {"adapter_config.json": config, "adapter_model.safetensors": {"$tensors": tensors}, **more}

    return [
        made(config, weights),
        made({**config, "target_modules": ".*(q|v)_proj", "rank_pattern": {"q_proj": 3}}, weights),
        made({**config, "use_dora": True}, {**weights, **names}),
        made({**config, "modules_to_save": ["embed_tokens"]}, {**weights, **whole}),
        made({**config, "trainable_token_indices": [1, 2]}, {**weights, **delta}),
        made(
            {**config, "layers_to_transform": [0, 1], "layers_pattern": "layers", "use_rslora": True},
            weights,
            **{"base.json": {"weights": "int8", "block": 64}},
        ),
    ]


ADAPTER_WORDS = (
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
    "ensure_weight_tying",
    "init_lora_weights",
    "all-linear",
    "lm_head",
    "embed_tokens",
    "F16",
    "BF16",
    "(a|a)*",
    "[",
    "(?P<x>",
    ".*",
    "nf4",
    "int8",
    "base.json",
)


def read_tensorflow(given: bytes) -> None:
    """A folder of OpenAI's; its index is told as keys and values, so that its checksums are right."""
    found = parsed_or_empty(given)
    found = found if isinstance(found, dict) else {}
    index, size = found.get("index"), found.get("size", 0)
    with folder() as place:
        if isinstance(index, dict):
            pairs = {name.encode("utf-8", "replace"): content_of(value) for name, value in index.items()}
            raw = table(pairs, compression=found.get("compression", 0) == 1)
        else:
            raw = content_of(index)
        (place / "model.ckpt.index").write_bytes(raw)
        (place / "model.ckpt.data-00000-of-00001").write_bytes(FILLED * min(size if type(size) is int else 0, LARGEST))
        (place / "hparams.json").write_bytes(content_of(found.get("hparams")))
        load_decoder(place)


def checkpoints() -> list[Any]:
    """A tiny GPT-2 of OpenAI's."""
    from tests.model.files.tensorflow_files import entry, header

    decoder = next(decoders(("gpt2",)))
    spec = decoder.spec
    form = FAMILIES["gpt2"].checkpoint
    assert form is not None
    at, index = 0, {"": {"$bytes": header().decode("latin-1")}}
    for name, tensor in stored_tensors(decoder, form.names):
        shape = tuple(tensor.shape)
        raw = FILLED * (4 * math.prod(shape))
        index[name] = {"$bytes": entry(shape, at, raw).decode("latin-1")}
        at += len(raw)
    hparams = {
        "n_vocab": spec.vocab_size,
        "n_ctx": spec.context,
        "n_embd": spec.width,
        "n_head": spec.heads,
        "n_layer": spec.layers,
    }
    return [
        {"index": index, "size": at, "hparams": hparams},
        {"index": {"$bytes": table({b"": header()}).decode("latin-1")}, "size": 0, "hparams": hparams},
    ]


def seeds(values: Callable[[], list[Any]]) -> Callable[[], list[bytes]]:
    """Values as inputs."""
    return lambda: [dumped(value) for value in values()]


TARGETS = {
    "folder": Target(read_folder, seeds(folders), tree_mutator(("config.json",), folders)),
    "safetensors": Target(read_safetensors, safetensors, mutate_safetensors, longest=4000),
    "pth": Target(read_pth, pths, mutate_pth),
    "adapter": Target(read_adapter, seeds(adapters), tree_mutator(ADAPTER_WORDS, adapters)),
    "tensorflow": Target(read_tensorflow, seeds(checkpoints), tree_mutator(("n_vocab", "n_embd"), checkpoints)),
}
