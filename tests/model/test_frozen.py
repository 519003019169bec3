"""Weights in few bits: codes as a plain reference makes them, bit for bit; adapters as beside the rounded weights."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from instil.data.collate import collate, collate_shared
from instil.errors import ModelError, SettingsError
from instil.model import frozen
from instil.model.decoder import Decoder
from instil.model.fast import narrow
from instil.model.fast.gemm import Linear, pack
from instil.model.files.reader import hub_tensors
from instil.model.frozen import BLOCK, LEVELS, FrozenLinear, QuantType, quantise_base
from instil.model.load import load_decoder
from instil.model.lora import adapters, add_lora, merge
from instil.model.lora_layer import LoraLinear
from instil.model.rounded.weights import round_weights
from instil.records import Encoded
from instil.train.losses import nll_sum
from tests.conftest import tiny_reference
from tests.model.test_lora import FAMILIES, moved, scores

HELD: tuple[QuantType, ...] = ("int8", "nf4")
ROWS = [
    Encoded(tuple(row), (False,) * 3 + (True,) * (len(row) - 3)) for row in ([5, 9, 2, 40, 33], [5, 9, 7, 3, 1, 2, 2])
]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of transformers."""
    path = tmp_path_factory.mktemp(request.param)
    tiny_reference(request.param).save_pretrained(path)
    return path


def reference(weight: Any, held: QuantType) -> tuple[list[int], Any]:
    """Codes, one a weight, and rounded weights: block by block and number by number, in numpy."""
    codes, found = [], []
    flat = weight.reshape(-1)
    for at in range(0, len(flat), BLOCK):
        block = flat[at : at + BLOCK]
        largest = np.abs(block).max()
        scale = np.float32(max(np.float32(largest / np.float32(127 if held == "int8" else 1)), np.finfo("f4").tiny))
        for number in block:
            share = np.float32(number / scale)
            if held == "int8":
                code = int(np.clip(np.rint(share), -127, 127))
                level = np.float32(code)
            else:
                distances = np.abs(np.array(LEVELS, "f4").astype("f8") - float(share))
                code = int(np.argmin(distances))  # the lower of two that are as near
                level = np.float32(LEVELS[code])
            codes.append(code)
            found.append(np.float32(level * scale))
    return codes, np.array(found, "f4").reshape(weight.shape)


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("shape", [(8, 64), (5, 13), (3, 130), (1, 1)])
def test_codes_and_weights_are_those_of_a_plain_reference(held: QuantType, shape: tuple[int, int]) -> None:
    torch.manual_seed(sum(shape))
    layer = Linear(shape[1], shape[0])
    with torch.no_grad():
        layer.weight.normal_(std=0.3)
        layer.weight[0, : min(shape[1], 8)] = 0.0
        layer.weight[-1, -1] = 7.5
    frozen = FrozenLinear(layer, held)
    codes, wanted = reference(layer.weight.detach().numpy(), held)
    stored = frozen.codes_P.numpy()
    found = stored if held == "int8" else np.stack([stored & 15, stored >> 4], 1).reshape(-1)
    assert found[: len(codes)].tolist() == codes
    assert np.array_equal(frozen.weight.numpy(), wanted)
    assert frozen.weight.dtype == torch.float32


@pytest.mark.parametrize(("held", "widest"), [("int8", 0.5 / 127), ("nf4", (1 - 0.6961928009986877) / 2)])
def test_rounding_errs_by_half_a_level_at_most(held: QuantType, widest: float) -> None:
    torch.manual_seed(1)
    layer = Linear(192, 50, bias=False)
    blocks = layer.weight.detach().view(-1, BLOCK)
    error = (FrozenLinear(layer, held).weight.view(-1, BLOCK) - blocks).abs().amax(1) / blocks.abs().amax(1)
    assert 0 < error.max() <= widest * 1.0001
    torch.nn.init.zeros_(layer.weight)
    zeros = FrozenLinear(layer, held)
    assert torch.equal(zeros.weight, layer.weight)
    assert zeros.codes_P.unique().tolist() == [0 if held == "int8" else 7 | 7 << 4]


def test_it_takes_an_eighth_and_a_quarter_of_the_memory() -> None:
    layer = Linear(768, 256)
    numbers = layer.weight.numel()
    assert FrozenLinear(layer, "nf4").nbytes == numbers // 2 + 4 * numbers // BLOCK
    assert FrozenLinear(layer, "int8").nbytes == numbers + 4 * numbers // BLOCK


def beside_rounded(
    folder: Path, held: QuantType, dtype: torch.dtype, targets: tuple[str, ...]
) -> tuple[Decoder, Decoder]:
    """Adapters beside weights in few bits, and the same ones beside the rounded weights, whole."""
    decoder, plain = load_decoder(folder, dtype=dtype), load_decoder(folder, dtype=dtype)
    assert quantise_base(decoder, held) > 0
    with torch.no_grad():
        for name, layer in decoder.named_modules():
            if isinstance(layer, FrozenLinear):
                plain.get_submodule(name).weight.copy_(layer.weight)
    for one in (decoder, plain):
        add_lora(one, rank=3, alpha=5, targets=targets)
        moved(one)
    return decoder, plain


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("targets", [("all",), ("q", "down", "head")])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_losses_and_gradients_are_those_beside_the_rounded_weights(
    folder: Path, held: QuantType, targets: tuple[str, ...], dtype: torch.dtype, near: float
) -> None:
    decoder, plain = beside_rounded(folder, held, dtype, targets)
    for batch in (collate(ROWS, 0), collate_shared(ROWS)):
        losses = []
        for one in (decoder, plain):
            one.zero_grad()
            losses.append(nll_sum(one, batch))
            losses[-1].backward()
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=near)
        theirs = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.requires_grad}
        mine = {name: parameter.grad for name, parameter in decoder.named_parameters() if parameter.requires_grad}
        assert mine.keys() == theirs.keys()
        for name, wanted in theirs.items():
            assert (mine[name] - wanted).abs().max() <= near * wanted.abs().max().clamp_min(1e-9), name
    held_layers = [layer for layer in decoder.modules() if isinstance(layer, FrozenLinear)]
    assert len(held_layers) == 4 * len(decoder.blocks)
    assert decoder.embed.weight.dtype == dtype
    assert torch.equal(decoder.embed.weight, load_decoder(folder, dtype=dtype).embed.weight)


@pytest.mark.parametrize("held", HELD)
def test_merged_is_what_was_trained_and_not_the_exact_model(folder: Path, held: QuantType) -> None:
    decoder, _ = beside_rounded(folder, held, torch.float32, ("q", "down", "head"))
    exact = load_decoder(folder)
    add_lora(exact, rank=3, alpha=5, targets=("q", "down", "head"))
    adapted, other = scores(decoder), scores(moved(exact))
    with pytest.raises(ModelError, match="weights in few bits"):
        list(hub_tensors(decoder))
    pack(decoder)
    merge(decoder)
    largest = adapted.abs().max()
    assert (scores(decoder) - adapted).abs().max() / largest < 1e-5
    assert (other - adapted).abs().max() / largest > 1e-3
    assert {type(layer) for layer in decoder.modules() if isinstance(layer, Linear | FrozenLinear)} == {Linear}
    assert dict(hub_tensors(decoder)).keys() >= dict(hub_tensors(load_decoder(folder))).keys()
    assert all(parameter.requires_grad for parameter in decoder.parameters())


@pytest.mark.parametrize("held", HELD)
def test_bfloat16_products(folder: Path, held: QuantType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What few bits say is made bfloat16 as near as can be, since nothing of it moves."""

    def nearest(weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return weight.to(torch.bfloat16) if out is None else out.copy_(weight)

    monkeypatch.setattr(narrow, "rounded", nearest)
    decoder, plain = beside_rounded(folder, held, torch.float32, ("q", "up"))
    found = []
    for one in (decoder, plain):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nll_sum(one, collate_shared(ROWS))
        loss.backward()
        found.append((loss.item(), next(adapters(one))[2].lora_a.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-2, atol=1e-3)


def test_backward_keeps_no_whole_matrix(folder: Path) -> None:
    decoder, _ = beside_rounded(folder, "nf4", torch.float32, ("q", "down"))
    sizes = {tuple(layer.weight.shape) for layer in decoder.modules() if isinstance(layer, FrozenLinear)}
    kept: list[tuple[int, ...]] = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        nll_sum(decoder, collate(ROWS, 0)).backward()
    assert kept
    assert not sizes & set(kept)


def test_what_cannot_be_is_refused(folder: Path) -> None:
    decoder = load_decoder(folder)
    quantise_base(decoder, "nf4")
    with pytest.raises(SettingsError, match="few bits already"):
        quantise_base(decoder, "nf4")
    with pytest.raises(SettingsError, match="few bits"):
        round_weights(decoder, "int8")
    with pytest.raises(SettingsError, match=r"lora\.dora needs the exact weights"):
        add_lora(decoder, rank=2, dora=True)
    add_lora(decoder, rank=2)
    with pytest.raises(SettingsError, match="have adapters"):
        quantise_base(decoder, "int8")
    copied = copy.deepcopy(decoder)
    assert torch.equal(scores(copied), scores(decoder))
    assert sum(isinstance(layer, LoraLinear) for layer in copied.modules()) == 4 * len(copied.blocks)


@pytest.mark.parametrize("held", HELD)
def test_each_layer_goes_when_it_has_been_replaced(
    held: QuantType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding and merging need one layer beside the model, not a second model."""
    decoder = load_decoder(folder)
    places = [
        (m, leaf) for m in decoder.blocks.modules() for leaf, layer in m.named_children() if type(layer) is Linear
    ]
    old = [weakref.ref(getattr(*place).weight) for place in places]
    alive: list[int] = []
    rounded = frozen._rounded
    monkeypatch.setattr(
        frozen, "_rounded", lambda *args: (alive.append(sum(one() is not None for one in old)), rounded(*args))[1]
    )
    quantise_base(decoder, held)
    assert alive == list(range(len(old), 0, -1))
    add_lora(decoder, rank=2)
    held_before = [weakref.ref(layer) for _, _, layer in adapters(decoder)]
    alive.clear()
    merged = LoraLinear.merged

    def watched(layer: LoraLinear) -> Linear:
        alive.append(sum(one() is not None for one in held_before))
        return merged(layer)

    monkeypatch.setattr(LoraLinear, "merged", watched)
    merge(decoder)
    assert alive == list(range(len(held_before), 0, -1))
