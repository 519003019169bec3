"""GGUF files, told of as values so that their lengths are right, or as bytes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch

from instil import gguf_header
from instil.data.templates.find import find_template
from instil.data.templates.stored import templates_in_gguf
from instil.data.tokenizers import FastTokenizer
from instil.errors import InstilError
from instil.model.families import FAMILIES
from instil.model.files.reader import stored_tensors
from instil.model.load import load_decoder
from tests.fuzz.models import LARGEST, decoders, parsed_or_empty, seeds
from tests.fuzz.promise import Target, file
from tests.fuzz.trees import FILLED, size_of, tree_mutator


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
    spelled = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*bytes_, "he", "<|im_end|>"],
        "merges": ["h e"],
        "token_type": [1] * 257 + [3],
        "eos_token_id": 257,
        "bos_token_id": 257,
        "add_bos_token": False,
    }
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{code:02X}>" for code in range(256)), "▁", "a", "b", "▁a", "ab"]
    scored = {
        "model": "llama",
        "tokens": pieces,
        "scores": [0.0] * 262 + [-1.0, -2.0],
        "token_type": [2, 3, 3] + [6] * 256 + [1] * 5,
        "eos_token_id": 2,
        "bos_token_id": 1,
    }
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
        found.append(
            {
                "values": {
                    "general.architecture": family.architecture_in_gguf,
                    **{key: list(value) if isinstance(value, tuple) else value for key, value in values.items()},
                    **({f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()} if len(found) < 2 else {}),
                    "tokenizer.chat_template": template,
                },
                "tensors": {name: [0, list(tensor.shape)] for name, tensor in tensors},
            }
        )
    return found


GGUF_WORDS = (
    "general.architecture",
    "general.alignment",
    "split.no",
    "split.count",
    "split.tensors.count",
    "llama.block_count",
    "llama.context_length",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.attention.sliding_window",
    "llama.rope.freq_base",
    "gemma3.attention.sliding_window_pattern",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.fim_pad_token_id",
    "tokenizer.chat_template",
    "tokenizer.chat_template.tool_use",
    "llama",
    "gpt2",
    "qwen2",
    "$type",
    "value",
    "cut",
    {"$type": 9, "value": []},
    {"$type": 9, "value": [[1], [2]]},
    {"$type": 10, "value": 1 << 40},
    {"$type": 7, "value": 2},
    {"$type": 12, "value": 0.5},
    {"$type": 99, "value": 0},
    "rope_freqs.weight",
    16,
    64,
    1024,
)


TARGETS = {
    "gguf": Target(read_gguf, seeds(ggufs), tree_mutator(GGUF_WORDS, ggufs)),
    "gguf_bytes": Target(
        _read_gguf, lambda: [gguf_file({**one, "tensors": {}}) for one in ggufs()[:2]], words=(b"GGUF",), longest=10_000
    ),
}
