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

from instil import gguf_header
from instil.data.templates.find import find_template
from instil.data.templates.stored import templates_in_gguf
from instil.data.tokenizers import FastTokenizer
from instil.errors import InstilError
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.files.peft import load_adapter
from instil.model.files.pth import save_pth
from instil.model.files.reader import hub_tensors, stored_tensors
from instil.model.files.safetensors import SafetensorsFile
from instil.model.load import load_decoder
from tests.fuzz.promise import Mutate, Target, file, folder
from tests.fuzz.trees import FILLED, content_of, dumped, lay_out, parsed, size_of, tree_mutator
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


# GGUF


def gguf_file(found: Any) -> bytes:
    """The file that a value tells of.

    ``values`` is an object (``{"$type": number, "value": ...}`` has another type than that of its value), ``tensors``
    an object of ``[kind, shape]``, with an offset behind if it is not the next; ``cut`` is what is missing at the end.
    """
    found = found if isinstance(found, dict) else {}
    values, tensors = found.get("values"), found.get("tensors")
    values, tensors = (one if isinstance(one, dict) else {} for one in (values, tensors))
    head = b"GGUF" + _packed("<I", found.get("version", 3)) + _packed("<Q", found.get("count", len(tensors)))
    head += _packed("<Q", found.get("values_count", len(values)))
    for key, value in values.items():
        head += _gguf_text(key) + _gguf_value(value)
    at = 0
    for name, one in tensors.items():
        one = one if isinstance(one, list) else [one]  # noqa: PLW2901
        kind, shape, offset, *_ = [*one, *[0, [1], None][len(one) :]]
        shape = shape if isinstance(shape, list) else [shape]
        head += _gguf_text(name) + _packed("<I", len(shape))
        head += b"".join(_packed("<Q", side) for side in reversed(shape))
        head += _packed("<I", kind) + _packed("<Q", at if offset is None else offset)
        at += -(-(size_of(["F32", shape]) or 0) // 32) * 32
    head += b"\0" * (-len(head) % 32)
    whole = head + FILLED * min(at, LARGEST)
    cut = found.get("cut", 0)
    return whole[: len(whole) - cut] if type(cut) is int and 0 < cut < len(whole) else whole


KINDS = ("B", "b", "H", "h", "I", "i", "f", "?", "", "", "Q", "q", "d")  # of values, by their numbers


def _packed(form: str, value: Any) -> bytes:
    try:
        if form[-1] in "fd":
            return struct.pack(form, float(value))
        number = int(value) % (1 << 8 * struct.calcsize(form))
        return number.to_bytes(struct.calcsize(form), "little")
    except (TypeError, ValueError, OverflowError, struct.error):
        return bytes(struct.calcsize(form))


def _gguf_text(value: Any) -> bytes:
    text = str(value).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text


def _kind(value: Any) -> int:
    if isinstance(value, dict) and type(value.get("$type")) is int:
        return int(value["$type"]) % 2**32
    if isinstance(value, bool):
        return 7
    if isinstance(value, int):
        return 4 if 0 <= value < 2**32 else 11
    return 6 if isinstance(value, float) else 9 if isinstance(value, list) else 8


def _gguf_value(value: Any, kind: int | None = None) -> bytes:
    written = b"" if kind is not None else struct.pack("<I", _kind(value))
    kind = _kind(value) if kind is None else kind
    value = value["value"] if isinstance(value, dict) and "value" in value else value
    if kind == 8:
        return written + _gguf_text(value)
    if kind == 9:
        inside = value if isinstance(value, list) else [value]
        of = _kind(inside[0]) if inside else 4
        return written + struct.pack("<IQ", of, len(inside)) + b"".join(_gguf_value(one, of) for one in inside)
    return written + (_packed(f"<{KINDS[kind]}", value) if kind < len(KINDS) else b"")


def read_gguf(given: bytes) -> None:
    """Weights, tokenizer and template of a file that a value tells of."""
    _read_gguf(gguf_file(parsed_or_empty(given)))


def _read_gguf(content: bytes) -> None:
    gguf_header._read.cache_clear()  # which knows files by size and time alone
    with file("model.gguf", content) as path:
        refused: list[InstilError] = []
        for read in (load_decoder, spelled, gguf_header.read_gguf):
            try:
                read(path)
            except InstilError as error:
                refused.append(error)
        templates_in_gguf(path)
        if refused:
            raise refused[0]


def spelled(path: Path) -> None:
    """The tokenizer and the template inside a GGUF file, in use."""
    tokenizer = FastTokenizer.from_gguf(path)
    tokenizer.decode([*tokenizer.encode("a b\n<|im_end|> Été 🙂"), tokenizer.largest_id])
    find_template("model", path, tokenizer)


def ggufs() -> list[Any]:
    """Tiny models of every architecture that GGUF has, and vocabularies of both kinds."""
    found: list[Any] = []
    bytes_ = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    spelled = {"model": "gpt2", "pre": "gpt-2", "tokens": [*bytes_, "he", "<|im_end|>"], "merges": ["h e"],
               "token_type": [1] * 257 + [3], "eos_token_id": 257, "bos_token_id": 257, "add_bos_token": False}  # fmt: skip
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{code:02X}>" for code in range(256)), "▁", "a", "b", "▁a", "ab"]
    scored = {"model": "llama", "tokens": pieces, "scores": [0.0] * 262 + [-1.0, -2.0],
              "token_type": [2, 3, 3] + [6] * 256 + [1] * 5, "eos_token_id": 2, "bos_token_id": 1}  # fmt: skip
    template = "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
    for decoder in decoders(tuple(FAMILIES)):
        family = FAMILIES[decoder.spec.family]
        try:
            header = family.header_in_gguf(decoder.spec)
        except InstilError:
            continue
        values = {key: value for key, value in header.items() if not isinstance(value, torch.Tensor)}
        more = {name: value for name, value in header.items() if isinstance(value, torch.Tensor)}
        tensors = [*more.items(), *stored_tensors(decoder, family.gguf)]
        vocabulary = scored if len(found) % 2 else spelled
        found.append({
            "values": {"general.architecture": family.architecture_in_gguf,
                       **{key: list(value) if isinstance(value, tuple) else value for key, value in values.items()},
                       **({f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()} if len(found) < 2 else {}),
                       "tokenizer.chat_template": template},
            "tensors": {name: [0, list(tensor.shape)] for name, tensor in tensors},
        })  # fmt: skip
    return found


GGUF_WORDS = (
    "general.architecture", "general.alignment", "split.no", "split.count", "split.tensors.count",
    "llama.block_count", "llama.context_length", "llama.rope.scaling.type", "llama.rope.scaling.factor",
    "llama.attention.sliding_window", "llama.rope.freq_base", "gemma3.attention.sliding_window_pattern",
    "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.merges", "tokenizer.ggml.token_type",
    "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.fim_pad_token_id",
    "tokenizer.chat_template", "tokenizer.chat_template.tool_use", "llama", "gpt2", "qwen2", "$type", "value", "cut",
    {"$type": 9, "value": []}, {"$type": 9, "value": [[1], [2]]}, {"$type": 10, "value": 1 << 40}, {"$type": 7, "value": 2},
    {"$type": 12, "value": 0.5}, {"$type": 99, "value": 0}, "rope_freqs.weight", 16, 64, 1024,
)  # fmt: skip


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
    names = {name.replace("lora_A.weight", "lora_magnitude_vector"): ["F32", [48 if "q_proj" in name else 16]]
             for name in weights if "lora_A" in name}  # fmt: skip
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
        made({**config, "layers_to_transform": [0, 1], "layers_pattern": "layers", "use_rslora": True}, weights,
             **{"base.json": {"weights": "int8", "block": 64}}),
    ]  # fmt: skip


ADAPTER_WORDS = (
    "target_modules", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform",
    "layers_pattern", "trainable_token_indices", "use_dora", "use_rslora", "ensure_weight_tying", "init_lora_weights",
    "all-linear", "lm_head", "embed_tokens", "F16", "BF16", "(a|a)*", "[", "(?P<x>", ".*", "nf4", "int8", "base.json",
)  # fmt: skip


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
    hparams = {"n_vocab": spec.vocab_size, "n_ctx": spec.context, "n_embd": spec.width, "n_head": spec.heads,
               "n_layer": spec.layers}  # fmt: skip
    return [{"index": index, "size": at, "hparams": hparams},
            {"index": {"$bytes": table({b"": header()}).decode("latin-1")}, "size": 0, "hparams": hparams}]  # fmt: skip


def seeds(values: Callable[[], list[Any]]) -> Callable[[], list[bytes]]:
    """Values as inputs."""
    return lambda: [dumped(value) for value in values()]


TARGETS = {
    "folder": Target(read_folder, seeds(folders), tree_mutator(("config.json",), folders)),
    "safetensors": Target(read_safetensors, safetensors, mutate_safetensors, longest=4000),
    "gguf": Target(read_gguf, seeds(ggufs), tree_mutator(GGUF_WORDS, ggufs)),
    "gguf_bytes": Target(
        _read_gguf, lambda: [gguf_file({**one, "tensors": {}}) for one in ggufs()[:2]], words=(b"GGUF",), longest=10_000
    ),
    "pth": Target(read_pth, pths, mutate_pth),
    "adapter": Target(read_adapter, seeds(adapters), tree_mutator(ADAPTER_WORDS, adapters)),
    "tensorflow": Target(read_tensorflow, seeds(checkpoints), tree_mutator(("n_vocab", "n_embd"), checkpoints)),
}
