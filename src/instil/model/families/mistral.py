"""Mistral (Jiang et al., 2023): Llama's form without biases, and with a window in the first of its models.

GGUF calls it Llama, so that a file is read as one; llama.cpp lets all of its layers see everything.
"""

from __future__ import annotations

from functools import partial

from instil.model.families.family import Family
from instil.model.families.keys import Default, Fixed, Key, tied
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
from instil.model.families.sliding import OneWindow
from instil.model.spec import DecoderSpec

MISTRAL = Family(
    name="mistral",
    model_type="mistral",
    architecture="MistralForCausalLM",
    spec=partial(DecoderSpec, family="mistral", norm="rms", mlp="swiglu", positions="rope"),
    keys=(
        *SIZES,
        Key(
            "kv_heads",
            Default("num_key_value_heads", heads, blank=True, missing=8),
            Default("attention.head_count_kv", heads),
        ),
        HEAD_WIDTH,
        Key("mlp_width", "intermediate_size", "feed_forward_length"),
        Context(),
        Key("norm_eps", Default("rms_norm_eps", 1e-6), "attention.layer_norm_rms_epsilon"),
        Rope("mistral", Default("rope.freq_base", 10_000.0)),
        OneWindow("mistral", default=4096, some=True),  # of those with layer_types transformers makes Ministral
        Fixed("hidden_act", "silu"),
        Key("tied", Default("tie_word_embeddings", False, blank=True), tied),
    ),
    prefix="model.",
    hub=HUB,
    gguf=gguf_table(paired_heads=True),
    gguf_architecture="llama",
    unused=UNUSED,
)
