"""What sets the families apart, each against transformers: windows, angles, norms, scales; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import torch.nn.functional as F

from instil.errors import ModelError
from instil.model.decoder import Decoder, OffsetRMSNorm, batch_of_ids
from instil.model.files.folder import save_decoder
from instil.model.files.reader import hub_tensors
from instil.model.load import load_decoder
from instil.model.spec import DecoderSpec
from tests.conftest import tiny_reference
from tests.model.family_cases import CASES, FULL, WINDOWED
from tests.model.files.gguf_files import write_gguf
from tests.model.test_parity import IDS_BT, assert_same_logits
from tests.train.test_training import SPECS

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 900.0}
LLAMA3 = {  # some of the four frequencies fall below, between and above the two bounds
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 100.0,
}  # fmt: skip


def change_config(folder: Path, remove: tuple[str, ...] = (), **values: object) -> None:
    stored = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in stored.items() if key not in remove}
    (folder / "config.json").write_text(json.dumps({**kept, **values}))


def reopened(folder: Path, to: Path) -> Any:
    """The model after a round through our own folder, opened by transformers."""
    import transformers

    to.mkdir()
    save_decoder(load_decoder(folder), to, eos_id=1)
    return transformers.AutoModelForCausalLM.from_pretrained(to)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("rope", [LINEAR, LLAMA3], ids=["linear", "llama3"])
def test_scaled_rope(family: str, rope: dict[str, Any], tmp_path: Path) -> None:
    theirs = tiny_reference(family, rope_parameters=dict(rope))
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same_logits(theirs, tmp_path / "theirs")
    assert_same_logits(reopened(tmp_path / "theirs", tmp_path / "ours"), tmp_path / "theirs")


def test_scaled_rope_in_the_words_of_older_transformers(tmp_path: Path) -> None:
    theirs = tiny_reference("llama", rope_parameters=dict(LLAMA3))
    theirs.save_pretrained(tmp_path)
    old = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    change_config(tmp_path, remove=("rope_parameters",), rope_theta=100.0, rope_scaling=old)
    assert_same_logits(theirs, tmp_path)


@pytest.mark.parametrize("window", [1, 2, 22, 23, 24, 60])
def test_windows_about_the_length_of_the_text(window: int, tmp_path: Path) -> None:
    theirs = tiny_reference("gemma3", sliding_window=window)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(theirs, tmp_path)


def test_gemma3_as_the_hub_has_it(tmp_path: Path) -> None:
    """The keys of google/gemma-3-1b-it: a period in place of a list, and thetas beside each other."""
    theirs = tiny_reference(
        "gemma3", num_hidden_layers=7, layer_types=None, sliding_window_pattern=3,
        rope_parameters={FULL: {"rope_theta": 4000.0}, WINDOWED: {"rope_theta": 50.0}},
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "theirs")
    change_config(
        tmp_path / "theirs",
        remove=("rope_parameters", "layer_types", "_sliding_window_pattern", "tie_word_embeddings"),
        rope_theta=4000, rope_local_base_freq=50, rope_scaling=None, sliding_window_pattern=3,
        cache_implementation="hybrid",
    )  # fmt: skip
    assert load_decoder(tmp_path / "theirs").spec.windows == (5, 5, None, 5, 5, None, 5)
    assert_same_logits(theirs, tmp_path / "theirs")
    assert_same_logits(reopened(tmp_path / "theirs", tmp_path / "ours"), tmp_path / "theirs")
    change_config(tmp_path / "theirs", rope_scaling={"rope_type": "linear", "factor": 8.0})
    scaled = tiny_reference(
        "gemma3", num_hidden_layers=7, layer_types=None, sliding_window_pattern=3,
        rope_parameters={FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 4000.0},
                         WINDOWED: {"rope_type": "default", "rope_theta": 50.0}},
    )  # fmt: skip
    assert_same_logits(scaled, tmp_path / "theirs")


def test_gemma3_without_any_window(tmp_path: Path) -> None:
    theirs = tiny_reference("gemma3", layer_types=[FULL] * 4)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same_logits(theirs, tmp_path / "theirs")
    assert_same_logits(reopened(tmp_path / "theirs", tmp_path / "ours"), tmp_path / "theirs")


@pytest.mark.parametrize("layers", [7, 62])
def test_a_gemma3_gguf_says_little(layers: int, tmp_path: Path) -> None:
    """One layer in six sees all, and 10000 is the base of the others, unless the header says otherwise.

    Of 62 layers is the 27B model, which alone has another scale of scores.
    """
    theirs = tiny_reference(
        "gemma3", num_hidden_layers=layers, layer_types=None, query_pre_attn_scalar=4 if layers == 62 else 10,
        rope_parameters={FULL: {"rope_theta": 4000.0}, WINDOWED: {"rope_theta": 10_000.0}},
    )  # fmt: skip
    write_gguf(theirs, tmp_path / "tiny.gguf")
    assert_same_logits(theirs, tmp_path / "tiny.gguf", tolerance=1e-5 if layers == 7 else 1e-3)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("family", ["gemma3", "qwen3"])
def test_transformers_reads_the_same_from_a_gguf(family: str, kind: str, tmp_path: Path) -> None:
    """The tensors as a reader reads them that is not ours; it wants to be given the configuration."""
    import transformers

    changes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    changes |= {"query_pre_attn_scalar": 10} if family == "gemma3" else {"attention_bias": False}
    reference = tiny_reference(family, tied=False, **changes)
    write_gguf(reference, tmp_path / "tiny.gguf", gguf.GGMLQuantizationType[kind])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32, config=reference.config
    )
    assert_same_logits(theirs, tmp_path / "tiny.gguf")


def both_gradients(theirs: Any, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients of the same mean loss here and in transformers, by their names there."""
    decoder = load_decoder(folder)
    wanted = IDS_BT.roll(-1, 1).flatten()
    F.cross_entropy(theirs(IDS_BT).logits.flatten(0, 1), wanted).backward()
    F.cross_entropy(decoder.logits(decoder(batch_of_ids(IDS_BT))), wanted).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    with torch.no_grad():
        for parameter in decoder.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    ours = dict(hub_tensors(decoder))
    assert ours.keys() == gradients.keys()
    return ours, gradients


@pytest.mark.parametrize("family", CASES)
def test_gradients_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    theirs = tiny_reference(family)
    theirs.save_pretrained(tmp_path)
    ours, gradients = both_gradients(theirs, tmp_path)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-6)
        assert gradient.abs().max() > 1e-5 or name.endswith(("k_proj.bias", "attn.c_attn.bias"))


def test_the_embedding_is_scaled_as_transformers_does_in_bfloat16(tmp_path: Path) -> None:
    theirs = tiny_reference("gemma3").bfloat16()
    theirs.save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path, dtype=torch.bfloat16)
    seen: list[torch.Tensor] = []
    decoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    decoder(batch_of_ids(IDS_BT))
    assert torch.equal(seen[0].view(*IDS_BT.shape, -1), theirs.model.embed_tokens(IDS_BT))


def test_offsets_are_not_rounded_away_in_bfloat16() -> None:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

    ours, theirs = OffsetRMSNorm(64, 1e-6).bfloat16(), Gemma3RMSNorm(64).bfloat16()
    for norm in (ours, theirs):
        torch.nn.init.constant_(norm.weight, 0.003)  # one and this is one, in bfloat16
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(ours(x), theirs(x))
    assert not torch.equal(ours(x), F.rms_norm(x, (64,), eps=1e-6))


@pytest.mark.parametrize(
    ("family", "values", "says"),
    [
        ("gemma3", {"final_logit_softcapping": 0.0}, "logits_softcap is 0.0"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma3", {"hidden_activation": "gelu"}, "hidden_activation='gelu'"),
        ("gemma3", {"layer_types": [FULL, "chunked_attention"] * 2}, "chunked_attention"),
        ("gemma3", {"layer_types": [FULL, WINDOWED]}, "2 windows for 4 layers"),
        ("gemma3", {"sliding_window": None}, "no sliding_window"),
        ("gemma3", {"sliding_window": 0}, "wanted whole numbers"),
        ("gemma3", {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}}, "rope_type='default'"),
        ("gemma3", {"rope_parameters": {FULL: {"rope_type": "dynamic", "factor": 2.0}}}, "'dynamic'"),
        ("gemma3", {"rope_parameters": {WINDOWED: {"rope_type": "linear", "factor": 2.0}}}, "layers with a window"),
        ("gemma3", {"model_type": "gemma3", "vision_config": {}}, "vision tower.*read here: gpt2, llama, gemma3_text"),
        ("qwen3", {"layer_types": [FULL, WINDOWED, FULL]}, "sliding_attention.*without a sliding_window in use"),
        ("qwen3", {"layer_types": [FULL, "linear_attention", FULL]}, "linear_attention"),
        ("qwen3", {"rope_scaling": {"rope_type": "proportional", "factor": 4.0}}, "'proportional'"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "some_new_thing": 1}}, "some_new_thing=1"),
        ("qwen2", {"layer_types": [WINDOWED] * 2, "use_sliding_window": True, "sliding_window": 3}, "2 windows for 3"),
        ("qwen2", {"layer_types": [WINDOWED] * 3, "use_sliding_window": True, "sliding_window": -3}, "whole numbers"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("mistral", {"sliding_window": 0}, "whole numbers"),
        ("mistral-window", {"layer_types": [FULL, WINDOWED]}, "2 windows for 3"),
        ("mistral", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ("phi3", {"layer_types": [FULL, WINDOWED, FULL]}, "layer_types"),
        ("mistral", {"attention_bias": True}, "attention_bias=True"),
        (
            "phi3",
            {"rope_parameters": {"rope_theta": 9.0, "partial_rotary_factor": 1.5}},
            "turn 6 of 4 dimensions",
        ),
        ("phi3-longrope", {"head_dim": 6}, r"\[3, 3\] factors of longrope for 2 pairs"),
        ("phi3-longrope", {"rope_scaling": {"type": "longrope", "short_factor": [1, 2, 3]}}, "lacks 'long_factor'"),
        (
            "phi3-longrope",
            {"rope_scaling": {"type": "longrope", "short_factor": [1, 2, 0], "long_factor": [1, 2, 3]}},
            "wanted a number above zero",
        ),
        ("phi3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta_fast": 3}}, "beta_fast=3"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "2 layers of 5"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "makes no sense"),
        ("starcoder2", {"norm_type": "rms"}, "norm_type='rms'"),
        ("starcoder2", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("gpt_neox", {"head_dim": 6}, "head_dim=6, where its heads are 8 wide"),
        ("gpt_neox", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.4}}, "width of 3 is odd"),
        ("gpt_neox", {"hidden_size": 49}, "49 does not divide by 6 heads"),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
        ("llama", {"logit_scale": 0.5}, "logit_scale=0.5"),
        ("llama", {"rope_scalling": {"factor": 2.0}}, "rope_scalling"),
        ("llama", {"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config"),
        ("qwen3", {"num_experts": 8}, "num_experts=8"),
        ("qwen3", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic'"),
        ("llama", {"rope_parameters": {"rope_theta": 9.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
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
        ("gemma3", "gemma3.rope.scaling.type", "yarn", "'yarn'"),
        ("qwen3", "qwen3.rope.scaling.type", "longrope", "'longrope' without its factors"),
    ],
)
def test_a_gguf_with_what_is_not_implemented_is_refused(
    family: str, key: str, value: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = gguf.GGUFWriter.write_header_to_file

    def with_more(writer: gguf.GGUFWriter) -> None:
        (writer.add_string if isinstance(value, str) else writer.add_float32)(key, value)
        add(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_more)
    plain = {FULL: {"rope_theta": 4000.0}, WINDOWED: {"rope_theta": 10.0}}
    write_gguf(
        tiny_reference(family, **({"rope_parameters": plain} if family == "gemma3" else {})), tmp_path / "x.gguf"
    )
    with pytest.raises(ModelError, match=says):
        load_decoder(tmp_path / "x.gguf")


def test_windows_that_config_json_cannot_say_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"room for one window, and this model has \[3, 4\]"):
        save_decoder(Decoder(SPECS["gemma3"]), tmp_path, eos_id=1)


def test_a_spec_that_contradicts_itself_is_refused() -> None:
    sizes: dict[str, Any] = dict.fromkeys(("vocab_size", "width", "layers", "heads", "kv_heads", "mlp_width"), 2)
    sizes |= {"family": "llama", "head_width": 2, "context": 9, "norm": "rms", "norm_eps": 1e-5, "mlp": "swiglu"}
    assert Decoder(DecoderSpec(**sizes, positions="rope", windows=(None, 3))).parameter_count > 0
    with pytest.raises(ValueError, match="1 windows for 2 layers"):
        DecoderSpec(**sizes, positions="rope", windows=(3,))
    with pytest.raises(ValueError, match="only where rope turns them"):
        DecoderSpec(**sizes, positions="learned", qk_norm="head")
