"""GPT-2 from OpenAI's files: the same logits as transformers, and every damage refused in one line."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from instil.data.tokenizers import FastTokenizer, load_tokenizer
from instil.errors import ModelError
from instil.model.decoder import Decoder
from instil.model.families.gpt2 import spec_from_hparams
from instil.model.files.tensorflow import DATA, HPARAMS, INDEX, TensorflowCheckpoint, masked_checksum, read_index
from instil.model.load import load_decoder, open_model
from tests.conftest import tiny_reference
from tests.model.files import tensorflow_files as tf
from tests.model.test_parity import assert_same_logits


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return tf.tensors_of(tiny_reference("gpt2"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tf.write_model(tiny_reference("gpt2"), tmp_path)
    return tmp_path


def refused(folder: Path) -> str:
    """The message with which a folder is refused: one line that names a file or folder."""
    with pytest.raises(ModelError) as caught:
        load_decoder(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def rewrite(folder: Path, change: Callable[[dict[bytes, bytes]], None], **options: object) -> None:
    """Write the index again with other values."""
    data = (folder / DATA).read_bytes()
    values = {b"": tf.header()}
    for name, entry in read_index(folder / INDEX).items():
        raw = data[entry.offset : entry.offset + entry.size]
        values[name.encode()] = tf.entry(entry.shape, entry.offset, raw)
    change(values)
    (folder / INDEX).write_bytes(tf.table(values, **options))


@pytest.mark.parametrize("block_size", [1, 60, 200, 1_000_000])
def test_logits_from_openais_files(block_size: int, tmp_path: Path) -> None:
    theirs = tiny_reference("gpt2")
    tf.write_model(theirs, tmp_path, block_size=block_size)
    assert isinstance(open_model(tmp_path), TensorflowCheckpoint)
    assert_same_logits(theirs, tmp_path)
    decoder = load_decoder(tmp_path)
    assert decoder.head.weight is decoder.embed.weight


def test_the_writer_shares_beginnings_of_names_and_fills_several_blocks(folder: Path) -> None:
    """Otherwise the tests above would prove less than they say."""
    raw = (folder / INDEX).read_bytes()
    names = read_index(folder / INDEX)
    assert raw.count(b"model/h0/") < sum(name.startswith("model/h0/") for name in names)
    tf.write_model(tiny_reference("gpt2"), folder, block_size=1_000_000)
    assert raw.count(b"model/") >= 3 * (folder / INDEX).read_bytes().count(b"model/")  # written whole once a block


def test_a_table_of_bytes_known_beforehand(tmp_path: Path) -> None:
    """A header and a tensor of one number at byte 0, put together by hand."""
    crc = struct.pack("<I", masked_checksum(struct.pack("<f", 1.0)))
    value = bytes([0x08, 1, 0x12, 4, 0x12, 2, 0x08, 1, 0x28, 4, 0x35]) + crc
    first = bytes([0, 0, 2, 0x08, 1, 0, 1, len(value)]) + b"w" + value + struct.pack("<II", 0, 1) + b"\0"
    first += struct.pack("<I", masked_checksum(first))
    empty = struct.pack("<II", 0, 1) + b"\0"
    empty += struct.pack("<I", masked_checksum(empty))
    index = bytes([0, 1, 2]) + b"w" + bytes([0, len(first) - 5]) + struct.pack("<II", 0, 1) + b"\0"
    index += struct.pack("<I", masked_checksum(index))
    footer = bytes([len(first), 8, len(first) + len(empty), len(index) - 5]).ljust(40, b"\0")
    path = tmp_path / INDEX
    path.write_bytes(first + empty + index + footer + bytes.fromhex("57fb808b247547db"))
    found = read_index(path)["w"]
    assert (found.shape, found.offset, found.size) == ((1,), 0, 4)


def test_the_checksum_is_leveldbs() -> None:
    """RFC 3720, B.4: thirty-two bytes of zeros have the CRC-32C 8a9136aa."""
    crc = 0x8A9136AA
    assert masked_checksum(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9, 0.999])
def test_an_index_cut_off_anywhere(folder: Path, share: float) -> None:
    raw = (folder / INDEX).read_bytes()
    (folder / INDEX).write_bytes(raw[: int(len(raw) * share)])
    assert "damaged or cut off" in refused(folder)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9999])
def test_data_cut_off_anywhere(folder: Path, share: float) -> None:
    raw = (folder / DATA).read_bytes()
    (folder / DATA).write_bytes(raw[: int(len(raw) * share)])
    assert "cut off. Fetch it again" in refused(folder)


def test_data_cut_off_while_it_is_read(folder: Path) -> None:
    reader = open_model(folder)
    (folder / DATA).write_bytes(b"")
    with pytest.raises(ModelError, match="wrong checksum"):
        reader.get("model/wte")


def test_any_flipped_bit_of_the_index_is_noticed(folder: Path) -> None:
    raw = (folder / INDEX).read_bytes()
    whole = read_index(folder / INDEX)
    unnoticed = []
    for at in range(0, len(raw)):
        (folder / INDEX).write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
        try:
            assert read_index(folder / INDEX) == whole
            unnoticed.append(at)
        except ModelError as error:
            assert "\n" not in str(error)
    # What is left is never read: an empty block of statistics, its handle, and the footer's padding.
    statistics = raw.index(tf.block([]))
    footer = range(len(raw) - 48, len(raw) - 8)
    assert all(at in footer or statistics <= at < statistics + len(tf.block([])) for at in unnoticed)


@pytest.mark.parametrize("share", [0.0, 0.37, 0.99])
def test_a_flipped_bit_of_the_data_is_noticed(folder: Path, share: float) -> None:
    raw = bytearray((folder / DATA).read_bytes())
    raw[int(len(raw) * share)] ^= 0x10
    (folder / DATA).write_bytes(bytes(raw))
    assert "wrong checksum" in refused(folder)
    with pytest.raises(ModelError, match="wrong checksum"):
        TensorflowCheckpoint(folder).verify()


def test_another_magic_number_and_a_web_page(folder: Path) -> None:
    raw = (folder / INDEX).read_bytes()
    (folder / INDEX).write_bytes(raw[:-8] + b"abcdefgh")
    assert "6162636465666768" in refused(folder)
    (folder / INDEX).write_text("<html>" + "not found " * 20)
    assert "not a TensorFlow index" in refused(folder)


@pytest.mark.parametrize("missing", [HPARAMS, INDEX, DATA])
def test_a_missing_file(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    assert f"no {missing} in it" in refused(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.pop(b"model/h1/attn/c_proj/w"), "no tensor 'model/h1/attn/c_proj/w'"),
        (lambda v: v.pop(b"model/h0/mlp/c_fc/w"), "knows 'model/h0/mlp/c_fc/w'"),
        (lambda v: v.update({b"model/extra": v[b"model/wte"]}), "model/extra are not part of a gpt2 model"),
        (lambda v: v.update({b"model/wpe": tf.entry((2,), 0, b"12345678", dtype=2)}), "stored as float64"),
        (lambda v: v.update({b"model/wpe": tf.entry((2,), 0, b"12345678", dtype=77)}), "stored as type 77"),
        (lambda v: v.update({b"model/wpe": tf.entry((3,), 0, b"12345678")}), "takes 8 bytes"),
        (lambda v: v.update({b"model/wpe": tf.entry((0,), 0, b"")}), "a side of 0"),
        (lambda v: v.update({b"model/wpe": tf.entry((2**64 - 1,), 0, b"")}), "a side of"),
        (lambda v: v.update({b"model/wpe": tf.entry((2,), 2**50, b"12345678")}), "cut off"),
        (lambda v: v.update({b"model/wpe": tf.entry((2,), 0, b"12345678", shard=1)}), "in data file 1"),
        (lambda v: v.update({b"model/wpe": v[b"model/wpe"] + tf.bytes_field(7, b"")}), "stored in slices"),
        (lambda v: v.update({b"model/wpe": v[b"model/wpe"] + tf.number_field(9, 1)}), "field 9"),
        (lambda v: v.update({b"model/wpe": b"\x0b"}), "wire type 3"),
        (lambda v: v.update({b"model/wpe": b"\x12\x7f"}), "out of its message"),
        (lambda v: v.update({b"model/wpe": b"\xff" * 12}), "more than ten bytes"),
        (lambda v: v.update({b"\xff\xfe": v[b"model/wpe"]}), "utf-8"),
        (lambda v: v.update({b"": tf.header(shards=2)}), "2 data files"),
        (lambda v: v.update({b"": tf.header(endianness=1)}), "big-endian"),
        (lambda v: v.pop(b""), "no header"),
    ],
)
def test_an_index_that_says_something_else(folder: Path, change: Callable[..., None], says: str) -> None:
    rewrite(folder, change)
    assert says in refused(folder)


def test_compressed_blocks_are_refused_by_name(folder: Path) -> None:
    rewrite(folder, lambda values: None, compression=1)
    message = refused(folder)
    assert "compressed (snappy)" in message
    assert "Fetch it again" not in message


def test_names_out_of_order_and_blocks_that_lie(folder: Path) -> None:
    pairs = [(b"b", b"2"), (b"a", b"1")]
    inner = tf.block(pairs, restart_every=1)
    outer = tf.block([(b"b", tf.varint(0) + tf.varint(len(inner) - 5))])
    handles = tf.varint(0) + tf.varint(0) + tf.varint(len(inner)) + tf.varint(len(outer) - 5)
    (folder / INDEX).write_bytes(inner + outer + handles.ljust(40, b"\0") + tf.MAGIC)
    assert "out of order" in refused(folder)
    for body, says in (
        (b"\x05\x01\x00a", "reaches out of the block"),  # shares five bytes with nothing
        (b"\x00\x7f\x00a", "reaches out of the block"),
        (b"\x00\x80", "cut off"),
    ):
        inner = body + struct.pack("<II", 0, 1) + b"\0"
        inner += tf.checksum(inner)
        outer = tf.block([(b"b", tf.varint(0) + tf.varint(len(inner) - 5))])
        handles = tf.varint(0) + tf.varint(0) + tf.varint(len(inner)) + tf.varint(len(outer) - 5)
        (folder / INDEX).write_bytes(inner + outer + handles.ljust(40, b"\0") + tf.MAGIC)
        assert says in refused(folder)


def test_too_many_names_and_too_large_an_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instil.model.files.tensorflow.MOST_TENSORS", 5)
    assert "more than 5 names" in refused(folder)
    monkeypatch.setattr("instil.model.files.tensorflow.LARGEST_INDEX", 100)
    assert "at most 100 are read" in refused(folder)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"n_layer": 3}, r"no tensor 'model/h2"),
        ({"n_layer": 1}, r"model/h1/\S+ are not part"),
        ({"n_vocab": 96}, "do not belong together"),
        ({"n_ctx": 65}, "do not belong together"),
        ({"n_embd": 24}, "do not belong together"),
        ({"n_head": 3}, "does not divide by 3 heads"),
        ({"n_head": 0}, "makes no sense"),
        ({"n_layer": "two"}, "makes no sense"),
        ({"n_embd": None}, "makes no sense"),
        ({"rotary": True}, r"hparams.json of a gpt2 model sets rotary=True"),
    ],
)
def test_hparams_that_do_not_fit(folder: Path, values: dict[str, object], says: str) -> None:
    stored = json.loads((folder / HPARAMS).read_text())
    (folder / HPARAMS).write_text(json.dumps({**stored, **values}))
    with pytest.raises(ModelError) as caught:
        load_decoder(folder)
    assert "\n" not in str(caught.value)
    assert re.search(says, str(caught.value))


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "cannot be read as JSON"), ("[1]", "wanted a JSON object"), ("{}", "knows 'n_vocab'"), ("<html>", "JSON")],
)
def test_hparams_that_are_none(folder: Path, text: str, says: str) -> None:
    (folder / HPARAMS).write_text(text)
    assert says in refused(folder)


def test_values_that_are_not_numbers(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    bad = {**tensors, "model/ln_f/g": np.full_like(tensors["model/ln_f/g"], np.nan)}
    tf.write_checkpoint(folder, bad, json.loads((folder / HPARAMS).read_text()))
    assert "not finite" in refused(folder)


def test_the_tokenizer_of_the_folder(folder: Path) -> None:
    wanted = FastTokenizer.gpt2().encode("Rewrite it, naïvely, 42 times.\n")
    found = load_tokenizer(folder)
    assert isinstance(found, FastTokenizer)
    assert found.encode("Rewrite it, naïvely, 42 times.\n") == wanted
    merges = folder / "vocab.bpe"
    merges.write_text(merges.read_text(encoding="utf-8") + "\n", encoding="utf-8")  # other bytes, the same merges
    other = load_tokenizer(folder)
    assert isinstance(other, FastTokenizer)
    assert other.encode("Rewrite it, naïvely, 42 times.\n") == wanted
    (folder / "encoder.json").write_text("<html>")
    with pytest.raises(ModelError, match="not GPT-2's vocabulary"):
        load_tokenizer(folder)


SIZES = {
    "124M": (768, 12, 12, 124_439_808),
    "355M": (1024, 24, 16, 354_823_168),
    "774M": (1280, 36, 20, 774_030_080),
    "1558M": (1600, 48, 25, 1_557_611_200),
}


@pytest.mark.parametrize("size", SIZES)
def test_the_four_sizes_have_their_parameters(size: str) -> None:
    from dataclasses import replace

    width, layers, heads, wanted = SIZES[size]
    hparams = {"n_vocab": 50257, "n_ctx": 1024, "n_embd": width, "n_head": heads, "n_layer": layers}
    spec = spec_from_hparams(hparams, {"model/h0/mlp/c_fc/w": (1, width, 4 * width)})
    with torch.device("meta"):
        assert Decoder(spec).parameter_count == wanted
        assert Decoder(replace(spec, tied=False)).parameter_count == wanted + 50257 * width
