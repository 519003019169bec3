"""Qwen3, dense (Yang et al., 2025): Llama's form with a norm on every query and key, and wider heads."""

from __future__ import annotations

from functools import partial

from instil.model.families.family import Family
from instil.model.families.keys import Default, Fixed, Key, attention_bias, tied
from instil.model.families.rotary import (
    GGUF_QK_NORMS,
    HUB,
    HUB_QK_NORMS,
    SIZES,
    UNUSED,
    Context,
    Rope,
    gguf_table,
    heads,
)
from instil.model.families.sliding import SomeWindows, last_windowed
from instil.model.spec import DecoderSpec

QWEN3 = Family(
    name="qwen3",
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    spec=partial(DecoderSpec, family="qwen3", norm="rms", mlp="swiglu", positions="rope", qk_norm="head"),
    keys=(
        SomeWindows("qwen3", last_windowed(28)),
        *SIZES,
        Key(
            "kv_heads",
            Default("num_key_value_heads", heads, blank=True, missing=32),
            Default("attention.head_count_kv", heads),
        ),
        Key("head_width", "head_dim", "attention.key_length"),
        Key("mlp_width", "intermediate_size", "feed_forward_length"),
        Context(),
        Key("norm_eps", Default("rms_norm_eps", 1e-6), "attention.layer_norm_rms_epsilon"),
        Rope("qwen3", "rope.freq_base"),
        Key("attention_bias", Default("attention_bias", False, blank=True), attention_bias),
        Fixed("hidden_act", "silu"),
        Key("tied", Default("tie_word_embeddings", False, blank=True), tied),
    ),
    prefix="model.",
    hub={**HUB, **HUB_QK_NORMS},
    gguf={**gguf_table(), **GGUF_QK_NORMS},
    gguf_lacks=("blocks.{i}.attention.out.bias",),
    unused=UNUSED,
)
