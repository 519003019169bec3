"""Model files are written tensor by tensor, as the `safetensors` package would write them, from views of any kind."""

from __future__ import annotations

import errno
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from instil.errors import ModelError
from instil.model.decoder import Decoder
from instil.model.files.folder import save_decoder
from instil.model.files.reader import hub_tensors
from instil.model.files.safetensors import LINE, SafetensorsFile, write_safetensors
from instil.model.load import load_decoder
from tests.train.test_training import SPECS


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    tensors = {
        "narrow": torch.arange(5).to(torch.bfloat16),  # odd and first: what follows must still begin at its multiple
        "turned": base.T,
        "cut": base[1:3, 2:5],
        "repeated": torch.ones(1, 3).expand(4, 3),
        "wide": base.double() / 3,
        "half": base.half(),
        "number": torch.tensor(7.5),
        "nothing": torch.zeros(0, 3),
        "trained": torch.nn.Parameter(base[:, ::2]),
    }
    path = tmp_path / "all.safetensors"
    write_safetensors(path, tensors.items())
    theirs, ours = load_file(path), SafetensorsFile(path)
    assert theirs.keys() == ours.names() == tensors.keys()
    for name, wanted in tensors.items():
        for found in (theirs[name], ours.get(name)):
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted.detach()), name
    with safe_open(str(path), framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_a_name_comes_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two tensors are named 'a'"):
        write_safetensors(tmp_path / "x", [("a", torch.ones(1)), ("a", torch.ones(2))])
    assert not (tmp_path / "x").exists()


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda *args: Full())
    with pytest.raises(OSError, match="No space left"):
        write_safetensors(tmp_path / "x", [("a", torch.ones(1))])


@pytest.mark.parametrize("family", SPECS)
def test_no_second_model_is_made_to_be_saved(family: str) -> None:
    """What goes into the file are views of the weights, however they lie in it."""
    decoder = Decoder(SPECS[family])
    own = {parameter.untyped_storage().data_ptr() for parameter in decoder.parameters()}
    added = SPECS[family].family == "gemma3"  # its norms are stored otherwise, one at a time
    by_head = "query_key_value"  # in another order, one at a time
    for name, tensor in hub_tensors(decoder):
        copied = (added and tensor.dim() == 1) or by_head in name
        assert tensor.untyped_storage().data_ptr() in own or copied, name


def test_a_file_that_must_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, [("a", torch.ones(1))])

    def refused(*args: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ModelError, match=r"x\.safetensors: cannot be read: Permission denied"):
        SafetensorsFile(path)


def lies_in(tensor: torch.Tensor, path: Path) -> bool:
    """Whether its numbers are those of a map of the file."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
    return any(start <= tensor.data_ptr() < end for start, end in spans)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma2"])
def test_weights_that_are_left_in_their_file_are_the_same(tmp_path: Path, family: str) -> None:
    torch.manual_seed(0)
    save_decoder(Decoder(SPECS[family]), tmp_path, eos_id=0)
    read, left = load_decoder(tmp_path), load_decoder(tmp_path, mapped=True)
    for name, tensor in read.named_parameters():
        assert torch.equal(tensor, left.get_parameter(name)), name


def test_all_of_a_model_that_was_written_here_can_be_left_in_its_file(tmp_path: Path) -> None:
    """Joined weights, too: their parts were written one after the other."""
    path = tmp_path / "model.safetensors"
    spec = replace(SPECS["llama"], width=64, heads=4, kv_heads=2, head_width=16, mlp_width=96)
    save_decoder(Decoder(spec), tmp_path, eos_id=0)
    assert all(lies_in(tensor, path) for tensor in load_decoder(tmp_path, mapped=True).parameters())
    assert not any(lies_in(tensor, path) for tensor in load_decoder(tmp_path).parameters())
    half = load_decoder(tmp_path, mapped=True, dtype=torch.bfloat16)
    assert not any(lies_in(tensor, path) for tensor in half.parameters())


def test_what_is_left_in_a_file_is_written_to_in_memory_alone(tmp_path: Path) -> None:
    """And a file that is replaced takes nothing from those who read the old one, not even by its own model."""
    torch.manual_seed(0)
    save_decoder(Decoder(SPECS["llama"]), tmp_path, eos_id=0)
    path = tmp_path / "model.safetensors"
    before = path.read_bytes()
    left = load_decoder(tmp_path, mapped=True)
    wanted = [tensor.detach().clone() for tensor in left.parameters()]
    save_decoder(left, tmp_path, eos_id=0)
    assert path.read_bytes() == before
    assert all(torch.equal(tensor, its) for tensor, its in zip(left.parameters(), wanted, strict=True))
    with torch.no_grad():
        for tensor in left.parameters():
            tensor.add_(1)
    assert path.read_bytes() == before
    path.unlink()
    assert all(torch.equal(tensor, its + 1) for tensor, its in zip(left.parameters(), wanted, strict=True))


@pytest.mark.parametrize("shift", [0, 8])
def test_what_lies_otherwise_is_not_left_there(tmp_path: Path, shift: int) -> None:
    path = tmp_path / "one.safetensors"
    rows = torch.arange(64.0).view(4, 16)
    tensors = {"a": rows, "b": rows + 1, "odd": rows[0, :3].clone(), "c": rows, "narrow": rows.half()}
    write_safetensors(path, tensors.items())
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    path.write_bytes(
        (length + shift).to_bytes(8, "little") + content[8 : 8 + length] + b" " * shift + content[8 + length :]
    )
    file = SafetensorsFile(path)
    assert (8 + length) % LINE == 0 and file.get("b").equal(rows + 1)
    both = file.mapped(["a", "b"], torch.float32)
    if shift:
        assert both is None
        return
    assert both is not None and both.equal(torch.cat([rows, rows + 1]))
    for names in (["b", "a"], ["a", "odd"], ["a", "c"], ["c"], ["narrow"], ["a", "narrow"]):
        assert file.mapped(names, torch.float32) is None, names
    again = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[: length + 100])
    with pytest.raises(ModelError, match="cut off"):
        again.mapped(["a", "b"], torch.float32)
