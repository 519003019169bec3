"""Models that cannot be read are refused with what was found and what is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from instil.errors import ModelError
from instil.model.files.peft import load_adapter
from instil.model.files.tensorflow import read_hparams
from instil.model.find import find_model
from instil.model.load import load_decoder
from tests.conftest import tiny_reference
from tests.model.files.gguf_files import write_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_reference("llama").save_pretrained(tmp_path)
    return tmp_path


def change_config(folder: Path, **values: object) -> None:
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, **values}))


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="did you mean smollm2-135m"):
        find_model("smollm2-135")
    with pytest.raises(ModelError, match="no such file"):
        find_model(tmp_path / "none.gguf")


def test_another_architecture(folder: Path) -> None:
    change_config(folder, model_type="mamba")
    with pytest.raises(ModelError, match="'mamba'; read here: gpt2, llama"):
        load_decoder(folder)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"attention_multiplier": 2.0}, "attention_multiplier=2.0"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 8.0}}, "scales its rope"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "lacks 'low_freq_factor'"),
        ({"num_key_value_heads": 4}, "cannot share"),
        ({"vocab_size": 98}, "shape|rows"),
        ({"intermediate_size": 40}, "wants"),
        ({"num_hidden_layers": 3}, "no tensor 'layers.2"),
        ({"num_hidden_layers": 1}, "not part of a llama model"),
        ({"hidden_size": "wide"}, "makes no sense"),
    ],
)
def test_a_configuration_that_does_not_fit(folder: Path, values: dict[str, object], says: str) -> None:
    change_config(folder, **values)
    with pytest.raises(ModelError, match=says):
        load_decoder(folder)


def test_an_incomplete_configuration(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="lacks 'num_attention_heads'"):
        load_decoder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        load_decoder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_decoder(folder)


@pytest.mark.parametrize("keep", [0, 3, 100, 5000])
def test_cut_off_safetensors(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="damaged or cut off"):
        load_decoder(folder)


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        load_decoder(folder)


def test_an_index_that_leads_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../evil.safetensors"}}')
    with pytest.raises(ModelError, match="not in the folder"):
        load_decoder(folder)


def test_weights_that_are_not_numbers(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, str(folder / "model.safetensors"))
    with pytest.raises(ModelError, match="not finite"):
        load_decoder(folder)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    with pytest.raises(ModelError, match="not a GGUF file"):
        load_decoder(tmp_path / "page.gguf")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.9, 0.999])
def test_a_gguf_file_cut_off_anywhere(tmp_path: Path, share: float) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny_reference("llama"), path)
    raw = path.read_bytes()
    path.write_bytes(raw[: max(4, int(len(raw) * share))])
    with pytest.raises(ModelError, match="cut off"):
        load_decoder(path)


def test_a_gguf_of_another_architecture(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "rwkv")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="'rwkv'; read here: gpt2, llama"):
        load_decoder(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[" * 100_000, "cannot be read as JSON: nested too deeply"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "a whole number in it has more than 4,300 digits"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b"{", "cannot be read as JSON: Expecting property name"),
    ],
)
def test_json_that_cannot_be_read(folder: Path, text: bytes, says: str, tmp_path: Path) -> None:
    decoder = load_decoder(folder)
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ModelError, match=rf"config\.json: .*{says}"):
        load_decoder(folder)
    (tmp_path / "hparams.json").write_bytes(text)
    with pytest.raises(ModelError, match=rf"hparams\.json: .*{says}"):
        read_hparams(tmp_path / "hparams.json")
    (tmp_path / "adapter_config.json").write_bytes(text)
    with pytest.raises(ModelError, match=says.removeprefix("cannot be read as JSON: ")):
        load_adapter(decoder, tmp_path)
