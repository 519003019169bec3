"""Adapters alone for llama.cpp and mlx-lm: as each of them computes it, the merged model's answers; or a refusal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from instil.data.tokenizers import load_tokenizer
from instil.errors import ModelError
from instil.generate.prompts import generate
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.families import FAMILIES
from instil.model.files.adapter_modules import ModuleAdapter, add_adapters
from instil.model.files.gguf_lora import read_gguf_lora, write_gguf_lora
from instil.model.files.mlx_lora import read_mlx_lora, write_mlx_lora
from instil.model.files.reader import hub_tensors
from instil.model.load import load_decoder
from instil.model.lora import adapters, add_lora, merge
from instil.recipes.export.export import export
from tests.llama_cpp import apart, llama_cpp
from tests.recipes.test_export_gguf import EXPORTED, folder_of, for_llama_cpp, rounding

IDS = torch.arange(40).view(2, 20)
SCALES: dict[str, dict[str, Any]] = {
    "alpha/rank": {"rank": 4, "alpha": 6.0},
    "rslora": {"rank": 3, "alpha": 2.0, "scaling": "alpha/sqrt(rank)"},
    "book": {"rank": 2, "alpha": 0.9, "scaling": "alpha"},
    "some": {"rank": 2, "alpha": 3.0, "targets": ("q", "v", "down")},
}


def adapted(folder: Path, **how: Any) -> Decoder:
    """A decoder with adapters that say something."""
    decoder = load_decoder(folder)
    add_lora(decoder, **how)
    torch.manual_seed(7)
    with torch.no_grad():
        for *_, layer in adapters(decoder):
            layer.lora_a.normal_(0, 0.5)
            for n in range(len(layer.rows)):
                layer.block(n).normal_(0, 0.5)
            for length in layer.lora_magnitude:
                length.mul_(torch.rand_like(length) + 0.7)
    return decoder


def scores(decoder: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return decoder.logits(decoder(batch_of_ids(IDS)))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() / other.abs().max() < 1e-5)


def check_in_llama_cpp(folder: Path, decoder: Decoder, work: Path) -> None:
    """llama.cpp's scores and greedy tokens of the base with the adapters are the merged model's, and not the base's."""
    base = export(folder, "gguf", work / "base.gguf").path
    write_gguf_lora(decoder, work / "lora.gguf")
    merge(decoder)
    tokenizer = load_tokenizer(folder)
    ids, stops = tokenizer.encode("the thing in"), tokenizer.stop_ids
    (said,) = generate(decoder, [ids], max_new_tokens=12, stop_ids=stops)
    letter = tokenizer.encode("x")[0]
    with llama_cpp(base, lora=work / "lora.gguf") as theirs:
        assert apart(theirs, decoder, ids, letter) < rounding(decoder)
        assert apart(theirs, load_decoder(folder), ids, letter) > 0.05
        found = theirs.greedy(ids, 12)["tokens"]
    assert [index for index in found if index not in stops] == list(said.ids)


QUICK = ("llama", "gpt2", "qwen3", "gemma3", "gpt_neox", "lfm2")  # the others with the slow tests


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EXPORTED]
)
def test_llama_cpp_puts_them_on_the_base(family: str, tmp_path: Path) -> None:
    """By its own loader, in every family that it reads."""
    folder = folder_of(tmp_path / "hf", family, **for_llama_cpp(family))
    decoder = adapted(folder, **SCALES["alpha/rank"])
    check_in_llama_cpp(folder, decoder, tmp_path)
    again = load_decoder(folder)
    add_adapters(again, read_gguf_lora(tmp_path / "lora.gguf"), FAMILIES[again.spec.family].gguf)
    assert close(scores(again), scores(decoder))


@pytest.mark.parametrize(
    ("family", "scaling"), [("llama", "rslora"), ("llama", "some"), ("gpt2", "book"), ("gpt2", "some")]
)
def test_every_scale_comes_through_one_alpha(family: str, scaling: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", family)
    how = SCALES[scaling]
    check_in_llama_cpp(folder, adapted(folder, **how), tmp_path)
    reader = GGUFReader(tmp_path / "lora.gguf")
    values = {key: field.contents() for key, field in reader.fields.items()}
    kinds = values["general.type"], values["adapter.type"], values["general.architecture"]
    assert kinds == ("adapter", "lora", family)
    if scaling == "rslora":
        assert values["adapter.lora.alpha"] == pytest.approx(how["alpha"] * how["rank"] ** 0.5)


def test_half_precision_is_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", "llama")
    decoder = adapted(folder, rank=4)
    write_gguf_lora(decoder, tmp_path / "lora.gguf", "f16")
    assert {str(tensor.tensor_type.name) for tensor in GGUFReader(tmp_path / "lora.gguf").tensors} == {"F16"}
    again = load_decoder(folder)
    add_adapters(again, read_gguf_lora(tmp_path / "lora.gguf"), FAMILIES["llama"].gguf)
    merge(decoder)
    assert (scores(again) - scores(decoder)).abs().max() / scores(decoder).abs().max() < 0.1
    assert not close(scores(again), scores(decoder))
    with torch.no_grad():
        large = adapted(folder, rank=4)
        next(layer for *_, layer in adapters(large)).lora_a[0, 0] = 1e5
    with pytest.raises(ModelError, match=r"lora_a holds 1e\+05, which float16 cannot"):
        write_gguf_lora(large, tmp_path / "large.gguf", "f16")
    assert not list(tmp_path.glob("large*"))


@pytest.mark.parametrize(
    ("family", "how", "says"),
    [
        ("llama", {"dora": True, "rank": 2}, "adapters of DoRA, whose magnitudes llama.cpp has no place for"),
        ("llama", {"targets": ("q", "head"), "rank": 2}, "the head has an adapter and is the base's embedding"),
        ("qwen3", {"rank": 2}, r"llama\.cpp reads no .*bias in a qwen3 model"),
    ],
)
def test_what_llama_cpp_has_no_adapters_of_is_refused(
    family: str, how: dict[str, Any], says: str, tmp_path: Path
) -> None:
    decoder = adapted(folder_of(tmp_path / "hf", family), **how)
    with pytest.raises(ModelError, match=says):
        write_gguf_lora(decoder, tmp_path / "lora.gguf")
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]
    with pytest.raises(ModelError, match="no adapters to write"):
        write_gguf_lora(load_decoder(folder_of(tmp_path / "other", "llama")), tmp_path / "lora.gguf")


def test_a_head_of_its_own_has_one(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", "llama", tied=False)
    check_in_llama_cpp(folder, adapted(folder, rank=2, targets=("q", "head")), tmp_path)


# mlx-lm


def as_mlx_lm(
    weights: Mapping[str, np.ndarray[Any, Any]], names: Sequence[str], folder: Path
) -> dict[str, np.ndarray[Any, Any]]:
    """Matrices with adapters on them as mlx-lm 0.32 takes a folder (`linear_to_lora_layers`, `load_adapters`, `fuse`).

    ``weights`` are a model's matrices [O, I] by its names of modules; those of its layers are ``names``.
    """
    from safetensors.numpy import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    how, stored = config["lora_parameters"], load_file(folder / "adapters.safetensors")
    layers = {name: name.split(".")[2] for name in names}
    last = sorted(set(layers.values()), key=int)[-max(config["num_layers"], 0) :]
    keys = set(how["keys"])
    within = {name for name in names if layers[name] in last and name.split(".", 3)[3] in keys}
    with_adapter = within | (keys & weights.keys())
    allowed = {}
    for name in with_adapter:
        rows, columns = weights[name].shape
        allowed |= {f"{name}.lora_a": (columns, how["rank"]), f"{name}.lora_b": (how["rank"], rows)}
        if config["fine_tune_type"] == "dora":
            allowed[f"{name}.m"] = (rows,)
    assert {name: value.shape for name, value in stored.items()} == allowed  # else load_adapters refuses it
    found = dict(weights)
    for name in with_adapter:
        a, b = stored[f"{name}.lora_a"], stored[f"{name}.lora_b"]
        found[name] = weights[name] + (how["scale"] * b.T) @ a.T
        if config["fine_tune_type"] == "dora":
            found[name] = found[name] * (stored[f"{name}.m"] / np.linalg.norm(found[name], axis=1))[:, None]
    return found


MLX = {  # how names begin there, and which tensors of transformers lie the other way round
    "llama": ("model.layers.", "model.layers.", False),
    "qwen3": ("model.layers.", "model.layers.", False),
    "gemma3": ("model.layers.", "model.layers.", False),
    "lfm2": ("model.layers.", "model.layers.", False),
    "gpt_neox": ("gpt_neox.layers.", "model.h.", False),
    "gpt2": ("transformer.h.", "model.h.", True),
}


def matrices(decoder: Decoder, family: str) -> dict[str, np.ndarray[Any, Any]]:
    """A decoder's matrices [O, I] under mlx-lm's names of their modules."""
    ours, theirs, turned = MLX[family]
    found = {}
    for name, value in hub_tensors(decoder):
        if value.dim() == 2 and name.endswith(".weight"):
            inside = name.startswith(ours)
            whole = theirs + name.removeprefix(ours) if inside else name
            matrix = value.T if turned and inside else value
            found[whole.removesuffix(".weight")] = matrix.detach().numpy().copy()
    return found


@pytest.mark.parametrize(
    ("family", "how"),
    [
        *((family, SCALES["alpha/rank"]) for family in MLX),
        *(("gpt2", SCALES[scaling]) for scaling in ("book", "some")),
        ("llama", SCALES["rslora"]),
        ("llama", {"rank": 2, "dora": True}),
        ("gpt2", {"rank": 2, "dora": True, "targets": ("q", "up")}),
    ],
)
def test_mlx_lm_puts_them_on_the_base(family: str, how: dict[str, Any], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", family)
    decoder = adapted(folder, **how)
    (tmp_path / "mlx").mkdir()
    write_mlx_lora(decoder, tmp_path / "mlx", "the/base")
    plain = matrices(load_decoder(folder), family)
    names = [name for name in plain if name.startswith(MLX[family][1])]
    found = as_mlx_lm(plain, names, tmp_path / "mlx")
    merge(decoder)
    wanted = matrices(decoder, family)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=1e-5, err_msg=name)
    assert any(not np.allclose(plain[name], wanted[name]) for name in wanted)
    again = load_decoder(folder)
    add_adapters(again, read_mlx_lora(again, tmp_path / "mlx"), FAMILIES[family].hub, FAMILIES[family].prefix)
    assert close(scores(again), scores(decoder))


def test_modules_of_some_layers_are_named_whole(tmp_path: Path) -> None:
    """And one scale and rank do for adapters of several."""
    folder = folder_of(tmp_path / "hf", "llama")
    decoder = adapted(folder, rank=4, targets=("up", "down"))
    first, second = (layer for owner, _, layer in adapters(decoder) if owner is decoder.blocks[0].mlp)
    decoder.blocks[1].mlp = load_decoder(folder).blocks[1].mlp
    second.scales = (0.25,)
    second.lora_a, second.lora_b = (torch.nn.Parameter(t) for t in (second.lora_a[:3], second.lora_b[:, :3]))
    second.columns = (slice(0, 3),)
    (tmp_path / "mlx").mkdir()
    write_mlx_lora(decoder, tmp_path / "mlx", "the/base")
    said = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    assert said["lora_parameters"]["keys"] == ["model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"]
    assert said["lora_parameters"]["rank"] == 4
    plain = matrices(load_decoder(folder), "llama")
    found = as_mlx_lm(plain, [name for name in plain if name.startswith("model.layers")], tmp_path / "mlx")
    merge(decoder)
    for name, value in matrices(decoder, "llama").items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=1e-5, err_msg=name)
    write_gguf_lora(adapted(folder, rank=4), tmp_path / "x.gguf")
    assert first.scales != second.scales


def test_adapters_of_another_model_are_not_added(tmp_path: Path) -> None:
    decoder = load_decoder(folder_of(tmp_path / "hf", "llama"))
    family = FAMILIES["llama"]
    for module, shape, says in (
        ("model.layers.9.mlp.up_proj", (36, 24), r"an adapter for model\.layers\.9.*does not have"),
        ("model.layers.0.mlp.up_proj", (30, 24), r"of shape \[30, 24\]; wanted \[36, 24\]"),
    ):
        wrong = ModuleAdapter(module, torch.ones(1, shape[1]), torch.ones(shape[0], 1), 1.0)
        with pytest.raises(ModelError, match=says):
            add_adapters(decoder, [wrong], family.hub, family.prefix)
    with pytest.raises(ModelError, match="the head has an adapter"):
        write_mlx_lora(adapted(tmp_path / "hf", rank=2, targets=("head",)), tmp_path, "x")
