"""Qwen3, dense (Yang et al., 2025): Llama's form with a norm on every query and key, and wider heads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from instil.errors import ModelError
from instil.model.families.family import Family
from instil.model.families.keys import Default, Fields, Fixed, Header, Key, Row, attention_bias, tied, vocabulary
from instil.model.families.rotary import GGUF_QK_NORMS, HUB, HUB_QK_NORMS, UNUSED, Rope, gguf_table, heads
from instil.model.spec import DecoderSpec


class _NoWindows(Row):
    """Refuses layers with a window, and in GGUF a scaling of rope; two keys say nothing while windows are off."""

    understood: Mapping[str, tuple[Any, ...]] = {"layer_types": (), "sliding_window": (), "max_window_layers": ()}

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        kinds = set(config.get("layer_types") or ()) - {"full_attention"}
        if kinds:
            raise ModelError(
                f"config.json of a qwen3 model has layers of the kinds {sorted(kinds)} in layer_types, which is not "
                "implemented here"
            )
        return {}

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        scaling = header.get("rope.scaling.type", "none")
        if scaling != "none":
            raise ModelError(f"a qwen3 GGUF with rope scaling {scaling!r} is not implemented here")
        return {}


QWEN3 = Family(
    name="qwen3",
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    spec=partial(DecoderSpec, family="qwen3", norm="rms", mlp="swiglu", positions="rope", qk_norm="head"),
    keys=(
        _NoWindows(),
        Key("vocab_size", "vocab_size", vocabulary),
        Key("width", "hidden_size", "embedding_length"),
        Key("layers", "num_hidden_layers", "block_count"),
        Key("heads", "num_attention_heads", "attention.head_count"),
        Key("kv_heads", Default("num_key_value_heads", heads, blank=True), Default("attention.head_count_kv", heads)),
        Key("head_width", "head_dim", "attention.key_length"),
        Key("mlp_width", "intermediate_size", "feed_forward_length"),
        Key("context", "max_position_embeddings", "context_length"),
        Key("norm_eps", Default("rms_norm_eps", 1e-6), "attention.layer_norm_rms_epsilon"),
        Rope("qwen3", "rope.freq_base"),
        Key("attention_bias", Default("attention_bias", False, blank=True), attention_bias),
        Fixed("use_sliding_window", False),
        Fixed("hidden_act", "silu"),
        Key("tied", Default("tie_word_embeddings", False, blank=True), tied),
    ),
    prefix="model.",
    hub={**HUB, **HUB_QK_NORMS},
    gguf={**gguf_table(), **GGUF_QK_NORMS},
    unused=UNUSED,
)
