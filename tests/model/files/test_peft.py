"""Adapters of other people's making: all of one or none, and with it what they save besides, as peft has it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from instil.errors import ModelError
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.files.peft import WEIGHTS, load_adapter, save_adapter
from instil.model.files.safetensors import SafetensorsFile, write_safetensors
from instil.model.load import load_decoder
from instil.model.lora import adapters, add_lora, merge
from instil.model.token_rows import TokenRows
from tests.conftest import tiny_reference

IDS = torch.tensor([[5, 9, 2, 40, 33, 7, 61, 3], [8, 1, 90, 77, 12, 4, 4, 6]])
CONFIG = "adapter_config.json"
Tensors = dict[str, torch.Tensor]


def scores(decoder: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return decoder.logits(decoder(batch_of_ids(IDS)))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() / other.abs().max() < 1e-5)


def base(folder: Path, family: str = "llama", **how: Any) -> Path:
    tiny_reference(family, **how).save_pretrained(folder / "base")
    return folder / "base"


def of_peft(
    model: Path, folder: Path, *, save: Any = "auto", enlarged: int = 0, kind: torch.dtype = torch.float32, **how: Any
) -> tuple[torch.Tensor, Any]:
    """Write an adapter that has been somewhere; the scores that peft gives with it, and its model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=kind)
    if enlarged:
        theirs.resize_token_embeddings(enlarged)
    names = ["c_attn"] if theirs.config.model_type == "gpt2" else ["q_proj", "down_proj"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how = {"target_modules": names, **how}
        adapted = get_peft_model(theirs, LoraConfig(r=3, lora_alpha=5, task_type="CAUSAL_LM", **how)).eval()
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        adapted.save_pretrained(folder, save_embedding_layers=save)
    with torch.inference_mode():
        return adapted(IDS).logits.flatten(0, 1).float(), adapted


def loaded(model: Path, folder: Path) -> Decoder:
    decoder = load_decoder(model)
    load_adapter(decoder, folder)
    return decoder


def read(folder: Path) -> Tensors:
    file = SafetensorsFile(folder / WEIGHTS)
    return {name: file.get(name) for name in file.names()}


def changed(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    write_safetensors(folder / WEIGHTS, change(read(folder)).items())


def config(folder: Path, **values: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# What is meant by a configuration


@pytest.mark.parametrize(
    ("how", "count"),
    [
        ({"target_modules": "all-linear"}, 14),
        ({"target_modules": r".*\.(q|v)_proj"}, 4),
        ({"target_modules": r"model\.layers\.1\..*(up|down)_proj"}, 2),
        ({"target_modules": ["q_proj", "lm_head"]}, 3),
        ({"target_modules": ["self_attn.q_proj", "no_such"]}, 2),
        ({"target_modules": ["model.layers.0.mlp.up_proj", "k_proj"]}, 3),
        ({"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["0.self_attn.v_proj"]}, 3),
        ({"target_modules": "all-linear", "exclude_modules": r".*\.mlp\..*"}, 8),
        ({"target_modules": ["q_proj"], "layers_to_transform": 1}, 1),
        ({"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0], "layers_pattern": "layers"}, 2),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0, 1], "layers_pattern": ["h", "layers"]}, 2),
        ({"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["v_proj"]}, 2),
    ],
)
def test_modules_are_meant_as_peft_means_them(tmp_path: Path, how: dict[str, Any], count: int) -> None:
    """All of them are wanted: the file without any one is half an adapter."""
    model = base(tmp_path, tied=False)
    wanted, _ = of_peft(model, tmp_path / "adapter", **how)
    for given in (how["target_modules"], None):  # as peft writes it, and as it was asked for
        if given is not None:
            config(tmp_path / "adapter", target_modules=given)
        found = loaded(model, tmp_path / "adapter")
        assert close(scores(found), wanted)
    tensors = read(tmp_path / "adapter")
    modules = sorted({name.rpartition(".lora_")[0] for name in tensors if ".lora_" in name})
    assert len(modules) == count
    for module in (modules[0], modules[-1]):
        write_safetensors(
            tmp_path / "adapter" / WEIGHTS,
            ((name, value) for name, value in tensors.items() if not name.startswith(f"{module}.lora_")),
        )
        short = module.removeprefix("base_model.model.")
        if count > 1:
            with pytest.raises(ModelError, match=rf"half an adapter: target_modules .* lacks those of 1: {short}\. "):
                loaded(model, tmp_path / "adapter")


def test_half_an_adapter_is_refused_by_name(tmp_path: Path) -> None:
    model, folder = base(tmp_path, tied=False), tmp_path / "adapter"
    of_peft(model, folder, target_modules=["q_proj", "v_proj"])
    whole = read(folder)

    def lacking(*words: str) -> None:
        changed(folder, lambda _: {name: v for name, v in whole.items() if not any(word in name for word in words)})

    lacking("layers.1")
    with pytest.raises(ModelError, match=r"lacks those of 2: model\.layers\.1\.self_attn\.q_proj, .*v_proj"):
        loaded(model, folder)
    lacking("v_proj")
    with pytest.raises(ModelError, match=r"asks for 4 modules, and the file lacks those of 2: .*v_proj"):
        loaded(model, folder)
    config(folder, target_modules=None)  # then the file says itself what it has
    loaded(model, folder)
    lacking("layers.0.self_attn.v_proj")
    with pytest.raises(ModelError, match=r"lacks those of 1: model\.layers\.0\.self_attn\.v_proj"):
        loaded(model, folder)
    lacking()
    config(folder, target_modules=["q_proj"])
    with pytest.raises(ModelError, match=r"adapters for .*v_proj, which target_modules .* does not ask for"):
        loaded(model, folder)
    for given in ("(", 7, ["q_proj", 3], "a{99999999999}", "(?:.|.)*(?<!j)"):  # the last would take years
        config(folder, target_modules=given)
        with pytest.raises(ModelError, match=r"adapter_config\.json: target_modules"):
            loaded(model, folder)
    config(folder, target_modules=["q_proj", "v_proj"], r=4)
    with pytest.raises(ModelError, match=r"the rank of model\..* is 4, but 3 in the file"):
        loaded(model, folder)
    config(folder, r=3, layers_to_transform=[0], layers_pattern="(")
    with pytest.raises(ModelError, match="layers_pattern cannot be read"):
        loaded(model, folder)


@pytest.mark.parametrize("matrix", ["lora_A", "lora_B"])
def test_adapters_of_zeros(tmp_path: Path, matrix: str) -> None:
    model, folder = base(tmp_path), tmp_path / "adapter"
    of_peft(model, folder)
    whole = read(folder)

    def zeros(*words: str) -> None:
        changed(folder, lambda _: {
            name: value * (not (matrix in name and any(word in name for word in words)))
            for name, value in whole.items()
        })  # fmt: skip

    zeros("layers.1.self_attn")
    with pytest.raises(ModelError, match=r"half an adapter: lora_B of model\.layers\.1\.self_attn\.q_proj is zero"):
        loaded(model, folder)
    config(folder, alpha_pattern={r"1\.self_attn\.q_proj": 0})  # where it counts nothing it is not trained either
    loaded(model, folder)
    zeros("layers")
    with pytest.raises(ModelError, match="every lora_B is zero: this adapter has not been trained"):
        loaded(model, folder)


def test_adapters_in_some_layers_are_written_by_their_whole_names(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = base(tmp_path)
    wanted, _ = of_peft(model, tmp_path / "adapter", layers_to_transform=[1])
    found = loaded(model, tmp_path / "adapter")
    save_adapter(found, tmp_path / "again", "x")
    assert close(scores(loaded(model, tmp_path / "again")), wanted)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "again").eval()
    with torch.inference_mode():
        assert close(theirs(IDS).logits.flatten(0, 1), wanted)
    assert {name for name, _ in theirs.named_parameters() if "layers.0" in name and "lora" in name} == set()


# What is saved besides

BESIDES: dict[str, dict[str, Any]] = {
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "head": {"modules_to_save": ["lm_head"]},
    "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "together": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "norms": {"modules_to_save": ["norm"]},
    "mlp": {"modules_to_save": ["mlp"], "target_modules": ["q_proj"]},
    "everything": {"modules_to_save": ["embed_tokens", "lm_head"], "save": True},
    "rows": {"trainable_token_indices": [9, 1, 40]},
    "rows by name": {"trainable_token_indices": {"embed_tokens": [9, 1]}},
    "rows by whole name": {"trainable_token_indices": {"model.embed_tokens": [9, 1]}},
    "rows of both": {"trainable_token_indices": {"embed_tokens": [9, 1], "lm_head": [9, 1]}},
    "other rows of each": {"trainable_token_indices": {"embed_tokens": [9, 1], "lm_head": [5, 9]}},
    "the same rows in another order": {"trainable_token_indices": {"embed_tokens": [9, 1], "lm_head": [1, 9]}},
    "rows of the head": {"trainable_token_indices": {"lm_head": [40, 9]}},
    "rows and the tables": {"trainable_token_indices": [9, 1], "save": True},
    "rows and norms": {"trainable_token_indices": [9, 1], "modules_to_save": ["input_layernorm"]},
    "lora of the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "rslora of the embedding": {"target_modules": ["q_proj", "embed_tokens"], "use_rslora": True},
    "lora of both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "lora of both together": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "the tables": {"save": True},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("how", BESIDES.values(), ids=BESIDES)
def test_what_is_saved_besides_is_read(tmp_path: Path, how: dict[str, Any], tied: bool) -> None:
    """As in the model that was trained, and as merged: peft itself merges tied tables that go apart into one."""
    model = base(tmp_path, tied=tied)
    wanted, theirs = of_peft(model, tmp_path / "adapter", **how)
    found = loaded(model, tmp_path / "adapter")
    assert close(scores(found), wanted)
    merge(found)
    assert close(scores(found), wanted)
    assert not list(adapters(found))
    assert type(found.embed) is torch.nn.Embedding
    if not tied:
        with torch.inference_mode():
            assert close(theirs.merge_and_unload()(IDS).logits.flatten(0, 1), wanted)
    assert not close(scores(load_decoder(model)), wanted)
    kept = tied and list(how) in (["trainable_token_indices"], ["trainable_token_indices", "save"], ["save"])
    if kept and not isinstance(how.get("trainable_token_indices"), dict):
        assert found.spec.tied


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_besides_in_other_families(tmp_path: Path, family: str, tied: bool) -> None:
    model = base(tmp_path, family, tied=tied)
    table = "wte" if family == "gpt2" else "embed_tokens"
    norm = "ln_f" if family == "gpt2" else "norm"
    linear = "c_attn" if family == "gpt2" else "q_proj"
    for number, how in enumerate((
        {"modules_to_save": [table, norm]}, {"modules_to_save": [table, "lm_head"]}, {"modules_to_save": ["mlp"]},
        {"trainable_token_indices": [9, 1, 40]}, {"target_modules": [linear, table]},
    )):  # fmt: skip
        wanted, _ = of_peft(model, tmp_path / str(number), **{"target_modules": [linear], **how})
        found = loaded(model, tmp_path / str(number))
        assert close(scores(found), wanted)
        merge(found)
        assert close(scores(found), wanted)


def test_besides_in_bfloat16(tmp_path: Path) -> None:
    model = base(tmp_path)
    _, theirs = of_peft(model, tmp_path / "adapter", kind=torch.bfloat16, save=True, modules_to_save=["norm"])
    with torch.inference_mode():
        wanted = theirs.float()(IDS).logits.flatten(0, 1)
    assert (scores(loaded(model, tmp_path / "adapter")) - wanted).abs().max() / wanted.abs().max() < 0.02


def test_tables_that_are_not_the_models_own(tmp_path: Path) -> None:
    model, folder = base(tmp_path), tmp_path / "adapter"
    of_peft(model, folder, save=True)
    own, name = read(folder), "base_model.model.model.embed_tokens.weight"
    changed(folder, lambda tensors: {**tensors, name: torch.cat([own[name][:-2], own[name][-2:] + 1])})
    with pytest.raises(ModelError, match=r"embed_tokens\.weight, the embedding .* differs from it in 2 of 97 rows"):
        loaded(model, folder)
    for how in ({}, {"trainable_token_indices": [98]}):
        of_peft(model, folder, enlarged=100, **how)
        with pytest.raises(ModelError, match=r"enlarged from 97 to 100: enlarge the base with resize_token_embeddings"):
            loaded(model, folder)


def test_besides_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model, folder = base(tmp_path), tmp_path / "adapter"
    table = "base_model.model.model.embed_tokens"

    def refused(says: str) -> None:
        with pytest.raises(ModelError, match=says):
            loaded(model, folder)

    of_peft(model, folder, modules_to_save=["embed_tokens", "norm"])
    own = read(folder)
    changed(folder, lambda _: {name: value for name, value in own.items() if name != f"{table}.weight"})
    refused(r"half an adapter: modules_to_save .* asks for model\.embed_tokens\.weight, which the file lacks")
    changed(folder, lambda _: {name: value for name, value in own.items() if "layers.1.input_layernorm" not in name})
    refused(r"asks for model\.layers\.1\.input_layernorm\.weight, which the file lacks")
    changed(folder, lambda _: {**own, f"{table}.weight": own[f"{table}.weight"][1:].clone()})
    refused(r"embed_tokens\.weight has shape \[96, 24\]; wanted \[97, 24\]")
    changed(folder, lambda _: {**own, f"{table}.weight": own[f"{table}.weight"] * torch.inf})
    refused("embed_tokens.weight holds values that are not finite")
    changed(folder, lambda _: {**own, f"{table}.modules_to_save.weight": own[f"{table}.weight"] + 1})
    refused(r"embed_tokens\.weight of modules_to_save is there twice")
    changed(folder, lambda _: {**own, "base_model.model.model.layers.0.mlp.up_proj.weight": own[f"{table}.weight"]})
    refused(r"up_proj\.weight is no part of the adapter by modules_to_save")
    changed(folder, lambda _: own)
    config(folder, modules_to_save="embed_tokens")
    refused("modules_to_save='embed_tokens'; wanted a list")
    config(folder, modules_to_save=["embed_tokens", "norm"], trainable_token_indices=[3])
    refused(r"trainable_token_indices .* asks for model\.embed_tokens, which the file lacks")

    of_peft(model, folder, trainable_token_indices=[9, 1])
    for given, says in (
        ([9, 1, 4], r"the trained rows of model\.embed_tokens has shape \[2, 24\]; wanted \[3, 24\]"),
        ([9, 9], "wanted ids from 0 to 96, each once"), ([9, 97], "wanted ids from 0 to 96"),
        ([9, -1], "wanted ids from 0 to 96"), (["a", "b"], "wanted a list of ids"), ("9,1", "wanted a list of ids"),
        ({"wpe": [9, 1]}, "names 'wpe'; wanted model.embed_tokens or lm_head"), (None, "is no part of the adapter by"),
    ):  # fmt: skip
        config(folder, trainable_token_indices=given)
        refused(says)
    of_peft(model, folder, target_modules=["q_proj", "embed_tokens"])
    config(folder, trainable_token_indices=[3])
    changed(folder, lambda tensors: {
        **tensors, f"{table}.token_adapter.trainable_tokens_delta": torch.ones(1, 24)
    })  # fmt: skip
    refused(r"rows of model\.embed_tokens are trained, and all of it, too")
    of_peft(model, folder, target_modules=["q_proj", "embed_tokens"], use_dora=True)
    refused("its DoRA is not read here; merge the adapter with peft")
    of_peft(model, folder, target_modules=["q_proj", "embed_tokens"])
    changed(folder, lambda tensors: {name: value for name, value in tensors.items() if "embedding" not in name})
    refused(r"half an adapter: .* lacks those of 1: model\.embed_tokens")


# Rows of ours


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_peft_opens_trained_rows(tmp_path: Path, family: str, tied: bool) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = base(tmp_path, family, tied=tied)
    decoder = load_decoder(model)
    add_lora(decoder, rank=3, targets=("q", "down"), trainable_token_indices=(9, 1, 40))
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for *_, layer in adapters(decoder):  # nothing outside of the blocks
            layer.lora_b.mul_(sum(layer.lora_b.new_zeros(layer.lora_b.shape).index_put(
                tuple(torch.meshgrid(torch.arange(r.start, r.stop), torch.arange(c.start, c.stop), indexing="ij")),
                torch.ones(()),
            ) for r, c in zip(layer.rows, layer.columns, strict=True)))  # fmt: skip
    wanted = scores(decoder)
    save_adapter(decoder, tmp_path / "adapter", str(model))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "adapter").eval()
    with torch.inference_mode():
        assert close(theirs(IDS).logits.flatten(0, 1), wanted)
    found = loaded(model, tmp_path / "adapter")
    assert isinstance(found.embed, TokenRows)
    assert close(scores(found), wanted)
    save_adapter(found, tmp_path / "again", str(model))
    assert all(torch.equal(value, read(tmp_path / "again")[name]) for name, value in read(tmp_path / "adapter").items())
    with pytest.raises(ModelError, match="has adapters already"):
        load_adapter(found, tmp_path / "adapter")
