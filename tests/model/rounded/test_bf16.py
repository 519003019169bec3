"""Weights in bfloat16: near, half as large, and nothing else of the decoder rounded."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch

from instil.errors import SettingsError
from instil.generate import engine as engine_module
from instil.generate.engine import Engine
from instil.generate.prompts import generate
from instil.model.decoder import batch_of_ids
from instil.model.fast.gemm import Linear
from instil.model.rounded import bf16, weights
from instil.model.rounded.bf16 import Bf16Linear, has_onednn
from instil.model.rounded.layer import weights_of
from instil.model.rounded.weights import Weights, round_weights, weights_asked
from tests.model.rounded.test_int8 import wide
from tests.train.test_training import SPECS, decoder

HALF = 2.0**-8  # of what a number in bfloat16 is off by at most, twice


@pytest.fixture(params=["onednn", "torch"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of products, where there are both."""
    if request.param == "torch":
        monkeypatch.setattr(bf16, "has_onednn", lambda: False)
    elif not has_onednn():
        pytest.skip("this torch was built without oneDNN")
    return str(request.param)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs"), [(1, 64, 32), (9, 64, 32), (3, 40, 50), (2, 8, 1), (70, 576, 960)]
)
@torch.no_grad()
def test_a_layer_multiplies_rounded_factors(tokens: int, inputs: int, outputs: int, bias: bool, product: str) -> None:
    layer, x = Linear(inputs, outputs, bias=bias), torch.randn(tokens, inputs)
    rounded_x, rounded_w = x.bfloat16().double(), layer.weight.bfloat16().double()
    wanted = rounded_x @ rounded_w.t()
    most = HALF * wanted.abs() + 1e-5 * (rounded_x.abs() @ rounded_w.abs().t())
    if bias:
        wanted = wanted + layer.bias.double()
    found = Bf16Linear(layer)(x)
    assert found.dtype == torch.float32
    assert ((found - wanted).abs() <= most).all()
    assert torch.equal(x, x.clone())


def test_half_of_the_memory_is_held(product: str) -> None:
    layer = Linear(64, 32)
    made, gone = Bf16Linear(layer), weakref.ref(layer.weight)
    assert made.weight.dtype == torch.bfloat16
    assert not list(made.parameters())
    del layer
    assert gone() is None


@pytest.mark.parametrize("family", SPECS)
def test_a_decoder_of_bfloat16_answers(family: str, product: str) -> None:
    model, ids = decoder(family).float().eval(), torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        wanted = model.logits(model(batch_of_ids(ids)))
        round_weights(model, "bf16")
        found = model.logits(model(batch_of_ids(ids)))
        assert torch.equal(copy.deepcopy(model)(batch_of_ids(ids)), model(batch_of_ids(ids)))
    assert found.dtype == torch.float32
    assert not any(isinstance(module, Linear) for module in model.modules())
    apart = float((found - wanted).abs().max() / wanted.abs().max())
    assert 0 < apart < 0.05
    said = generate(model, [[1, 2, 3], [4]], max_new_tokens=5, stop_ids=frozenset(), engine=Engine(model))
    assert [len(one.ids) for one in said] == [5, 5]


@pytest.mark.parametrize(("held", "alone"), [("fp32", True), ("int8", True), ("bf16", False)])
def test_near_ties_are_decided_alone_only_where_that_says_more(
    held: Weights, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row with a near tie would take a pass of its own, and in bfloat16 a tenth of all tokens are such."""
    monkeypatch.setattr(engine_module, "CLOSE", 1e9)
    model = wide("llama")
    round_weights(model, held)
    assert weights_of(model) == held
    engine = Engine(model)
    said = generate(model, [[1, 2, 3], [4]], max_new_tokens=5, stop_ids=frozenset(), engine=engine)
    assert [len(one.ids) for one in said] == [5, 5]
    assert (engine.recomputed == 10) == alone
    assert (engine.recomputed == 0) != alone


def test_embedding_norms_and_the_cache_stay_in_float32() -> None:
    model = decoder("llama").float()
    round_weights(model, "bf16")
    assert {one.dtype for one in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("gain", "said"), [(0.5, True), (1.9, False)])
def test_that_this_processor_is_no_faster_so_is_said(monkeypatch: pytest.MonkeyPatch, gain: float, said: bool) -> None:
    monkeypatch.setattr(weights, "narrow_gain", lambda: gain)
    model = decoder("llama").float()
    round_weights(model, "bf16")
    assert any("no units for bfloat16" in note for note in model.notes) == said


def test_how_weights_are_held_is_one_of_three() -> None:
    model, asked = decoder("llama").float(), torch.tensor([[1, 2, 3]])
    before = model(batch_of_ids(asked))
    round_weights(model, "fp32")
    assert torch.equal(model(batch_of_ids(asked)), before)
    assert [weights_asked(int8=one, bf16=other) for one, other in ((False, False), (True, False), (False, True))] == [
        "fp32",
        "int8",
        "bf16",
    ]
    with pytest.raises(SettingsError, match="two ways to hold the same weights"):
        weights_asked(int8=True, bf16=True)
    with pytest.raises(SettingsError, match="bf16 weights are for the CPU"):
        round_weights(decoder().to("meta"), "bf16")
