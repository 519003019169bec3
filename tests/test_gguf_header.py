"""The header of a GGUF file says what the `gguf` package says it does, lists of every kind included; or is refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFEndian, GGUFReader, GGUFValueType, GGUFWriter

from instil.errors import ModelError
from instil.gguf_header import read_gguf

LISTS: dict[str, tuple[GGUFValueType, list[Any]]] = {
    "texts": (GGUFValueType.STRING, ["", "a", "\u0120the", "\U0001f642", "x" * 300]),
    "flags": (GGUFValueType.BOOL, [True, False, True]),
    "small": (GGUFValueType.INT8, [-3, 0, 127]),
    "large": (GGUFValueType.UINT64, [2**63, 1]),
    "whole": (GGUFValueType.INT32, list(range(-5, 500))),
    "scores": (GGUFValueType.FLOAT32, [0.5, -1e30]),
    "double": (GGUFValueType.FLOAT64, [0.1]),
    "one": (GGUFValueType.STRING, ["alone"]),
}


def written(path: Path, endian: GGUFEndian = GGUFEndian.LITTLE) -> Path:
    writer = GGUFWriter(path, "llama", endianess=endian)
    writer.add_uint32("before", 7)
    for name, (kind, values) in LISTS.items():
        writer.add_key_value(name, values, GGUFValueType.ARRAY, sub_type=kind)
    writer.add_string("after", "the end")
    writer.add_tensor("weights", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("endian", list(GGUFEndian), ids=lambda one: one.name)
def test_it_says_what_the_package_reads(tmp_path: Path, endian: GGUFEndian) -> None:
    path = written(tmp_path / "m.gguf", endian)
    theirs = GGUFReader(str(path))
    wanted = {name: field.contents() for name, field in theirs.fields.items() if field.types}
    found = read_gguf(path)
    assert found.values == wanted
    assert {name: found.values[name] for name in LISTS} == {
        name: [float(np.float32(one)) for one in values] if kind == GGUFValueType.FLOAT32 else values
        for name, (kind, values) in LISTS.items()
    }
    for name, value in wanted.items():
        assert list(map(type, value)) == list(map(type, found.values[name])) if isinstance(value, list) else True
    (tensor,) = found.tensors.values()
    assert (tensor.name, tensor.offset, tensor.shape) == ("weights", theirs.tensors[0].data_offset, (2, 32))


def test_a_list_of_lists_and_an_empty_one_are_as_the_package_reads_them(tmp_path: Path) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def array(kind: int, count: int, content: bytes) -> bytes:
        return struct.pack("<IQ", kind, count) + content

    inner = array(5, 2, struct.pack("<ii", 1, 2)) + array(5, 1, struct.pack("<i", 3))
    lists = {"nested": array(9, 2, inner), "nothing": array(8, 0, b""), "none": array(5, 0, b"")}
    content = b"GGUF" + struct.pack("<IQQ", 3, 0, len(lists))
    content += b"".join(text(name) + struct.pack("<I", 9) + value for name, value in lists.items())
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    wanted = {name: field.contents() for name, field in GGUFReader(str(path)).fields.items() if field.types}
    assert read_gguf(path).values == wanted
    assert wanted["nothing"] == wanted["none"] == []


@pytest.mark.parametrize("count", [4, 6, 10**6, 2**60, 2**64 - 1])
def test_a_list_that_is_shorter_or_longer_than_it_says_is_refused(tmp_path: Path, count: int) -> None:
    path = written(tmp_path / "m.gguf")
    content = path.read_bytes()
    for name in ("texts", "whole"):
        own = len(LISTS[name][1])
        head = name.encode() + struct.pack("<II", 9, LISTS[name][0])
        at = content.index(head + struct.pack("<Q", own)) + len(head)
        path.write_bytes(content[:at] + struct.pack("<Q", count) + content[at + 8 :])
        with pytest.raises(ModelError, match="damaged or cut off"):
            read_gguf(path)


def test_a_text_that_leads_beyond_the_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    content = path.read_bytes()
    at = content.index(struct.pack("<Q", 300) + b"xxx")
    for length in (2**40, 2**63, len(content)):
        path.write_bytes(content[:at] + struct.pack("<Q", length) + content[at + 8 :])
        with pytest.raises(ModelError, match="damaged or cut off"):
            read_gguf(path)
    alone = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQQ", 9, 8, 1, 4)
    path.write_bytes(alone + b"last")
    assert read_gguf(path).values["a"] == ["last"]
    path.write_bytes(alone + b"las")
    with pytest.raises(ModelError, match="damaged or cut off"):
        read_gguf(path)
    for end in range(at - 40, at + 40, 7):
        path.write_bytes(content[:end])
        with pytest.raises(ModelError, match="damaged or cut off"):
            read_gguf(path)
