"""Gemma, Gemma 2, Granite, OLMo 2 and 3: as the hub and GGUF have them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from instil.errors import ModelError
from instil.model.decoder import Decoder
from instil.model.files.folder import save_decoder
from instil.model.load import load_decoder
from instil.model.spec import DecoderSpec
from tests.conftest import tiny_reference
from tests.model.family_cases import FULL, WINDOWED, rope
from tests.model.files.gguf_files import write_gguf
from tests.model.test_families import change_config, reopened
from tests.model.test_parity import assert_same_logits

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 24, "beta_fast": 32, "beta_slow": 1}
COMMON = {  # what folders of all of them say beside
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 1, "hidden_size": 24,
    "initializer_range": 0.02, "intermediate_size": 28, "max_position_embeddings": 64, "num_attention_heads": 4,
    "num_hidden_layers": 5, "num_key_value_heads": 2, "pad_token_id": 0, "rms_norm_eps": 1e-06,
    "torch_dtype": "bfloat16", "transformers_version": "4.42.0", "use_cache": True, "vocab_size": 97,
}  # fmt: skip
AS_ON_THE_HUB: dict[str, dict[str, Any]] = {
    "gemma-2b": {
        "model_type": "gemma", "architectures": ["GemmaForCausalLM"], "head_dim": 8, "hidden_act": "gelu",
        "rope_scaling": None, "rope_theta": 10000.0,
    },
    "gemma-1.1-2b-it": {
        "model_type": "gemma", "architectures": ["GemmaForCausalLM"], "head_dim": 8, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "num_key_value_heads": 1,
    },
    "gemma-2-9b-it": {
        "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 8,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 6,
        "rope_theta": 10000.0, "sliding_window": 7, "sliding_window_size": 7,
    },
    "granite-3.3-2b-instruct": {
        "model_type": "granite", "architectures": ["GraniteForCausalLM"], "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0, "hidden_act": "silu", "logits_scaling": 8.0, "mlp_bias": False,
        "residual_multiplier": 0.22, "rope_scaling": None, "rope_theta": 10000000.0, "tie_word_embeddings": True,
    },
    "OLMo-2-0425-1B": {
        "model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"], "hidden_act": "silu", "rope_scaling": None,
        "rope_theta": 500000, "tie_word_embeddings": False,
    },
    "Olmo-3-7B-Instruct": {
        "model_type": "olmo3", "architectures": ["Olmo3ForCausalLM"], "hidden_act": "silu", "rope_theta": 500000,
        "rope_scaling": YARN | {"attention_factor": 1.2}, "sliding_window": 7, "tie_word_embeddings": False,
        "layer_types": [WINDOWED] * 3 + [FULL] + [WINDOWED],
    },
    "Olmo-3 without a list": {
        "model_type": "olmo3", "architectures": ["Olmo3ForCausalLM"], "hidden_act": "silu", "sliding_window": 7,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", AS_ON_THE_HUB)
def test_as_the_hub_has_it(name: str, tmp_path: Path) -> None:
    """The keys that the folders there have, in the words of the time, at small sizes."""
    import transformers

    config = {**COMMON, **AS_ON_THE_HUB[name]}
    kind = getattr(transformers, config["architectures"][0])
    torch.manual_seed(0)
    theirs = kind(kind.config_class(**config)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=0.1 if parameter.dim() == 1 else 0.0, std=0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    assert_same_logits(theirs, tmp_path / "theirs")
    assert_same_logits(reopened(tmp_path / "theirs", tmp_path / "ours"), tmp_path / "theirs")
    assert load_decoder(tmp_path / "theirs").spec == load_decoder(tmp_path / "ours").spec


@pytest.mark.parametrize("windowed", [False, True])
def test_one_architecture_of_gguf_is_two_families(windowed: bool, tmp_path: Path) -> None:
    """OLMo 2, or, with a window, OLMo 3, which scales the rope of the other layers alone."""
    theirs = tiny_reference("olmo3-yarn" if windowed else "olmo2")
    write_gguf(theirs, tmp_path / "tiny.gguf")
    spec = load_decoder(tmp_path / "tiny.gguf").spec
    assert spec.family == ("olmo3" if windowed else "olmo2")
    assert spec.rope_of(3) == ((300.0, None) if windowed else (3000.0, None))
    assert_same_logits(theirs, tmp_path / "tiny.gguf")
    assert_same_logits(reopened(tmp_path / "tiny.gguf", tmp_path / "ours"), tmp_path / "tiny.gguf")


@pytest.mark.parametrize("layers", [3, 46])
def test_a_gemma2_gguf_says_little(layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other layer has a window, of 4096 tokens; of 46 layers is the 27B model, with another scale of scores.

    Caps are those of the paper, and rope's base is 10000, unless the header says otherwise.
    """
    for name in ("rope_freq_base", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window"):
        monkeypatch.setattr(gguf.GGUFWriter, f"add_{name}", lambda writer, value: None)
    monkeypatch.setattr(gguf.GGUFWriter, "add_sliding_window_pattern", lambda writer, pattern: None)
    theirs = tiny_reference(
        "gemma2", num_hidden_layers=layers, layer_types=None, query_pre_attn_scalar=4 if layers == 46 else 10,
        attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window=4096, rope_parameters=rope(10_000.0),
    )  # fmt: skip
    write_gguf(theirs, tmp_path / "tiny.gguf")
    assert load_decoder(tmp_path / "tiny.gguf").spec.windows == tuple([4096, None] * 23)[:layers]
    assert_same_logits(theirs, tmp_path / "tiny.gguf", tolerance=1e-5 if layers == 3 else 1e-3)


@pytest.mark.parametrize("said", [None, 0.0])
def test_a_granite_gguf_without_its_factors_leaves_them_out(
    said: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("embedding_scale", "residual_scale", "attention_scale"):
        add = getattr(gguf.GGUFWriter, f"add_{name}")
        leave = (lambda writer, value: None) if said is None else (lambda writer, value, add=add: add(writer, said))
        monkeypatch.setattr(gguf.GGUFWriter, f"add_{name}", leave)
    ones = {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 8**-0.5}
    theirs = tiny_reference("granite", **ones)
    write_gguf(theirs, tmp_path / "tiny.gguf")
    assert_same_logits(theirs, tmp_path / "tiny.gguf")
    assert_same_logits(reopened(tmp_path / "tiny.gguf", tmp_path / "ours"), tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("family", "values", "says"),
    [
        ("gemma", {"hidden_act": "silu"}, "hidden_act='silu'"),
        ("gemma", {"hidden_activation": "gelu"}, "hidden_activation='gelu'"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma", {"query_pre_attn_scalar": 9, "final_logit_softcapping": 9.0}, "final_logit_softcapping=9.0"),
        ("gemma2", {"attn_logit_softcapping": 0.0}, "attention_softcap is 0.0"),
        ("gemma2", {"final_logit_softcapping": -1.0}, "logits_softcap is -1.0"),
        ("gemma2", {"final_logit_softcapping": "30"}, "logits_softcap is '30'"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "makes no sense"),
        ("gemma2", {"query_pre_attn_scalar": -4}, "attention_multiplier is"),
        ("gemma2", {"sliding_window": None}, "no sliding_window"),
        ("gemma2", {"layer_types": [FULL, "chunked_attention", FULL]}, "chunked_attention"),
        ("gemma2", {"layer_types": [FULL]}, "1 windows for 3 layers"),
        ("gemma2", {"hidden_activation": "relu"}, "hidden_activation='relu'"),
        ("granite", {"embedding_multiplier": 0}, "embedding_multiplier is 0"),
        ("granite", {"logits_scaling": True}, "logits_scaling is True"),
        ("granite", {"residual_multiplier": [1.0]}, "residual_multiplier is"),
        ("granite", {"num_local_experts": 8}, "num_local_experts=8"),
        ("granite", {"position_embedding_type": "nope"}, "position_embedding_type='nope'"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv=8.0"),
        ("olmo2", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("olmo3", {"rope_parameters": rope(9.0)}, "rope_type='default'"),
        ("olmo3", {"rope_parameters": {WINDOWED: rope(9.0, "linear", factor=2.0)}}, "layers with a window"),
        ("olmo3", {"rope_parameters": None, "rope_theta": 9.0}, "versions of transformers disagree"),
        ("olmo3", {"sliding_window": 0}, "wanted whole numbers"),
    ],
)
def test_what_is_not_implemented_is_refused(family: str, values: dict[str, Any], says: str, tmp_path: Path) -> None:
    tiny_reference(family).save_pretrained(tmp_path)
    change_config(tmp_path, **values)
    with pytest.raises(ModelError, match=says):
        load_decoder(tmp_path)


@pytest.mark.parametrize(
    ("family", "key", "value", "says"),
    [
        ("granite", "granite.rope.scaling.finetuned", False, "without rope"),
        ("granite", "granite.expert_count", 8, "8 experts"),
        ("gemma2", "gemma2.rope.scaling.type", "longrope", "'longrope'"),
        ("olmo2", "olmo2.rope.scaling.type", "su", "'su'"),
    ],
)
def test_a_gguf_with_what_is_not_implemented_is_refused(
    family: str, key: str, value: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = gguf.GGUFWriter.write_header_to_file
    kinds = {bool: "add_bool", int: "add_uint32", str: "add_string"}

    def with_more(writer: gguf.GGUFWriter) -> None:
        getattr(writer, kinds[type(value)])(key, value)
        add(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_more)
    write_gguf(tiny_reference(family), tmp_path / "x.gguf")
    with pytest.raises(ModelError, match=says):
        load_decoder(tmp_path / "x.gguf")


def test_specs_that_contradict_themselves_are_refused() -> None:
    sizes: dict[str, Any] = dict.fromkeys(("vocab_size", "width", "layers", "heads", "kv_heads", "mlp_width"), 2)
    sizes |= {"family": "olmo2", "head_width": 2, "context": 9, "norm": "rms", "norm_eps": 1e-5, "mlp": "swiglu"}
    sizes |= {"positions": "rope"}
    assert Decoder(DecoderSpec(**sizes, pre_norms=False, post_norms=True, qk_norm="all")).parameter_count > 0
    for values, says in (
        ({"pre_norms": False}, "neither before nor after"),
        ({"qk_norm": True}, "wanted 'head', 'all' or None"),
        ({"attention_softcap": 0}, "attention_softcap is 0"),
        ({"logits_scaling": float("nan")}, "logits_scaling is nan"),
    ):
        with pytest.raises(ValueError, match=says):
            DecoderSpec(**sizes, **values)


def test_a_scalar_that_is_whole_is_written_so(tmp_path: Path) -> None:
    """transformers takes nothing else, and the root of its inverse is not always it."""
    for scalar in (3, 7, 10, 144, 168, 224, 256):
        tiny_reference("gemma2", query_pre_attn_scalar=scalar).save_pretrained(tmp_path / f"{scalar}")
        (tmp_path / f"{scalar}-ours").mkdir()
        save_decoder(load_decoder(tmp_path / f"{scalar}"), tmp_path / f"{scalar}-ours", eos_id=1)
        written = json.loads((tmp_path / f"{scalar}-ours" / "config.json").read_text())["query_pre_attn_scalar"]
        assert (type(written), written) == (int, scalar)
