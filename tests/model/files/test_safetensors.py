"""Model files are written tensor by tensor, as the `safetensors` package would write them, from views of any kind."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from instil.errors import ModelError
from instil.model.decoder import Decoder
from instil.model.files.reader import hub_tensors
from instil.model.files.safetensors import SafetensorsFile, write_safetensors
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
