"""Gemma 2 (Gemma Team, 2024): every other layer sees a window, scores and logits are capped, norms on both sides."""

from __future__ import annotations

from functools import partial

from instil.model.families.family import Family
from instil.model.families.gemma import (
    GGUF_LACKS,
    GGUF_NORMS_AROUND,
    HUB_NORMS_AROUND,
    TANH_GELU,
    QueryScalar,
    RootOfWidth,
)
from instil.model.families.keys import Default, Fixed, Ignored, Key, attention_bias, tied
from instil.model.families.rotary import HUB, SIZES, UNUSED, Context, Rope, gguf_table
from instil.model.families.sliding import PeriodicWindows
from instil.model.spec import DecoderSpec

_SCORES_CAP, _LOGITS_CAP = 50.0, 30.0

GEMMA2 = Family(
    name="gemma2",
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    spec=partial(DecoderSpec, family="gemma2", norm="rms_offset", mlp="geglu", positions="rope", post_norms=True),
    keys=(
        *SIZES,
        Key("kv_heads", "num_key_value_heads", "attention.head_count_kv"),
        Key("head_width", Default("head_dim", 256), "attention.key_length"),
        Key("mlp_width", "intermediate_size", "feed_forward_length"),
        Context(),
        Key("norm_eps", Default("rms_norm_eps", 1e-6), "attention.layer_norm_rms_epsilon"),
        Rope("gemma2", Default("rope.freq_base", 10_000.0)),
        RootOfWidth(),
        QueryScalar(256, layers_27b=46),
        PeriodicWindows("gemma2", 2, window=4096),
        Key(
            "attention_softcap",
            Default("attn_logit_softcapping", _SCORES_CAP),
            Default("attn_logit_softcapping", _SCORES_CAP),
        ),
        Key(
            "logits_softcap",
            Default("final_logit_softcapping", _LOGITS_CAP),
            Default("final_logit_softcapping", _LOGITS_CAP),
        ),
        Key("attention_bias", Default("attention_bias", False, blank=True), attention_bias),
        Fixed("hidden_activation", TANH_GELU),
        Ignored("hidden_act", "sliding_window_size"),
        Fixed("use_bidirectional_attention", None, False),
        Key("tied", Default("tie_word_embeddings", True), tied),
    ),
    prefix="model.",
    hub={**HUB, **HUB_NORMS_AROUND},
    gguf={**gguf_table(), **GGUF_NORMS_AROUND},
    gguf_lacks=GGUF_LACKS,
    unused=UNUSED,
)
