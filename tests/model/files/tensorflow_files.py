"""Checkpoints in OpenAI's format, written from a GPT-2 of transformers, for tests of the reader.

Written from the format's description and not from the reader; `tests/model/files/test_tensorflow.py` holds both
against bytes that LevelDB's and TensorFlow's own documents give.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from instil.data.byte_level import find_gpt2_files

MAGIC = struct.pack("<II", 0x8B80FB57, 0xDB477524)
NAMES = {
    "transformer.wte.weight": "model/wte", "transformer.wpe.weight": "model/wpe",
    "transformer.ln_f.weight": "model/ln_f/g", "transformer.ln_f.bias": "model/ln_f/b",
}  # fmt: skip


def varint(number: int) -> bytes:
    """Seven bits a byte, lowest first."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def checksum(raw: bytes) -> bytes:
    """The masked CRC-32C, four bytes."""
    crc = google_crc32c.value(raw)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32)


def number_field(field: int, value: int) -> bytes:
    """A protocol buffer's integer field."""
    return varint(field << 3) + varint(value)


def bytes_field(field: int, value: bytes) -> bytes:
    """A protocol buffer's field of bytes or of a message."""
    return varint(field << 3 | 2) + varint(len(value)) + value


def entry(shape: tuple[int, ...], offset: int, raw: bytes, *, dtype: int = 1, shard: int = 0) -> bytes:
    """A BundleEntryProto; as TensorFlow does, numbers that are zero are left out."""
    dims = b"".join(bytes_field(2, number_field(1, side)) for side in shape)
    out = number_field(1, dtype) + bytes_field(2, dims)
    out += number_field(3, shard) if shard else b""
    out += number_field(4, offset) if offset else b""
    return out + number_field(5, len(raw)) + varint(6 << 3 | 5) + checksum(raw)


def header(shards: int = 1, endianness: int = 0) -> bytes:
    """A BundleHeaderProto with a version."""
    out = number_field(1, shards) + (number_field(2, endianness) if endianness else b"")
    return out + bytes_field(3, number_field(1, 1))


def block(pairs: list[tuple[bytes, bytes]], restart_every: int = 16, compression: int = 0) -> bytes:
    """A block with its trailer: keys without what they share with the one before, save at restarts."""
    out, restarts, last = bytearray(), [], b""
    for number, (key, value) in enumerate(pairs):
        shared = 0
        if number % restart_every == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    out += b"".join(struct.pack("<I", at) for at in restarts) + struct.pack("<I", len(restarts))
    out.append(compression)
    return bytes(out) + checksum(bytes(out))


def table(values: Mapping[bytes, bytes], block_size: int = 200, compression: int = 0) -> bytes:
    """A whole index file, in blocks of about ``block_size`` bytes."""
    out = bytearray()
    index: list[tuple[bytes, bytes]] = []
    held: list[tuple[bytes, bytes]] = []

    def flush() -> None:
        written = block(held, compression=compression)
        index.append((held[-1][0], varint(len(out)) + varint(len(written) - 5)))
        out.extend(written)
        held.clear()

    for pair in sorted(values.items()):
        held.append(pair)
        if sum(len(key) + len(value) for key, value in held) >= block_size:
            flush()
    if held:
        flush()
    handles = b""
    for written in (block([]), block(index, restart_every=1)):
        handles += varint(len(out)) + varint(len(written) - 5)
        out.extend(written)
    return bytes(out) + handles.ljust(40, b"\0") + MAGIC


def tensors_of(model: Any) -> dict[str, np.ndarray]:
    """The model's weights under OpenAI's names and in its shapes."""
    found = {}
    for name, tensor in model.state_dict().items():
        array = tensor.detach().float().numpy()
        if name == "lm_head.weight":
            continue
        if name in NAMES:
            found[NAMES[name]] = array
            continue
        _, _, layer, *middle, kind = name.split(".")
        leaf = "b" if kind == "bias" else "g" if middle[-1].startswith("ln") else "w"
        found[f"model/h{layer}/{'/'.join(middle)}/{leaf}"] = array[None] if leaf == "w" else array
    return found


def write_checkpoint(
    folder: Path, tensors: Mapping[str, np.ndarray], hparams: Mapping[str, object], **options: Any
) -> None:
    """The chapter's seven files."""
    folder.mkdir(parents=True, exist_ok=True)
    data = bytearray()
    values = {b"": header()}
    for name in sorted(tensors):
        raw = np.ascontiguousarray(tensors[name], dtype="<f4").tobytes()
        values[name.encode()] = entry(tensors[name].shape, len(data), raw)
        data += raw
    (folder / "model.ckpt.index").write_bytes(table(values, **options))
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(bytes(data))
    (folder / "model.ckpt.meta").write_bytes(b"\x0a\x00")
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    (folder / "hparams.json").write_text(json.dumps(dict(hparams)))
    files = find_gpt2_files()
    assert files is not None
    for name in ("encoder.json", "vocab.bpe"):
        (folder / name).write_bytes((files / name).read_bytes())


def write_model(model: Any, folder: Path, **options: Any) -> None:
    """A GPT-2 of transformers as OpenAI would have published it."""
    config = model.config
    hparams = {
        "n_vocab": config.vocab_size, "n_ctx": config.n_positions, "n_embd": config.n_embd,
        "n_head": config.n_head, "n_layer": config.n_layer,
    }  # fmt: skip
    write_checkpoint(folder, tensors_of(model), hparams, **options)
