"""Llama (Touvron et al., 2023) and models of its form, such as SmolLM2: rope, RMSNorm, SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instil.errors import ModelError
from instil.model.families.family import Family, Stored, refuse_strangers, rope_config, rope_of_config
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
    "mlp_bias": (),
    "tie_word_embeddings": (),
    "hidden_act": ("silu",),
}


def _spec_from_config(config: Mapping[str, Any]) -> DecoderSpec:
    refuse_strangers("llama", config, _UNDERSTOOD)
    heads = config["num_attention_heads"]
    theta, scaling = rope_of_config("llama", config)
    return DecoderSpec(
        family="llama",
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_width=config.get("head_dim") or config["hidden_size"] // heads,
        mlp_width=config["intermediate_size"],
        context=config["max_position_embeddings"],
        norm="rms",
        norm_eps=config.get("rms_norm_eps", 1e-6),
        mlp="swiglu",
        positions="rope",
        rope_theta=theta,
        rope_scaling=scaling,
        attention_bias=config.get("attention_bias") or False,
        mlp_bias=config.get("mlp_bias") or False,
        tied=config.get("tie_word_embeddings") or False,
    )


def _spec_from_gguf(meta: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> DecoderSpec:
    heads, width = meta["llama.attention.head_count"], meta["llama.embedding_length"]
    head_width = meta.get("llama.attention.key_length") or width // heads
    turned = meta.get("llama.rope.dimension_count", head_width)
    scaling = meta.get("llama.rope.scaling.type", "none")
    experts = meta.get("llama.expert_count", 0)
    if turned != head_width or scaling != "none" or experts:
        raise ModelError(
            f"a llama GGUF with rope over {turned} of {head_width} dimensions, rope scaling {scaling!r} and "
            f"{experts} experts is not implemented here"
        )
    return DecoderSpec(
        family="llama",
        vocab_size=shapes["token_embd.weight"][0],
        width=width,
        layers=meta["llama.block_count"],
        heads=heads,
        kv_heads=meta.get("llama.attention.head_count_kv", heads),
        head_width=head_width,
        mlp_width=meta["llama.feed_forward_length"],
        context=meta["llama.context_length"],
        norm="rms",
        norm_eps=meta["llama.attention.layer_norm_rms_epsilon"],
        mlp="swiglu",
        positions="rope",
        rope_theta=meta.get("llama.rope.freq_base", 10_000.0),
        attention_bias="blk.0.attn_q.bias" in shapes,
        mlp_bias="blk.0.ffn_gate.bias" in shapes,
        tied="output.weight" not in shapes,
    )


def _config_from_spec(spec: DecoderSpec) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
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
        "mlp_bias": spec.mlp_bias,
        "hidden_act": "silu",
        "tie_word_embeddings": spec.tied,
    }


def _table(
    attention: str,
    mlp: str,
    block: dict[str, str],
    outer: dict[str, str],
    parts: dict[str, str],
    *,
    gguf: bool,
) -> dict[str, Stored]:
    """The table of names; a bias lies beside every linear weight, where the spec has one."""
    paired = (True, True, False) if gguf else ()
    linear = {
        "attention.qkv": Stored(tuple(f"{attention}{parts[key]}" for key in "qkv"), paired_heads=paired),
        "attention.out": Stored((f"{attention}{parts['o']}",)),
        "mlp.gate_up": Stored((f"{mlp}{parts['gate']}", f"{mlp}{parts['up']}")),
        "mlp.down": Stored((f"{mlp}{parts['down']}",)),
    }
    table = {ours: Stored((name,)) for ours, name in {**outer, **block}.items()}
    for ours, stored in linear.items():
        for kind in ("weight", "bias"):
            names = tuple(f"{name}.{kind}" for name in stored.names)
            table[f"blocks.{{i}}.{ours}.{kind}"] = Stored(names, paired_heads=stored.paired_heads)
    return table


LLAMA = Family(
    name="llama",
    model_type="llama",
    prefix="model.",
    hub=_table(
        "layers.{i}.self_attn.",
        "layers.{i}.mlp.",
        {
            "blocks.{i}.norm1.weight": "layers.{i}.input_layernorm.weight",
            "blocks.{i}.norm2.weight": "layers.{i}.post_attention_layernorm.weight",
        },
        {
            "embed.weight": "embed_tokens.weight",
            "norm.weight": "norm.weight",
            "head.weight": "lm_head.weight",
        },
        {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
        | {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
        gguf=False,
    ),
    gguf=_table(
        "blk.{i}.attn_",
        "blk.{i}.ffn_",
        {
            "blocks.{i}.norm1.weight": "blk.{i}.attn_norm.weight",
            "blocks.{i}.norm2.weight": "blk.{i}.ffn_norm.weight",
        },
        {
            "embed.weight": "token_embd.weight",
            "norm.weight": "output_norm.weight",
            "head.weight": "output.weight",
        },
        {"q": "q", "k": "k", "v": "v", "o": "output", "gate": "gate", "up": "up", "down": "down"},
        gguf=True,
    ),
    spec_from_config=_spec_from_config,
    config_from_spec=_config_from_spec,
    spec_from_gguf=_spec_from_gguf,
    unused=(".rotary_emb.inv_freq",),
)
