"""Gemma 3, the text model (Gemma Team, 2025): most layers see a short window, and norms stand on both sides.

Five layers with a window follow one another, then one that sees everything; the two kinds turn by
different angles. Norm weights are kept as their distance from one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from instil.errors import ModelError
from instil.model.families.family import Family, Stored
from instil.model.families.keys import (
    Default,
    Fields,
    Fixed,
    Header,
    Key,
    Row,
    attention_bias,
    refuse_strangers,
    tied,
    vocabulary,
)
from instil.model.families.rotary import HUB, HUB_QK_NORMS, UNUSED, gguf_table, rope_scaling, rope_settings
from instil.model.families.scaled import scaling_in_gguf
from instil.model.spec import DecoderSpec, RopeScaling

_THETA, _WINDOW_THETA = 1_000_000.0, 10_000.0
_PERIOD = 6  # one layer in so many sees everything
_LAYERS_27B = 62
_FULL, _WINDOWED = "full_attention", "sliding_attention"


class _TwoRopes(Row):
    """Base and scaling of layers that see everything, and base of those with a window.

    They are written for transformers 5, and in the older words beside, so that what reads those reads the same model.
    """

    fields = ("rope_theta", "rope_scaling", "window_rope_theta")
    understood: Mapping[str, tuple[Any, ...]] = {
        "rope_theta": (), "rope_local_base_freq": (), "rope_scaling": (), "rope_parameters": (),
    }  # fmt: skip

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        given = config.get("rope_parameters") or {}
        refuse_strangers("gemma3", given, {_FULL: (), _WINDOWED: ()})
        full = {**(given.get(_FULL) or {}), **(config.get("rope_scaling") or {})}
        windowed = given.get(_WINDOWED) or {}
        if rope_scaling("gemma3", windowed) is not None:
            raise ModelError(
                "config.json of a gemma3 model scales the rope of its layers with a window, which is not implemented "
                "here"
            )
        theta = full.get("rope_theta") or config.get("rope_theta") or _THETA
        window_theta = windowed.get("rope_theta") or config.get("rope_local_base_freq") or _WINDOW_THETA
        return {
            "rope_theta": float(theta),
            "rope_scaling": rope_scaling("gemma3", full, config.get("max_position_embeddings")),
            "window_rope_theta": float(window_theta),
        }

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        full = rope_settings(spec.rope_theta, spec.rope_scaling)
        window_theta = spec.window_rope_theta or spec.rope_theta
        return {
            "rope_theta": spec.rope_theta,
            "rope_local_base_freq": window_theta,
            "rope_scaling": None if spec.rope_scaling is None else full,
            "rope_parameters": {_FULL: full, _WINDOWED: rope_settings(window_theta, None)},
        }

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        kind = header.get("rope.scaling.type", "none")
        softcap = header.get("final_logit_softcapping", 0.0)
        if kind not in ("none", "linear") or softcap:
            raise ModelError(
                f"a gemma3 GGUF with rope scaling {kind!r} and softcapping of logits at {softcap} is not implemented "
                "here"
            )
        scaled = kind == "linear"
        return {
            "rope_theta": header.get("rope.freq_base", _THETA),
            "rope_scaling": RopeScaling(kind="linear", factor=header["rope.scaling.factor"]) if scaled else None,
            "window_rope_theta": header.get("rope.freq_base_swa", _WINDOW_THETA),
        }

    def to_gguf(self, spec: DecoderSpec) -> dict[str, Any]:
        window_theta = spec.window_rope_theta or spec.rope_theta
        scaling = scaling_in_gguf("gemma3", spec)
        return {"rope.freq_base": float(spec.rope_theta), "rope.freq_base_swa": float(window_theta), **scaling}


class _Windows(Row):
    """The window of every layer, from a list of kinds or from a period, which llama.cpp knows by heart."""

    fields = ("windows",)
    understood: Mapping[str, tuple[Any, ...]] = {
        "sliding_window": (), "sliding_window_pattern": (), "layer_types": (),
        "_sliding_window_pattern": (),  # written beside layer_types, and never read by transformers
    }  # fmt: skip
    optional = False

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        period = config.get("sliding_window_pattern") or _PERIOD
        kinds = config.get("layer_types") or _kinds(known["layers"], period)
        strange = sorted(set(kinds) - {_FULL, _WINDOWED})
        if strange:
            raise ModelError(f"config.json of a gemma3 model has layer_types {strange}, which is not implemented here")
        if _WINDOWED not in kinds:
            return {"windows": (None,) * len(kinds)}
        window = config["sliding_window"]
        if window is None:
            raise ModelError(
                f"config.json of a gemma3 model has layers of the kind {_WINDOWED!r}, but no sliding_window"
            )
        return {"windows": tuple(window if kind == _WINDOWED else None for kind in kinds)}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        windows = {window for window in spec.windows if window is not None}
        if len(windows) > 1:
            raise ModelError(
                f"config.json of a gemma3 model has room for one window, and this model has {sorted(windows)}"
            )
        return {
            "sliding_window": windows.pop() if windows else spec.context,
            "layer_types": [_FULL if window is None else _WINDOWED for window in spec.windows],
        }

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        window = header["attention.sliding_window"]
        pattern = header.get("attention.sliding_window_pattern", _PERIOD)
        if not isinstance(pattern, list):
            pattern = [kind == _WINDOWED for kind in _kinds(known["layers"], pattern)]
        return {"windows": tuple(window if windowed else None for windowed in pattern)}

    def to_gguf(self, spec: DecoderSpec) -> dict[str, Any]:
        windows = {window for window in spec.windows if window is not None}
        if len(windows) > 1:
            raise ModelError(f"GGUF has room for one window, and this gemma3 model has {sorted(windows)}. Use --to hf")
        pattern = [spec.window_of(layer) is not None for layer in range(spec.layers)]
        window = windows.pop() if windows else spec.context
        return {"attention.sliding_window": window, "attention.sliding_window_pattern": pattern}


def _kinds(layers: int, period: int) -> list[str]:
    return [_WINDOWED if (layer + 1) % period else _FULL for layer in range(layers)]


def _score_width(header: Header, known: Fields) -> Any:
    """By its number of layers llama.cpp knows the 27B model, which divides scores by the root of width / heads."""
    return known["width"] // known["heads"] if known["layers"] == _LAYERS_27B else known["head_width"]


_HUB_NORMS = {
    "blocks.{i}.norm1.weight": "layers.{i}.input_layernorm.weight",
    "blocks.{i}.post_norm1.weight": "layers.{i}.post_attention_layernorm.weight",
    "blocks.{i}.norm2.weight": "layers.{i}.pre_feedforward_layernorm.weight",
    "blocks.{i}.post_norm2.weight": "layers.{i}.post_feedforward_layernorm.weight",
}
_GGUF_NORMS = {
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
    architecture="Gemma3ForCausalLM",
    spec=partial(
        DecoderSpec,
        family="gemma3",
        norm="rms_offset",
        mlp="geglu",
        positions="rope",
        qk_norm=True,
        post_norms=True,
        scaled_embedding=True,
    ),
    keys=(
        Key("vocab_size", "vocab_size", vocabulary),
        Key("width", "hidden_size", "embedding_length"),
        Key("layers", "num_hidden_layers", "block_count"),
        Key("heads", "num_attention_heads", "attention.head_count"),
        Key("kv_heads", "num_key_value_heads", "attention.head_count_kv"),
        Key("head_width", "head_dim", "attention.key_length"),
        Key("mlp_width", "intermediate_size", "feed_forward_length"),
        Key("context", "max_position_embeddings", "context_length"),
        Key("norm_eps", Default("rms_norm_eps", 1e-6), "attention.layer_norm_rms_epsilon"),
        _TwoRopes(),
        Key("score_width", "query_pre_attn_scalar", _score_width),
        _Windows(),
        Key("attention_bias", Default("attention_bias", False, blank=True), attention_bias),
        Fixed("hidden_activation", "gelu_pytorch_tanh"),
        Fixed("use_bidirectional_attention", None, False),
        Key("tied", Default("tie_word_embeddings", True), tied),
    ),
    prefix="model.",
    hub={**HUB, **HUB_QK_NORMS, **{ours: Stored((name,)) for ours, name in _HUB_NORMS.items()}},
    gguf={**gguf_table(), **{ours: Stored((name,), one_added=True) for ours, name in _GGUF_NORMS.items()}},
    gguf_lacks=("blocks.{i}.attention.out.bias",),
    unused=UNUSED,
)
