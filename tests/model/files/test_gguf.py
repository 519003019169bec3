"""GGUF files as they come: in several parts, and in every kind of blocks that can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from instil.errors import ModelError
from instil.gguf_header import read_gguf
from instil.model.files.gguf import GgufFile, readable
from instil.model.load import is_quantised, load_decoder
from tests.conftest import tiny_reference
from tests.model.files.gguf_files import write_gguf


def split(whole: Path, count: int, folder: Path, **changes: Any) -> list[Path]:
    """A file in parts, as llama.cpp's ``gguf-split`` makes them: all values in the first, tensors in turn."""
    reader = gguf.GGUFReader(str(whole))
    architecture = reader.get_field("general.architecture").contents()
    parts = []
    for number in range(count):
        path = folder / f"model-{number + 1:05d}-of-{count:05d}.gguf"
        writer = gguf.GGUFWriter(str(path), architecture)
        for name, field in reader.fields.items() if number == 0 else ():
            if not name.startswith("GGUF.") and name != "general.architecture":
                sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(name, field.contents(), field.types[0], sub_type)
        writer.add_uint16("split.no", changes.get("no", number))
        writer.add_uint16("split.count", changes.get("count", count))
        writer.add_int32("split.tensors.count", changes.get("tensors", len(reader.tensors)))
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts.append(path)
    return parts


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    write_gguf(tiny_reference("llama"), tmp_path / "x.gguf")
    return tmp_path / "x.gguf"


def test_any_part_stands_for_the_whole_model(whole: Path, tmp_path: Path) -> None:
    wanted = dict(load_decoder(whole).named_parameters())
    for part in split(whole, 3, tmp_path):
        found = dict(load_decoder(part).named_parameters())
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_missing_parts_are_named(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, 4, tmp_path)
    parts[1].unlink()
    parts[3].unlink()
    with pytest.raises(ModelError, match=r"one of 4 files.*not beside it: model-00002-of-00004.gguf, model-00004-of-0"):
        load_decoder(parts[0])
    parts[2].rename(tmp_path / "renamed.gguf")
    with pytest.raises(
        ModelError, match=r"file 3 of 4 of a model\. Call it NAME-00003-of-00004\.gguf, with the others"
    ):
        load_decoder(tmp_path / "renamed.gguf")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"no": 1}, r"by its name it is file 1 of 2, by its header split\.no 1 and split\.count 2"),
        ({"tensors": 1000}, r"the 2 files hold \d+ tensors, and the model has 1,000; they do not belong together"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    changes: dict[str, int], says: str, whole: Path, tmp_path: Path
) -> None:
    part = split(whole, 2, tmp_path, **changes)[1]
    with pytest.raises(ModelError, match=says):
        load_decoder(part)


def test_a_name_like_that_of_a_part_is_only_a_name(whole: Path, tmp_path: Path) -> None:
    alone = whole.rename(tmp_path / "model-00001-of-00001.gguf")
    assert load_decoder(alone).spec.layers == 2


WEIGHT = "blk.0.ffn_down.weight"


def one_of(kind: Kind | int, path: Path, rows: int = 4) -> np.ndarray:
    """A file of a model with one tensor of random blocks of a kind."""
    block, size = gguf.GGML_QUANT_SIZES[Kind(kind)]
    rng = np.random.default_rng(int(kind))
    raw = rng.integers(0, 40, (rows, 2 * size), dtype=np.uint8)  # small scales
    write_gguf(tiny_reference("llama"), path.with_suffix(".base"))
    reader = gguf.GGUFReader(str(path.with_suffix(".base")))
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        if tensor.name == WEIGHT:
            writer.add_tensor(tensor.name, raw, raw_dtype=Kind(kind))
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert block
    return raw


@pytest.mark.parametrize(
    "kind", ["IQ4_NL", "IQ4_XS", "IQ3_S", "IQ2_XXS", "IQ1_M", "TQ1_0", "TQ2_0", "MXFP4", "Q6_K", "BF16"]
)
def test_every_kind_that_the_package_reads_is_read(kind: str, tmp_path: Path) -> None:
    raw = one_of(Kind[kind], tmp_path / "x.gguf")
    found = GgufFile(tmp_path / "x.gguf").get(WEIGHT)
    wanted = gguf.dequantize(raw, Kind[kind])
    assert np.array_equal(found.numpy(), wanted, equal_nan=True)
    assert kind in readable()


def test_kinds_that_it_does_not_read_are_refused_with_those_it_does(tmp_path: Path) -> None:
    one_of(Kind.I8, tmp_path / "x.gguf")
    with pytest.raises(ModelError, match=f"{WEIGHT} is stored as I8; read here: F32, F16, .*IQ4_NL"):
        GgufFile(tmp_path / "x.gguf").get(WEIGHT)


def test_a_kind_that_the_package_has_never_heard_of_is_no_damage(whole: Path) -> None:
    name = b"token_embd.weight"
    content = bytearray(whole.read_bytes())
    at = content.index(name) + len(name) + 4 + 2 * 8  # behind the name: how many dimensions, and two of them
    content[at : at + 4] = (999).to_bytes(4, "little")
    whole.write_bytes(content)
    with pytest.raises(
        ModelError, match=r"in a way that the installed gguf package does not know.*pip install -U gguf"
    ):
        read_gguf(whole)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_K])
def test_a_file_is_quantised_by_its_tensors_not_by_its_name(kind: Kind, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = tiny_reference("llama", head_dim=64, **sizes)
    file = tmp_path / "blob"
    write_gguf(model, file, kind)
    assert is_quantised(file) is (kind in (Kind.Q8_0, Kind.Q4_K))
    model.save_pretrained(tmp_path / "folder")
    assert not is_quantised(tmp_path / "folder")
