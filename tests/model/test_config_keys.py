"""Keys of config.json: what transformers reads is understood or refused, what it passes over is passed over here."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from instil.errors import ModelError
from instil.model.families import FAMILIES
from instil.model.families.closed import NOT_READ
from instil.model.families.keys import HARMLESS, HARMLESS_ENDINGS, refuse_unread
from instil.model.load import load_decoder
from tests.conftest import tiny_reference
from tests.model.family_cases import CASES, FULL, WINDOWED
from tests.model.test_families import change_config, reopened
from tests.model.test_parity import assert_same_logits

# What a class of transformers reads and that changes nothing here, beside the keys that are harmless by name.
NO_KEYS = {
    "num_labels",  # of classifiers
    "get_text_config",  # a function
    "text_config", "mm_tokens_per_image",  # of the class with a vision tower, in the same file
}  # fmt: skip


def harmless(key: str) -> bool:
    return key in HARMLESS or key.endswith(HARMLESS_ENDINGS) or key in NO_KEYS


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_transformers_reads_is_understood_or_refused_or_harmless(family: str) -> None:
    """Fields that the class of a configuration declares, other names of them, and what the model's code asks it for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[FAMILIES[family].model_type]
    code = inspect.getsource(importlib.import_module(kind.__module__.replace(".configuration_", ".modeling_")))
    read = set(re.findall(r"\bconfig\.(\w+)", code)) | set(re.findall(r"getattr\((?:self\.)?config, \"(\w+)\"", code))
    read |= {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map)
    understood = {key: values for row in FAMILIES[family].keys for key, values in row.understood.items()}
    assert len(read & understood.keys()) >= 8
    for key in sorted(read - understood.keys()):
        if not harmless(key):
            with pytest.raises(ModelError, match=f"sets {key}="):
                refuse_unread(family, {key: "strange"}, understood)


def test_settings_of_generation_are_passed_over() -> None:
    from transformers import GenerationConfig

    for key in GenerationConfig._get_default_generation_params():
        refuse_unread("llama", {key: "strange"}, {})


SAYS_NOTHING: dict[str, Any] = {
    "unsloth_version": "2025.1", "unsloth_fixed": True, "max_length": 20, "min_length": 3, "do_sample": True,
    "auto_map": {"AutoConfig": "configuration.Config"}, "partial_rotary_factor": 1.0, "quantization_config": None,
    "temperature": 0.3, "top_p": 0.5, "top_k": 3, "num_beams": 4, "no_repeat_ngram_size": 3, "use_mrope": False,
    "num_labels": 2, "num_experts": 0, "logit_scale": 1.0, "residual_multiplier": 1, "attention_bias": False,
    "_name_or_path": "somewhere", "forced_eos_token_id": 3, "use_qk_norm": False,
    "some_new_thing": 1, "neftune_noise_alpha": 5, "license": "mit", "sliding_window": None, "bad_words_ids": [[3]],
    "pad_token_id": 5, "embedding_dropout": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("case", ["llama", "qwen2", "mistral", "phi3", "smollm3", "starcoder2", "gpt_neox", "qwen3"])
def test_what_says_nothing_is_passed_over(case: str, tmp_path: Path) -> None:
    """The logits are those of the same folder opened by transformers."""
    import transformers

    model = tiny_reference(case, **({"sliding_window": None} if case in ("mistral", "phi3", "starcoder2") else {}))
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    own = {key: stored[key] for key in ("head_dim",) if stored.get(key)}
    if case != "mistral":  # transformers makes another class of those, which wants a window
        own["layer_types"] = [FULL] * stored["num_hidden_layers"]
    added = {key: value for key, value in SAYS_NOTHING.items() if key not in stored or key.endswith("_token_id")}
    change_config(tmp_path, **{**added, **own, "rope_scaling": None})
    assert_same_logits(model, tmp_path)
    assert_same_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path)


def test_a_mistral_with_windows_in_some_layers(tmp_path: Path) -> None:
    import transformers

    kinds = [FULL, WINDOWED, FULL]
    tiny_reference("mistral-window").save_pretrained(tmp_path / "theirs")
    change_config(tmp_path / "theirs", layer_types=kinds)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    assert type(theirs).__name__ == "MinistralForCausalLM"
    assert load_decoder(tmp_path / "theirs").spec.windows == (None, 7, None)
    assert_same_logits(theirs, tmp_path / "theirs")
    assert_same_logits(reopened(tmp_path / "theirs", tmp_path / "ours"), tmp_path / "theirs")


def test_biases_that_qwen2_has_whatever_is_said(tmp_path: Path) -> None:
    import transformers

    tiny_reference("qwen2").save_pretrained(tmp_path)
    for bias in (True, False):
        change_config(tmp_path, attention_bias=bias, qkv_bias=bias)
        assert_same_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path)


@pytest.mark.parametrize("case", ["qwen2-windows", "qwen3", "smollm3", "smollm3-windows"])
def test_layers_that_are_not_listed(case: str, tmp_path: Path) -> None:
    """Which of them have windows, or turn, as transformers makes it out from other keys."""
    import transformers

    own: dict[str, Any] = {"no_rope_layers": None, "no_rope_layer_interval": 3} if "smollm3" in case else {}
    tiny_reference(case, num_hidden_layers=5, **own).save_pretrained(tmp_path)
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    change_config(tmp_path, remove=("layer_types", "no_rope_layers"), **windows)
    seen = load_decoder(tmp_path).spec.windows
    assert seen == ((None, None, 4, None, None) if "smollm3" in case else (None, None, 4, 4, 4))
    assert_same_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path)


def test_windows_that_llama_does_not_read(tmp_path: Path) -> None:
    import transformers

    tiny_reference("llama").save_pretrained(tmp_path)
    change_config(tmp_path, sliding_window=4, use_sliding_window=True, max_window_layers=1)
    assert_same_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization_config", {"quant_method": "awq"}),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("layer_types", ["full_attention", "linear_attention"]),
        ("attention_multiplier", 0.5),
        ("logit_scale", 0.0625),
        ("logits_scaling", 8.0),
        ("residual_multiplier", 0.22),
        ("scale_emb", 12),
        ("final_logit_softcapping", 30.0),
        ("num_local_experts", 8),
        ("use_qk_norm", True),
        ("parallel_attn", True),
        ("clip_qkv", 8.0),
        ("alibi", True),
        ("rope_pct", 0.25),
        ("rotary_dim", 64),
        ("use_parallel_residual", True),
        ("no_rope_layers", [1, 0]),
        ("kv_lora_rank", 512),
        ("mup_width_multiplier", 2.0),
        ("pre_norm", "after"),
        ("position_embedding_type", "learned"),
        ("vision_config", {"width": 3}),
        ("mtp_num_layers", 1),
        ("swiglu_limit", 7.0),
        ("hidden_activaton", "gelu"),
        ("slidng_window", 4096),
        ("attention_sinks", True),
    ],
)
def test_what_speaks_of_a_decoder_is_not_passed_over(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"of a llama model sets {key}="):
        refuse_unread("llama", {key: value}, {})


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ModelError, match=r"sets quantization_config=\{'modules': \[0, 1, .*\.\.\., which"):
        refuse_unread("llama", {"quantization_config": {"modules": list(range(1000))}}, {})


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("qwen3_5", "linear attention .* and a vision tower"),
        ("qwen3_next", "linear attention .* and a mixture of experts"),
        ("gemma4", "embeddings for every layer"),
        ("gemma3n", "embeddings for every layer, several residual streams"),
        ("mixtral", "a mixture of experts"),
        ("qwen3_moe", "a mixture of experts"),
        ("deepseek_v3", "attention over latent keys and values and a mixture of experts"),
        ("mamba2", "state-space layers"),
        ("t5", "an encoder"),
    ],
)
def test_families_that_are_not_read_are_named_with_what_is_missing(kind: str, says: str, tmp_path: Path) -> None:
    tiny_reference("llama").save_pretrained(tmp_path)
    change_config(tmp_path, model_type=kind)
    with pytest.raises(
        ModelError, match=f"model_type '{kind}'; read here: gpt2, .* It has {says}.*not implemented here"
    ):
        load_decoder(tmp_path)


def test_no_family_is_both_read_and_not() -> None:
    names = {family.model_type for family in FAMILIES.values()} | {f.architecture_in_gguf for f in FAMILIES.values()}
    assert not (names - {"gemma3"}) & NOT_READ.keys()  # in transformers gemma3 is the model with a vision tower


def test_a_vocabulary_beyond_the_tokenizers_is_read(tmp_path: Path) -> None:
    """Rows that no token has are never said; they are there all the same, for transformers gives them scores."""
    model = tiny_reference("qwen2", vocab_size=128)
    model.save_pretrained(tmp_path)
    assert_same_logits(model, tmp_path)
    assert load_decoder(tmp_path).spec.vocab_size == 128


def test_the_head_of_older_gpt_neox_folders(tmp_path: Path) -> None:
    """They call it embed_out, and carry causal masks as tensors."""
    from safetensors.torch import load_file, save_file

    model = tiny_reference("gpt_neox", tied=False)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.replace("lm_head", "embed_out"): value for name, value in tensors.items()}
    assert "embed_out.weight" in tensors
    for layer in range(3):
        tensors[f"gpt_neox.layers.{layer}.attention.bias"] = torch.ones(1, 1, 64, 64)
        tensors[f"gpt_neox.layers.{layer}.attention.masked_bias"] = torch.tensor(-1e9)
        tensors[f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(1)
    save_file(tensors, str(tmp_path / "model.safetensors"))
    assert_same_logits(model, tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_a_spec_goes_through_config_json_unchanged(case: str, tmp_path: Path) -> None:
    tiny_reference(case).save_pretrained(tmp_path)
    spec = load_decoder(tmp_path).spec
    family = FAMILIES[spec.family]
    said = json.loads(json.dumps(family.config_from_spec(spec)))
    assert family.spec_from_config(said) == spec


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_that_is_missing_means_what_it_means_to_transformers(family: str) -> None:
    """Each key of a configuration left out in turn: the same spec as that of what transformers puts in its place."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    ours = FAMILIES[family]
    kind = CONFIG_MAPPING[ours.model_type]
    understood = {key for row in ours.keys for key in row.understood}
    whole = json.loads(kind(num_attention_heads=64, hidden_size=1024).to_json_string(use_diff=False))
    config = {key: value for key, value in whole.items() if key in understood}
    assert ours.spec_from_config(config) is not None
    left_out = 0
    for key in config:
        without = {name: value for name, value in config.items() if name != key}
        try:
            found: object = ours.spec_from_config(without)
        except KeyError:
            continue  # it is asked for, whatever transformers would have taken
        except ValueError as error:
            found = str(error)
        theirs = json.loads(kind(**without).to_json_string(use_diff=False))
        try:
            wanted: object = ours.spec_from_config({name: theirs[name] for name in understood & theirs.keys()})
        except ValueError as error:
            wanted = str(error)
        assert found == wanted, key
        left_out += 1
    assert left_out >= 4


@pytest.mark.parametrize(
    ("case", "changes", "says"),
    [
        ("gpt_neox", {"kv_heads": 2}, "heads do not share the width evenly"),
        ("gpt_neox", {"head_width": 10, "rotary_width": 2}, "heads do not share the width evenly"),
        ("starcoder2", {"mlp_bias": False}, "only some linear layers have a bias"),
        ("llama", {"rotary_width": 4}, "cannot say that a part of each head turns"),
        ("starcoder2", {"windows": (3, None, 3)}, "room for one window"),
        ("mistral", {"windows": (3, None, 4)}, "room for one window"),
        ("qwen2", {"windows": (3, None, 4)}, r"room for one window, and this model has \[3, 4\]"),
    ],
)
def test_what_config_json_cannot_say_is_not_saved(
    case: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    tiny_reference(case).save_pretrained(tmp_path)
    spec = dataclasses.replace(load_decoder(tmp_path).spec, **changes)
    with pytest.raises(ModelError, match=says):
        FAMILIES[spec.family].config_from_spec(spec)


def test_windows_that_no_layer_has_are_none(tmp_path: Path) -> None:
    tiny_reference("mistral-window").save_pretrained(tmp_path)
    change_config(tmp_path, layer_types=[FULL] * 3)
    assert load_decoder(tmp_path).spec.windows == ()
