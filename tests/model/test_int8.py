"""Weights in eight bits: near, small, and refused where they cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from instil.assistant.folder import export_folder
from instil.data.loader import Loader
from instil.data.templates import template_named
from instil.errors import SettingsError
from instil.generate.engine import Engine
from instil.generate.prompts import generate
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.fast.gemm import Linear
from instil.model.files.folder import save_decoder
from instil.model.files.gguf_writer import write_gguf
from instil.model.files.peft import load_adapter
from instil.model.files.pth import save_pth
from instil.model.frozen import quantise_base
from instil.model.int8 import Int8Linear, quantise
from instil.model.lora import add_lora
from instil.records import Encoded
from instil.settings.options import TrainOptions
from instil.train.loop import train
from tests.conftest import single_bytes
from tests.train.test_training import SPECS, decoder


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("tokens", "out"), [(1, 32), (9, 32), (3, 50), (2, 1)])
def test_a_layer_is_near_what_it_was_made_from(tokens: int, out: int, bias: bool) -> None:
    layer, x = Linear(64, out, bias=bias), torch.randn(tokens, 64)
    small = Int8Linear(layer)
    wanted = layer(x)
    assert float((small(x) - wanted).detach().abs().max()) < 0.03 * float(wanted.detach().abs().max())
    assert small(x).dtype == torch.float32
    assert small.weight_OI.dtype == torch.int8
    assert int(small.weight_OI.abs().max()) == 127
    assert not list(small.parameters())


def test_a_row_of_zeros_stays_one() -> None:
    layer = Linear(64, 32, bias=False)
    with torch.no_grad():
        layer.weight[3] = 0
    assert not Int8Linear(layer)(torch.randn(2, 64))[:, 3].any()


def wide(family: str) -> Decoder:
    """A tiny decoder whose widths are those of the kernel's blocks."""
    torch.manual_seed(0)
    spec = SPECS[family]
    return Decoder(replace(spec, width=64, head_width=64, mlp_width=128)).eval()


@pytest.mark.parametrize("family", SPECS)
def test_a_decoder_of_eight_bits_answers(family: str) -> None:
    model = wide(family)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        wanted = model.logits(model(batch_of_ids(ids)))
        quantise(model)
        found = model.logits(model(batch_of_ids(ids)))
    assert not any(isinstance(module, Linear) for module in model.modules())
    assert float((found - wanted).abs().max()) < 0.2 * float(wanted.abs().max())
    engine = Engine(model)
    said = generate(model, [[1, 2, 3], [4]], max_new_tokens=5, stop_ids=frozenset(), engine=engine)
    assert [len(one.ids) for one in said] == [5, 5]


def test_layers_that_the_kernel_cannot_read_stay() -> None:
    model = decoder("llama").float()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        wanted = model(batch_of_ids(ids))
        quantise(model)
        assert torch.equal(model(batch_of_ids(ids)), wanted)


def test_only_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder().to("meta")
    with pytest.raises(SettingsError, match="int8 weights are for the CPU"):
        quantise(model)


def _trained(model: Decoder) -> None:
    train(model, Loader([Encoded((1, 2, 3), (False, True, True))], 1, pad_id=0), TrainOptions(epochs=1))


def test_what_is_for_answering_alone_is_neither_trained_nor_saved_nor_adapted(tmp_path: Path) -> None:
    """By no way: a folder without the weights of its layers would be found out only when it is read."""
    model = wide("llama")
    quantise(model)
    folder = tmp_path / "saved"
    tokenizer, template = single_bytes(), template_named("alpaca")
    for ask in (
        lambda: _trained(model),
        lambda: add_lora(model, rank=2),
        lambda: load_adapter(model, tmp_path),
        lambda: quantise_base(model, "nf4"),
        lambda: export_folder(model, tokenizer, template, folder),
        lambda: save_decoder(model, tmp_path, eos_id=1),
        lambda: save_pth(model, tmp_path / "model.pth"),
        lambda: write_gguf(model, {}, tmp_path / "model.gguf", lambda file: None),
    ):
        with pytest.raises(SettingsError, match=r"eight bits.*for answering alone.*without int8"):
            ask()
    assert not list(tmp_path.glob("*.pth")) + list(tmp_path.glob("*.gguf")) + list(tmp_path.glob("saved*"))
    with pytest.raises(SettingsError, match="in few bits"):
        quantise(model)
