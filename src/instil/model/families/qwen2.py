"""Qwen2 and Qwen2.5, dense (Yang et al., 2024): Llama's form with biases before attention and none after it."""

from __future__ import annotations

from functools import partial

from instil.model.families.family import Family
from instil.model.families.keys import Default, Fixed, Ignored, Key, tied
from instil.model.families.rotary import (
    HEAD_WIDTH,
    HUB,
    SIZES,
    UNUSED,
    Context,
    Rope,
    gguf_table,
    heads,
)
from instil.model.families.sliding import SomeWindows, last_windowed
from instil.model.spec import DecoderSpec

QWEN2 = Family(
    name="qwen2",
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    spec=partial(
        DecoderSpec, family="qwen2", norm="rms", mlp="swiglu", positions="rope", attention_bias=True, out_bias=False
    ),
    keys=(
        SomeWindows("qwen2", last_windowed(28)),
        *SIZES,
        Key(
            "kv_heads",
            Default("num_key_value_heads", heads, blank=True, missing=32),
            Default("attention.head_count_kv", heads),
        ),
        HEAD_WIDTH,
        Key("mlp_width", "intermediate_size", "feed_forward_length"),
        Context(),
        Key("norm_eps", Default("rms_norm_eps", 1e-6), "attention.layer_norm_rms_epsilon"),
        Rope("qwen2", Default("rope.freq_base", 10_000.0)),
        Fixed("hidden_act", "silu"),
        Ignored("attention_bias", "qkv_bias"),  # there are always those, and no others
        Key("tied", Default("tie_word_embeddings", False, blank=True), tied),
    ),
    prefix="model.",
    hub=HUB,
    gguf=gguf_table(),
    gguf_even=True,
    unused=UNUSED,
)
