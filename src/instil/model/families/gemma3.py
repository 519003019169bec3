"""Gemma 3, the text model (Gemma Team, 2025): most layers see a short window, and norms stand on both sides.

Five layers with a window follow one another, then one that sees everything; the two kinds turn by
different angles. Norm weights are kept as their distance from one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from instil.errors import ModelError
from instil.model.families.family import Family, Stored, refuse_strangers, rope_scaling, rope_settings
from instil.model.families.llama import LLAMA
from instil.model.spec import DecoderSpec, RopeScaling

_THETA, _WINDOW_THETA = 1_000_000.0, 10_000.0
_PERIOD = 6  # one layer in so many sees everything
_LAYERS_27B = 62
_FULL, _WINDOWED = "full_attention", "sliding_attention"

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
    "rope_local_base_freq": (),
    "rope_scaling": (),
    "rope_parameters": (),
    "query_pre_attn_scalar": (),
    "sliding_window": (),
    "sliding_window_pattern": (),
    "layer_types": (),
    "_sliding_window_pattern": (),  # written beside layer_types, and never read by transformers
    "attention_bias": (),
    "tie_word_embeddings": (),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "use_bidirectional_attention": (False,),
}


def _spec_from_config(config: Mapping[str, Any]) -> DecoderSpec:
    refuse_strangers("gemma3", config, _UNDERSTOOD)
    theta, scaling, window_theta = _rope(config)
    return _spec(
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_width=config["head_dim"],
        mlp_width=config["intermediate_size"],
        context=config["max_position_embeddings"],
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        windows=_windows(config),
        window_rope_theta=window_theta,
        score_width=config["query_pre_attn_scalar"],
        attention_bias=config.get("attention_bias") or False,
        tied=config.get("tie_word_embeddings", True),
    )


def _windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """The window of every layer, from a list of kinds or from a period."""
    period = config.get("sliding_window_pattern") or _PERIOD
    kinds = config.get("layer_types") or _kinds(config["num_hidden_layers"], period)
    strange = sorted(set(kinds) - {_FULL, _WINDOWED})
    if strange:
        raise ModelError(f"config.json of a gemma3 model has layer_types {strange}, which is not implemented here")
    if _WINDOWED not in kinds:
        return (None,) * len(kinds)
    window = config["sliding_window"]
    if window is None:
        raise ModelError(f"config.json of a gemma3 model has layers of the kind {_WINDOWED!r}, but no sliding_window")
    return tuple(window if kind == _WINDOWED else None for kind in kinds)


def _kinds(layers: int, period: int) -> list[str]:
    return [_WINDOWED if (layer + 1) % period else _FULL for layer in range(layers)]


def _rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None, float]:
    """Base and scaling of layers that see everything, and base of those with a window."""
    given = config.get("rope_parameters") or {}
    refuse_strangers("gemma3", given, {_FULL: (), _WINDOWED: ()})
    full = {**(given.get(_FULL) or {}), **(config.get("rope_scaling") or {})}
    windowed = given.get(_WINDOWED) or {}
    if rope_scaling("gemma3", windowed) is not None:
        raise ModelError(
            "config.json of a gemma3 model scales the rope of its layers with a window, which is not implemented here"
        )
    theta = full.get("rope_theta") or config.get("rope_theta") or _THETA
    window_theta = windowed.get("rope_theta") or config.get("rope_local_base_freq") or _WINDOW_THETA
    return float(theta), rope_scaling("gemma3", full), float(window_theta)


def _spec_from_gguf(meta: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> DecoderSpec:
    """A header of llama.cpp, which knows three things by heart.

    These are the period of the layers, the base of the angles in those with a window, and that the 27B
    model, told by its number of layers, divides scores by the root of width / heads.
    """
    layers, heads, width = (
        meta[f"gemma3.{key}"] for key in ("block_count", "attention.head_count", "embedding_length")
    )
    head_width, window = meta["gemma3.attention.key_length"], meta["gemma3.attention.sliding_window"]
    kind = meta.get("gemma3.rope.scaling.type", "none")
    softcap = meta.get("gemma3.final_logit_softcapping", 0.0)
    if kind not in ("none", "linear") or softcap:
        raise ModelError(
            f"a gemma3 GGUF with rope scaling {kind!r} and softcapping of logits at {softcap} is not implemented here"
        )
    scaling = None
    if kind == "linear":
        scaling = RopeScaling(kind="linear", factor=meta["gemma3.rope.scaling.factor"])
    pattern = meta.get("gemma3.attention.sliding_window_pattern", _PERIOD)
    if not isinstance(pattern, list):
        pattern = [kind == _WINDOWED for kind in _kinds(layers, pattern)]
    return _spec(
        vocab_size=shapes["token_embd.weight"][0],
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=meta["gemma3.attention.head_count_kv"],
        head_width=head_width,
        mlp_width=meta["gemma3.feed_forward_length"],
        context=meta["gemma3.context_length"],
        norm_eps=meta["gemma3.attention.layer_norm_rms_epsilon"],
        rope_theta=meta.get("gemma3.rope.freq_base", _THETA),
        rope_scaling=scaling,
        windows=tuple(window if windowed else None for windowed in pattern),
        window_rope_theta=meta.get("gemma3.rope.freq_base_swa", _WINDOW_THETA),
        score_width=width // heads if layers == _LAYERS_27B else head_width,
        attention_bias="blk.0.attn_q.bias" in shapes,
        tied="output.weight" not in shapes,
    )


def _spec(**shape: Any) -> DecoderSpec:
    return DecoderSpec(
        family="gemma3",
        norm="rms_offset",
        mlp="geglu",
        positions="rope",
        qk_norm=True,
        post_norms=True,
        scaled_embedding=True,
        **shape,
    )


def _config_from_spec(spec: DecoderSpec) -> dict[str, Any]:
    """For transformers 5, and in the older words beside, so that what reads those reads the same model."""
    full = rope_settings(spec.rope_theta, spec.rope_scaling)
    window_theta = spec.window_rope_theta or spec.rope_theta
    windows = {window for window in spec.windows if window is not None}
    if len(windows) > 1:
        raise ModelError(f"config.json of a gemma3 model has room for one window, and this model has {sorted(windows)}")
    return {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_width,
        "intermediate_size": spec.mlp_width,
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "rope_local_base_freq": window_theta,
        "rope_scaling": None if spec.rope_scaling is None else full,
        "rope_parameters": {_FULL: full, _WINDOWED: rope_settings(window_theta, None)},
        "query_pre_attn_scalar": spec.score_width,
        "sliding_window": windows.pop() if windows else spec.context,
        "layer_types": [_FULL if window is None else _WINDOWED for window in spec.windows],
        "attention_bias": spec.attention_bias,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": spec.tied,
    }


_HUB = {
    "blocks.{i}.attention.q_norm.weight": "layers.{i}.self_attn.q_norm.weight",
    "blocks.{i}.attention.k_norm.weight": "layers.{i}.self_attn.k_norm.weight",
    "blocks.{i}.norm1.weight": "layers.{i}.input_layernorm.weight",
    "blocks.{i}.post_norm1.weight": "layers.{i}.post_attention_layernorm.weight",
    "blocks.{i}.norm2.weight": "layers.{i}.pre_feedforward_layernorm.weight",
    "blocks.{i}.post_norm2.weight": "layers.{i}.post_feedforward_layernorm.weight",
    "norm.weight": "norm.weight",
}
_GGUF = {
    "blocks.{i}.attention.q_norm.weight": "blk.{i}.attn_q_norm.weight",
    "blocks.{i}.attention.k_norm.weight": "blk.{i}.attn_k_norm.weight",
    "blocks.{i}.norm1.weight": "blk.{i}.attn_norm.weight",
    "blocks.{i}.post_norm1.weight": "blk.{i}.post_attention_norm.weight",
    "blocks.{i}.norm2.weight": "blk.{i}.ffn_norm.weight",
    "blocks.{i}.post_norm2.weight": "blk.{i}.post_ffw_norm.weight",
    "norm.weight": "output_norm.weight",
}

GEMMA3 = Family(
    name="gemma3",
    model_type="gemma3_text",
    prefix="model.",
    hub={**LLAMA.hub, **{ours: Stored((name,)) for ours, name in _HUB.items()}},
    gguf={
        **{ours: replace(stored, paired_heads=()) for ours, stored in LLAMA.gguf.items()},
        **{ours: Stored((name,), one_added=True) for ours, name in _GGUF.items()},
    },
    spec_from_config=_spec_from_config,
    config_from_spec=_config_from_spec,
    spec_from_gguf=_spec_from_gguf,
    unused=LLAMA.unused,
)
