"""Weights in eight bits: near, small, and refused where they cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from instil.errors import SettingsError
from instil.generate.engine import Engine
from instil.generate.prompts import generate
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.fast.gemm import Linear
from instil.model.int8 import Int8Linear, quantise
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
