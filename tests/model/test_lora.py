"""Adapters: as if the sum were one matrix, in losses and gradients; counted as the book counts; as PEFT has them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from instil.data.collate import collate, collate_shared
from instil.errors import ModelError, SettingsError
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.families.gpt2 import gpt2_spec
from instil.model.fast.gemm import Linear, backend
from instil.model.files.peft import BASE_HEAD, WEIGHTS, load_adapter, save_adapter
from instil.model.files.reader import hub_tensors
from instil.model.files.safetensors import SafetensorsFile
from instil.model.load import blank_decoder, load_decoder
from instil.model.lora import adapters, add_lora, merge, trained_parameters
from instil.model.lora_layer import LoraLinear
from instil.records import Encoded
from instil.train.losses import nll_sum
from tests.conftest import tiny_reference
from tests.model.family_cases import CASES

FAMILIES = ("gpt2", "llama", "gemma3", "qwen3", "phi3", "gpt_neox")  # unlike in how they hold their matrices
PROJECTIONS = {  # of transformers, where they are not q_proj, v_proj and up_proj
    "gpt2": ["c_attn", "c_fc"],
    "phi3": ["qkv_proj", "gate_up_proj"],
    "gpt_neox": ["query_key_value", "dense_h_to_4h"],
    "starcoder2": ["q_proj", "v_proj", "c_fc"],
}
IDS = torch.tensor([[5, 9, 2, 40, 33, 7, 61, 3], [8, 1, 90, 77, 12, 4, 4, 6]])


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of transformers."""
    path = tmp_path_factory.mktemp(request.param)
    tiny_reference(request.param).save_pretrained(path)
    return path


def moved(decoder: Decoder, seed: int = 7) -> Decoder:
    """The same with adapters that have been somewhere."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for *_, layer in adapters(decoder):
            layer.lora_a.normal_(std=0.1)
            for n in range(len(layer.rows)):
                layer.block(n).normal_(std=0.1)
            for length in layer.lora_magnitude:
                length.mul_(1.3)
    return decoder


def scores(decoder: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return decoder.logits(decoder(batch_of_ids(IDS)))


def test_the_count_is_the_books() -> None:
    """406,286,336 parameters with a head of its own; 7,898,384 trained at rank 16 (exercise 7.4)."""
    spec = gpt2_spec(
        vocab_size=50257, width=1024, layers=24, heads=16, mlp_width=4096, context=1024, norm_eps=1e-5, tied=True
    )
    decoder = blank_decoder(spec)
    decoder.untie()
    assert decoder.parameter_count == 406_286_336
    assert add_lora(decoder, rank=16, alpha=16, targets=("all", "head"), scaling="alpha") == 7_898_384


def test_nothing_changes_until_they_are_trained(folder: Path) -> None:
    plain, decoder = load_decoder(folder), load_decoder(folder)
    assert add_lora(decoder, rank=4, targets=("all", "head")) == trained_parameters(decoder) > 0
    assert torch.equal(scores(decoder), scores(plain))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_losses_and_gradients_are_those_of_the_whole_matrix(folder: Path, dora: bool, layout: str) -> None:
    """In float64 to 1e-12: against dense weights that are made from the adapters by autograd."""
    targets = ("all",) if dora else ("all", "head")
    decoder = load_decoder(folder, dtype=torch.float64)
    add_lora(decoder, rank=3, alpha=5, targets=targets, dora=dora)
    moved(decoder)
    rows = [
        Encoded(tuple(row), (False,) * 3 + (True,) * (len(row) - 3))
        for row in ([5, 9, 2, 40, 33], [5, 9, 7, 3, 1, 2, 2])
    ]
    batch = collate_shared(rows) if layout == "shared" else collate(rows, 0)

    reference = copy.deepcopy(decoder)
    overrides = {}
    for name, layer in [(n, m) for n, m in reference.named_modules() if isinstance(m, LoraLinear)]:
        weight = layer.weight.detach().clone()
        pieces = list(torch.split(weight, 1))
        for n, part in enumerate(layer.rows):
            whole = weight[part] + layer.scales[n] * layer.block(n) @ layer.lora_a[layer.columns[n]]
            if dora:
                whole = whole * (layer.lora_magnitude[n] / torch.linalg.vector_norm(whole.detach(), dim=1))[:, None]
            pieces[part] = list(torch.split(whole, 1))
        overrides[name] = torch.cat(pieces)
    plain = load_decoder(folder, dtype=torch.float64)
    if "head" in targets and plain.spec.tied:
        plain.untie()
    with_weights = {f"{name}.weight": value for name, value in overrides.items()}

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain

        def forward(self) -> torch.Tensor:
            return nll_sum(plain, batch)

    wanted = torch.func.functional_call(Both(), {f"inner.{k}": v for k, v in with_weights.items()}, ())
    wanted.backward()
    found = nll_sum(decoder, batch)
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    theirs = dict(reference.named_parameters())
    checked = 0
    for name, parameter in decoder.named_parameters():
        if parameter.requires_grad:
            checked += 1
            assert parameter.grad is not None, name
            scale = theirs[name].grad.abs().max().clamp_min(1e-12)
            assert ((parameter.grad - theirs[name].grad).abs().max() / scale) < 1e-10, name
        else:
            assert parameter.grad is None, name
    assert checked > 8


def test_merged_is_adapted_and_not_the_base(folder: Path) -> None:
    for dora, targets in ((False, ("all", "head")), (True, ("all",)), (False, ("q", "v"))):
        base, decoder = scores(load_decoder(folder)), load_decoder(folder)
        add_lora(decoder, rank=4, targets=targets, dora=dora)
        adapted = scores(moved(decoder))
        merge(decoder)
        assert not list(adapters(decoder))
        largest = adapted.abs().max()
        assert (scores(decoder) - adapted).abs().max() / largest < 1e-5
        assert (scores(decoder) - base).abs().max() / largest > 1e-2
        assert all(parameter.requires_grad for parameter in decoder.parameters())


@pytest.mark.parametrize(("how", "targets"), [
    ({}, ("all",)), ({"dora": True}, ("all",)), ({}, ("v", "down")), ({}, ("all", "head")),
])  # fmt: skip
def test_peft_opens_what_is_written(
    folder: Path, tmp_path: Path, how: dict[str, Any], targets: tuple[str, ...]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    decoder = load_decoder(folder)
    if targets[-1] == "head" and decoder.spec.tied:
        pytest.skip("peft and a tied head are another matter")
    add_lora(decoder, rank=3, alpha=6, targets=targets, **how)
    save_adapter(moved(decoder), tmp_path / "adapter", str(folder))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter").eval()
    with torch.inference_mode():
        wanted = theirs(IDS).logits.flatten(0, 1)
    assert (scores(decoder) - wanted).abs().max() / wanted.abs().max() < 1e-5
    again = load_decoder(folder)
    load_adapter(again, tmp_path / "adapter")
    assert (scores(again) - scores(decoder)).abs().max() / wanted.abs().max() < 1e-6


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"0.*(c_attn|q_proj|qkv_proj|query_key_value)": 2}},
        {"alpha_pattern": {"0.*(c_attn|q_proj|up_proj|qkv_proj|query_key_value)": 0}},
    ],
)
def test_what_peft_writes_is_read(folder: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    config = LoraConfig(
        r=4, lora_alpha=10, target_modules=peft_names(model), task_type="CAUSAL_LM", init_lora_weights=False, **how
    )
    theirs = get_peft_model(model, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    with torch.inference_mode():
        wanted = theirs(IDS).logits.flatten(0, 1)
    decoder = load_decoder(folder)
    load_adapter(decoder, tmp_path / "adapter")
    assert (scores(decoder) - wanted).abs().max() / wanted.abs().max() < 1e-5
    save_adapter(decoder, tmp_path / "again", "x")  # each with its own rank and scale
    again = load_decoder(folder)
    load_adapter(again, tmp_path / "again")
    assert (scores(again) - wanted).abs().max() / wanted.abs().max() < 1e-5
    with pytest.raises(ModelError, match="has adapters already"):
        load_adapter(again, tmp_path / "again")
    with pytest.raises(ModelError, match="merge them first"):
        list(hub_tensors(again))


def peft_names(model: Any) -> list[str]:
    return PROJECTIONS.get(model.config.model_type, ["q_proj", "v_proj", "up_proj"])


@pytest.mark.parametrize("family", sorted(CASES.keys() - set(FAMILIES)))
def test_adapters_of_every_family_go_to_peft_and_come_back(family: str, tmp_path: Path) -> None:
    for ours, wanted in through_peft(family, tmp_path):
        assert (ours - wanted).abs().max() / wanted.abs().max() < 1e-5


def through_peft(family: str, path: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits here and with PEFT, of an adapter that is written here, and of one that PEFT has written."""
    from peft import LoraConfig, PeftModel, get_peft_model

    model = tiny_reference(family)
    model.save_pretrained(path / "base")
    decoder = load_decoder(path / "base")
    add_lora(decoder, rank=3, targets=("all",))
    save_adapter(moved(decoder), path / "ours", "x")
    theirs = PeftModel.from_pretrained(model, path / "ours").eval()
    with torch.inference_mode():
        yield scores(decoder), theirs(IDS).logits.flatten(0, 1)
    config = LoraConfig(r=4, target_modules=peft_names(model), task_type="CAUSAL_LM", init_lora_weights=False)
    theirs = get_peft_model(tiny_reference(family), config).eval()
    theirs.save_pretrained(path / "theirs")
    again = load_decoder(path / "base")
    load_adapter(again, path / "theirs")
    with torch.inference_mode():
        yield scores(again), theirs(IDS).logits.flatten(0, 1)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_that_peft_saves_beside_its_adapter(
    tmp_path: Path, family: str, tied: bool, dora: bool, kind: torch.dtype
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for name, seed in (("base", 0), ("other", 1)):
        tiny_reference(family, tied=tied, seed=seed).save_pretrained(tmp_path / name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=kind)
    names = [peft_names(model)[0], "lm_head"]
    config = LoraConfig(r=4, target_modules=names, use_dora=dora, task_type="CAUSAL_LM", init_lora_weights=False)
    theirs = get_peft_model(model, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    assert BASE_HEAD in SafetensorsFile(tmp_path / "adapter" / WEIGHTS).names()
    decoder = load_decoder(tmp_path / "base")
    load_adapter(decoder, tmp_path / "adapter")
    if kind == torch.float32:
        with torch.inference_mode():
            wanted = theirs(IDS).logits.flatten(0, 1)
        assert (scores(decoder) - wanted).abs().max() / wanted.abs().max() < 1e-5
    with pytest.raises(ModelError, match=r"lm_head\.base_layer\.weight.* differs from it in 97 of 97 rows.*merge them"):
        load_adapter(load_decoder(tmp_path / "other"), tmp_path / "adapter")
    wide = tiny_reference(family, tied=tied, vocab_size=99)
    wide.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"shape \[97, \d+\]; wanted this model's own head, \[99, \d+\]"):
        load_adapter(load_decoder(tmp_path / "other"), tmp_path / "adapter")


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_that_peft_has_saved_again(tmp_path: Path, tied: bool) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tiny_reference("llama", tied=tied).save_pretrained(tmp_path / "base")
    decoder = load_decoder(tmp_path / "base")
    add_lora(decoder, rank=3, targets=("q", "head"))
    save_adapter(moved(decoder), tmp_path / "ours", "x")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    PeftModel.from_pretrained(model, tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = load_decoder(tmp_path / "base")
    load_adapter(again, tmp_path / "theirs")
    assert torch.equal(scores(again), scores(decoder))


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    tiny_reference("llama").save_pretrained(tmp_path / "llama")
    tiny_reference("gpt2").save_pretrained(tmp_path / "gpt2")
    decoder = load_decoder(tmp_path / "llama")
    add_lora(decoder, rank=2)
    save_adapter(decoder, tmp_path / "adapter", "x")
    with pytest.raises(ModelError, match="another model's adapter"):
        load_adapter(load_decoder(tmp_path / "gpt2"), tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"adapter_config\.json: cannot be read"):
        load_adapter(load_decoder(tmp_path / "gpt2"), tmp_path)
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    for change, words in (
        ({"peft_type": "IA3"}, "type 'IA3'"), ({"bias": "all"}, "bias='all' is not implemented"),
        ({"init_lora_weights": "pissa"}, "changes the base model"),
        ({"alora_invocation_tokens": [7]}, "not implemented"),
        ({"lora_alpha": None}, "cannot be read"), ({"lora_alpha": float("nan")}, "is nan"),
        ({"alpha_pattern": {"(": 3}}, "cannot be read"), ({"alpha_pattern": ["q"]}, "cannot be read"),
        ({"use_dora": True}, "wanted lora_A, lora_B, lora_magnitude_vector"),
        ({"lora_alpha": 10**400}, "cannot be read"), ({"alpha_pattern": {"a{99999999999}": 3}}, "cannot be read"),
    ):  # fmt: skip
        file.write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelError, match=words):
            load_adapter(load_decoder(tmp_path / "llama"), tmp_path / "adapter")
    file.write_text("[" * 100_000)
    with pytest.raises(ModelError, match="nested too deeply"):
        load_adapter(load_decoder(tmp_path / "llama"), tmp_path / "adapter")


def test_a_row_of_zeros_stays_zero_with_dora(folder: Path) -> None:
    decoder = load_decoder(folder)
    with torch.no_grad():
        decoder.blocks[0].mlp.down.weight[3] = 0
    base = scores(decoder)
    add_lora(decoder, rank=2, dora=True)
    assert torch.allclose(scores(decoder), base, atol=1e-4)
    merge(decoder)
    assert torch.allclose(scores(decoder), base, atol=1e-4)


def test_targets_and_ranks_that_cannot_be_are_refused(folder: Path) -> None:
    decoder = load_decoder(folder)
    with pytest.raises(SettingsError, match=r"no projection is named 'q_prok'; here are all, (.*, )?q, "):
        add_lora(decoder, targets=("q_prok",))
    with pytest.raises(SettingsError, match=r"lora\.targets is empty"):
        add_lora(decoder, targets=())
    with pytest.raises(SettingsError, match="exceeds the narrowest matrix"):
        add_lora(decoder, rank=200)
    with pytest.raises(SettingsError, match="not made for the head"):
        add_lora(decoder, rank=2, targets=("all", "head"), dora=True)
    assert all(parameter.requires_grad for parameter in decoder.parameters())
    add_lora(decoder, rank=2)
    with pytest.raises(SettingsError, match="has adapters already"):
        add_lora(decoder, rank=2)


def test_scalings() -> None:
    for scaling, scale in (("alpha/rank", 2.0), ("alpha/sqrt(rank)", 4.0), ("alpha", 8.0)):
        decoder = Decoder(gpt2_spec(
            vocab_size=11, width=8, layers=1, heads=2, mlp_width=12, context=16, norm_eps=1e-5, tied=True
        ))  # fmt: skip
        add_lora(decoder, rank=4, alpha=8, scaling=scaling)  # type: ignore[arg-type]
        assert all(set(layer.scales) == {scale} for *_, layer in adapters(decoder))


def test_the_first_values_depend_on_the_seed_alone(folder: Path) -> None:
    def drawn(seed: int) -> torch.Tensor:
        decoder = load_decoder(folder)
        torch.manual_seed(seed + 99)
        add_lora(decoder, rank=2, seed=seed)
        return torch.cat([layer.lora_a.flatten() for *_, layer in adapters(decoder)])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_what_lies_outside_of_the_blocks_stays_zero(folder: Path) -> None:
    from instil.train.optimizer import AdamWInBackward

    decoder = load_decoder(folder)
    add_lora(decoder, rank=3, targets=("q", "v", "up", "head"))
    rows = [Encoded((5, 9, 2, 40, 33), (False,) * 2 + (True,) * 3)]
    updates = AdamWInBackward(decoder.parameters(), weight_decay=0.1)
    updates.learning_rate = 0.1
    for _ in range(3):
        updates.backward(nll_sum(decoder, collate(rows, 0)), last=True)
        updates.finish()
    updates.close()
    for *_, layer in adapters(decoder):
        blocks = torch.zeros_like(layer.lora_b)
        for n in range(len(layer.rows)):
            blocks[layer.rows[n], layer.columns[n]] = layer.block(n).detach()
            assert layer.block(n).abs().max() > 0
        assert torch.equal(blocks, layer.lora_b)


@pytest.mark.parametrize("tokens", [0, 1, 20])
@pytest.mark.parametrize("narrow", [False, True])
def test_scales_of_their_own(tokens: int, narrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks and scales differ by block, as PEFT's patterns may have them; also in bfloat16, also without a token."""
    monkeypatch.setenv("INSTIL_GEMM", "onednn")
    backend.cache_clear()
    torch.manual_seed(0)
    base = Linear(64, 96).requires_grad_(False)
    layer = LoraLinear(base, [slice(0, 32), slice(64, 96)], [3, 9], [2.0, 0.5])
    layer.draw(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for n in range(2):
            layer.block(n).normal_()
    x = torch.randn(tokens, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        made = layer(x)
    made.float().square().sum().backward()
    whole = (base.weight + layer.change()).double()
    wanted_x = x.detach().double().requires_grad_()
    wanted = wanted_x @ whole.t() + base.bias.double()
    wanted.square().sum().backward()
    assert x.grad is not None
    assert wanted_x.grad is not None
    for one, other in ((made, wanted), (x.grad, wanted_x.grad)):
        assert (one - other).norm() <= (0.02 if narrow else 1e-5) * other.norm()
    assert layer.lora_a.grad is not None
    assert bool(layer.lora_a.grad.any()) == (tokens > 0)
    backend.cache_clear()
