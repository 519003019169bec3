"""Qwen3, dense (Yang et al., 2025): Llama's form with a norm on every query and key, and wider heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from instil.errors import ModelError
from instil.model.families.family import Family, Stored, refuse_strangers, rope_config, rope_of_config
from instil.model.families.llama import LLAMA
from instil.model.spec import DecoderSpec

_UNDERSTOOD: dict[str, tuple[Any, ...]] = {
    "vocab_size": (),
    "hidden_size": (),
    "num_hidden_layers": (),
    "num_attention_heads": (),
    "num_key_value_heads": (),
    "head_dim": (),
    "intermediate_size": (),
    "max_position_embeddings": (),
    "rms_norm_eps": (),
    "rope_theta": (),
    "rope_scaling": (),
    "rope_parameters": (),
    "attention_bias": (),
    "tie_word_embeddings": (),
    "hidden_act": ("silu",),
    "use_sliding_window": (False,),
    "sliding_window": (),  # these two say nothing while the one above is false
    "max_window_layers": (),
    "layer_types": (),
}


def _spec_from_config(config: Mapping[str, Any]) -> DecoderSpec:
    refuse_strangers("qwen3", config, _UNDERSTOOD)
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        raise ModelError(
            f"config.json of a qwen3 model has layers of the kinds {sorted(kinds)} in layer_types, which is not "
            "implemented here"
        )
    heads = config["num_attention_heads"]
    theta, scaling = rope_of_config("qwen3", config)
    return DecoderSpec(
        family="qwen3",
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_width=config["head_dim"],
        mlp_width=config["intermediate_size"],
        context=config["max_position_embeddings"],
        norm="rms",
        norm_eps=config.get("rms_norm_eps", 1e-6),
        mlp="swiglu",
        positions="rope",
        rope_theta=theta,
        rope_scaling=scaling,
        qk_norm=True,
        attention_bias=config.get("attention_bias") or False,
        tied=config.get("tie_word_embeddings") or False,
    )


def _spec_from_gguf(meta: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> DecoderSpec:
    scaling = meta.get("qwen3.rope.scaling.type", "none")
    if scaling != "none":
        raise ModelError(f"a qwen3 GGUF with rope scaling {scaling!r} is not implemented here")
    heads = meta["qwen3.attention.head_count"]
    return DecoderSpec(
        family="qwen3",
        vocab_size=shapes["token_embd.weight"][0],
        width=meta["qwen3.embedding_length"],
        layers=meta["qwen3.block_count"],
        heads=heads,
        kv_heads=meta.get("qwen3.attention.head_count_kv", heads),
        head_width=meta["qwen3.attention.key_length"],
        mlp_width=meta["qwen3.feed_forward_length"],
        context=meta["qwen3.context_length"],
        norm="rms",
        norm_eps=meta["qwen3.attention.layer_norm_rms_epsilon"],
        mlp="swiglu",
        positions="rope",
        rope_theta=meta["qwen3.rope.freq_base"],
        qk_norm=True,
        attention_bias="blk.0.attn_q.bias" in shapes,
        tied="output.weight" not in shapes,
    )


def _config_from_spec(spec: DecoderSpec) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_width,
        "intermediate_size": spec.mlp_width,
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.norm_eps,
        **rope_config(spec),
        "attention_bias": spec.attention_bias,
        "use_sliding_window": False,
        "hidden_act": "silu",
        "tie_word_embeddings": spec.tied,
    }


QWEN3 = Family(
    name="qwen3",
    model_type="qwen3",
    prefix="model.",
    hub={
        **LLAMA.hub,
        "blocks.{i}.attention.q_norm.weight": Stored(("layers.{i}.self_attn.q_norm.weight",)),
        "blocks.{i}.attention.k_norm.weight": Stored(("layers.{i}.self_attn.k_norm.weight",)),
    },
    gguf={
        **{ours: replace(stored, paired_heads=()) for ours, stored in LLAMA.gguf.items()},
        "blocks.{i}.attention.q_norm.weight": Stored(("blk.{i}.attn_q_norm.weight",)),
        "blocks.{i}.attention.k_norm.weight": Stored(("blk.{i}.attn_k_norm.weight",)),
    },
    spec_from_config=_spec_from_config,
    config_from_spec=_config_from_spec,
    spec_from_gguf=_spec_from_gguf,
    unused=LLAMA.unused,
)
