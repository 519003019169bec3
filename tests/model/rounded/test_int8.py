"""Weights in eight bits: near, small, and refused where they cannot be."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

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
from instil.model.lora import add_lora
from instil.model.rounded import int8
from instil.model.rounded.int8 import MOST, Int8Linear, multiplies_bytes
from instil.model.rounded.weights import Weights, round_weights
from instil.records import Encoded
from instil.settings.options import TrainOptions
from instil.train.loop import train
from tests.conftest import single_bytes
from tests.train.test_training import SPECS, decoder


@pytest.fixture(params=["bytes", "bfloat16"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of products, where this processor has both."""
    if request.param == "bfloat16":
        monkeypatch.setattr(int8, "multiplies_bytes", lambda: False)
    elif not multiplies_bytes():
        pytest.skip("this processor does not multiply bytes exactly")
    return str(request.param)


needs_bytes = pytest.mark.skipif(not multiplies_bytes(), reason="this processor does not multiply bytes exactly")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("tokens", "out"), [(1, 32), (9, 32), (3, 50), (2, 1)])
@torch.no_grad()
def test_a_layer_is_near_what_it_was_made_from(tokens: int, out: int, bias: bool, product: str) -> None:
    layer, x = Linear(64, out, bias=bias), torch.randn(tokens, 64)
    small = Int8Linear(layer)
    wanted = layer(x)
    assert float((small(x) - wanted).abs().max()) < 0.03 * float(wanted.abs().max())
    assert small(x).dtype == torch.float32
    if product == "bfloat16":
        assert small.weight_OI is not None
        assert small.weight_OI.dtype == torch.int8
        assert int(small.weight_OI.abs().max()) == 127
    else:
        assert small.packed is not None
        assert small.packed.dtype == torch.int8
        assert small.weight_OI is None
    assert not list(small.parameters())


def test_a_row_of_zeros_stays_one(product: str) -> None:
    layer = Linear(64, 32, bias=False)
    with torch.no_grad():
        layer.weight[3] = 0
    assert not Int8Linear(layer)(torch.randn(2, 64))[:, 3].any()


@needs_bytes
@torch.no_grad()
def test_nothing_but_weights_is_rounded_by_more_than_half_of_a_step_of_sixteen_bits() -> None:
    """The outputs are those of the rounded weights, also of tokens with one large number (outliers), tiny or zero."""
    layer, x = Linear(576, 200), torch.randn(6, 576)
    x[1, 7], x[2], x[3], x[4] = 300.0, 0.0, x[3] * 1e-30, -x[0].abs()
    small = Int8Linear(layer)
    scale_O = layer.weight.abs().amax(1) / 127
    rounded_OI = (layer.weight / scale_O[:, None]).round().double() * scale_O.double()[:, None]
    wanted = x.double() @ rounded_OI.t() + layer.bias.double()
    most_N1 = (rounded_OI.abs().sum(1) * x.double().abs().amax(1, keepdim=True)) * 0.5 / MOST
    assert ((small(x) - wanted).abs() <= 1.01 * most_N1 + 1e-6 * wanted.abs()).all()
    assert torch.equal(small(x)[2], layer.bias)


@needs_bytes
@torch.no_grad()
def test_activations_are_rounded_to_the_nearest() -> None:
    """Cut off instead, each would be half a step too small, which adds up where nothing is negative."""
    layer, x = Linear(576, 200, bias=False), torch.rand(6, 576)
    layer.weight.fill_(0.5)
    too_much = (Int8Linear(layer)(x).double() - 0.5 * x.double().sum(1, keepdim=True)).mean()
    assert abs(float(too_much)) < 0.1 * (0.5 * 576 / MOST)


@needs_bytes
@torch.no_grad()
def test_a_token_does_not_depend_on_those_beside_it() -> None:
    small, x = Int8Linear(Linear(576, 200)), torch.randn(70, 576)
    together = small(x)
    for count in (1, 2, 3, 8, 33):
        assert torch.equal(small(x[:count]), together[:count])


@needs_bytes
@torch.no_grad()
def test_numbers_that_are_none_stay_none_and_harm_no_other_token() -> None:
    small, x = Int8Linear(Linear(64, 32)), torch.randn(4, 64)
    wanted = small(x)
    x[1, 5], x[2, 6] = float("nan"), float("inf")
    found = small(x)
    assert not found[1].isfinite().any()
    assert not found[2].isfinite().any()
    assert torch.equal(found[[0, 3]], wanted[[0, 3]])


def test_sums_that_are_cut_short_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without VNNI, sums of two products end at those of 16 bits."""

    def cut_short(bytes_NI: Tensor, packed: Tensor, scale_O: Tensor, zero_O: Tensor) -> Tensor:
        products_NOI = (
            (bytes_NI.long()[:, None] * packed.long()).unflatten(2, (-1, 2)).sum(3).clamp(-(2**15), 2**15 - 1)
        )
        return (products_NOI.sum(2) - int8.ZERO * packed.long().sum(1)).float()

    def missing(*asked: object) -> Tensor:
        raise NotImplementedError("there is no such kernel")

    asked_again = multiplies_bytes.__wrapped__
    monkeypatch.setattr(int8, "_pack", lambda weight_OI: weight_OI)
    monkeypatch.setattr(int8, "_byte_product", cut_short)
    assert not asked_again()
    monkeypatch.setattr(int8, "_byte_product", missing)
    assert not asked_again()


def wide(family: str) -> Decoder:
    """A tiny decoder whose widths are those of the kernel's blocks."""
    torch.manual_seed(0)
    spec = SPECS[family]
    return Decoder(replace(spec, width=64, head_width=64, mlp_width=128)).eval()


@pytest.mark.parametrize("family", SPECS)
def test_a_decoder_of_eight_bits_answers(family: str, product: str) -> None:
    model = wide(family)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        wanted = model.logits(model(batch_of_ids(ids)))
        round_weights(model, "int8")
        found = model.logits(model(batch_of_ids(ids)))
    assert not any(isinstance(module, Linear) for module in model.modules())
    assert float((found - wanted).abs().max()) < 0.2 * float(wanted.abs().max())
    engine = Engine(model)
    said = generate(model, [[1, 2, 3], [4]], max_new_tokens=5, stop_ids=frozenset(), engine=engine)
    assert [len(one.ids) for one in said] == [5, 5]


@needs_bytes
def test_a_decoder_of_eight_bits_can_be_copied() -> None:
    model, ids = wide("llama"), torch.tensor([[1, 2, 3, 4]])
    round_weights(model, "int8")
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(batch_of_ids(ids)), model(batch_of_ids(ids)))


def test_layers_that_the_kernel_cannot_read_stay() -> None:
    model = decoder("llama").float()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        wanted = model(batch_of_ids(ids))
        round_weights(model, "int8")
        assert torch.equal(model(batch_of_ids(ids)), wanted)


def test_only_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder().to("meta")
    with pytest.raises(SettingsError, match="int8 weights are for the CPU"):
        round_weights(model, "int8")


def _trained(model: Decoder) -> None:
    train(model, Loader([Encoded((1, 2, 3), (False, True, True))], 1, pad_id=0), TrainOptions(epochs=1))


@pytest.mark.parametrize("weights", ["int8", "bf16"])
def test_what_is_for_answering_alone_is_neither_trained_nor_saved_nor_adapted(tmp_path: Path, weights: Weights) -> None:
    """By no way: a folder without the weights of its layers would be found out only when it is read."""
    model = wide("llama")
    round_weights(model, weights)
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
        with pytest.raises(SettingsError, match=rf"held in {weights}, .*for answering alone.*without {weights}"):
            ask()
    assert not list(tmp_path.glob("*.pth")) + list(tmp_path.glob("*.gguf")) + list(tmp_path.glob("saved*"))
    with pytest.raises(SettingsError, match="in few bits"):
        round_weights(model, weights)
