"""Weights that stay in their files until they are asked for: the same numbers as when all are read at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from instil.errors import ModelError
from instil.model.decoder import Decoder
from instil.model.elsewhere import load_elsewhere
from instil.model.files.folder import save_decoder
from instil.model.files.pth import save_pth
from instil.model.files.safetensors import SafetensorsFile, write_safetensors
from instil.model.files.shards import write_shards
from instil.model.load import load_decoder
from instil.model.resize import grow_vocabulary
from tests.conftest import tiny_reference
from tests.model.files.gguf_files import write_gguf
from tests.model.files.tensorflow_files import write_model
from tests.model.test_parity import FAMILIES

WORLD = 3


def parts_of(length: int) -> Iterator[slice]:
    each = -(-length // WORLD)
    yield from (slice(min(length, n * each), min(length, n * each + each)) for n in range(WORLD))


def assert_same_weights(found: Decoder, wanted: Decoder) -> None:
    """Each as a whole, and in parts, of which some may be empty."""
    assert found.elsewhere is not None
    assert found.spec == wanted.spec
    values = dict(wanted.named_parameters())
    assert dict(found.named_parameters()).keys() == values.keys()
    for name, one in found.named_parameters():
        assert one.is_meta
        assert one.shape == values[name].shape
        assert torch.equal(found.elsewhere.parameter(name), values[name]), name
        parts = [found.elsewhere.parameter(name, rows) for rows in parts_of(len(one))]
        assert torch.equal(torch.cat(parts), values[name]), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tied: bool, tmp_path: Path) -> None:
    tiny_reference(family, tied=tied).save_pretrained(tmp_path)
    assert_same_weights(load_elsewhere(tmp_path), load_decoder(tmp_path))


@pytest.mark.parametrize("kind", ["gguf", "pth", "openai", "shards"])
def test_every_form_of_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "gguf":
        write_gguf(tiny_reference("llama"), path)
    elif kind == "openai":
        path.mkdir()
        write_model(tiny_reference("gpt2"), path)
    else:
        theirs = tiny_reference("gpt2", n_head=1, n_embd=64) if kind == "pth" else tiny_reference("llama")
        theirs.save_pretrained(tmp_path / "theirs")
        decoder = load_decoder(tmp_path / "theirs")
        if kind == "pth":
            path = tmp_path / "one.pth"
            save_pth(decoder, path)
        else:
            path.mkdir()
            save_decoder(decoder, path, eos_id=1)
            file = SafetensorsFile(path / "model.safetensors")
            tensors = [(name, file.get(name)) for name in sorted(file.names())]
            (path / "model.safetensors").unlink()
            write_shards(path, tensors, 6000)
            assert len(list(path.glob("model-*"))) > 2
    assert_same_weights(load_elsewhere(path), load_decoder(path))


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_that_grows_and_a_head_that_is_untied(tied: bool, tmp_path: Path) -> None:
    tiny_reference("llama", tied=tied).save_pretrained(tmp_path)
    wanted, found = load_decoder(tmp_path), load_elsewhere(tmp_path, vocab_size=101)
    grow_vocabulary(wanted, 101)
    assert_same_weights(found, wanted)
    wanted.untie()
    found.untie()
    assert_same_weights(found, wanted)


def test_no_more_of_a_file_is_read_than_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_reference("llama").save_pretrained(tmp_path)
    decoder, read = load_elsewhere(tmp_path), []
    whole = SafetensorsFile._read

    def notes(self: SafetensorsFile, name: str, shape: tuple[int, ...], offset: int) -> torch.Tensor:
        read.append((name, shape[0]))
        return whole(self, name, shape, offset)

    monkeypatch.setattr(SafetensorsFile, "_read", notes)
    assert decoder.elsewhere is not None
    heads = decoder.spec.heads * decoder.spec.head_width
    found = decoder.elsewhere.parameter("blocks.0.attention.qkv.weight", slice(1, heads + 2))
    assert [(name.split(".")[-2], rows) for name, rows in read] == [("q_proj", heads - 1), ("k_proj", 2)]
    monkeypatch.undo()
    assert torch.equal(found, load_decoder(tmp_path).get_parameter("blocks.0.attention.qkv.weight")[1 : heads + 2])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3"])
def test_it_is_saved_as_one_that_is_here(family: str, tmp_path: Path) -> None:
    tiny_reference(family).save_pretrained(tmp_path / "theirs")
    for name, load in (("here", load_decoder), ("elsewhere", load_elsewhere)):
        (tmp_path / name).mkdir()
        save_decoder(load(tmp_path / "theirs"), tmp_path / name, eos_id=1)
    files = sorted(file.name for file in (tmp_path / "here").iterdir())
    assert sorted(file.name for file in (tmp_path / "elsewhere").iterdir()) == files
    for file in files:
        assert (tmp_path / "elsewhere" / file).read_bytes() == (tmp_path / "here" / file).read_bytes(), file


def test_what_is_wrong_with_the_files(tmp_path: Path) -> None:
    tiny_reference("llama", tied=False).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    file = SafetensorsFile(path)
    own = {name: file.get(name) for name in file.names()}

    def write(**changed: torch.Tensor | None) -> None:
        tensors = {**own, **{name.replace("__", "."): value for name, value in changed.items()}}
        write_safetensors(path, [(name, value) for name, value in tensors.items() if value is not None])

    write(model__norm__weight=None)
    with pytest.raises(ModelError, match=r"no tensor 'norm\.weight' for norm\.weight"):
        load_elsewhere(tmp_path)
    write(model__other__weight=own["model.norm.weight"])
    with pytest.raises(ModelError, match=r"tensors model\.other\.weight are not part|other\.weight are not part"):
        load_elsewhere(tmp_path)
    write(model__norm__weight=torch.ones(3))
    found = load_elsewhere(tmp_path).elsewhere
    assert found is not None
    with pytest.raises(ModelError, match=r"norm\.weight wants shape"):
        found.parameter("norm.weight", slice(0, 2))
    spoiled = own["lm_head.weight"].clone()
    spoiled[-1, 0] = torch.nan
    write(lm_head__weight=spoiled)
    found = load_elsewhere(tmp_path).elsewhere
    assert found is not None
    found.parameter("head.weight", slice(0, 2))
    with pytest.raises(ModelError, match="not finite numbers"):
        found.parameter("head.weight", slice(2, len(spoiled)))
