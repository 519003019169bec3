"""Llama (Touvron et al., 2023) and models of its form, such as SmolLM2: rope, RMSNorm, SwiGLU."""

from __future__ import annotations

from functools import partial
from typing import Any

from instil.errors import ModelError
from instil.model.families.family import Family
from instil.model.families.keys import (
    Default,
    Fields,
    Fixed,
    Header,
    Ignored,
    Key,
    Row,
    attention_bias,
    mlp_bias,
    tied,
)
from instil.model.families.rotary import (
    HEAD_WIDTH,
    HUB,
    KV_HEADS,
    SIZES,
    UNUSED,
    Context,
    Rope,
    gguf_table,
)
from instil.model.spec import DecoderSpec


class _PlainHeader(Row):
    """Refuses what a GGUF file of this architecture may say and is not implemented here."""

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        if experts := header.get("expert_count", 0):
            raise ModelError(f"a llama GGUF with {experts} experts is not implemented here")
        return {}


LLAMA = Family(
    name="llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    spec=partial(DecoderSpec, family="llama", norm="rms", mlp="swiglu", positions="rope"),
    keys=(
        _PlainHeader(),
        *SIZES,
        KV_HEADS,
        HEAD_WIDTH,
        Key("mlp_width", "intermediate_size", "feed_forward_length"),
        Context(),
        Key("norm_eps", Default("rms_norm_eps", 1e-6), "attention.layer_norm_rms_epsilon"),
        Rope("llama", Default("rope.freq_base", 10_000.0)),
        Key("attention_bias", Default("attention_bias", False, blank=True), attention_bias),
        Key("mlp_bias", Default("mlp_bias", False, blank=True), mlp_bias),
        Fixed("hidden_act", "silu"),
        Ignored("sliding_window", "use_sliding_window", "max_window_layers"),
        Key("tied", Default("tie_word_embeddings", False, blank=True), tied),
    ),
    prefix="model.",
    hub=HUB,
    gguf=gguf_table(paired_heads=True),
    unused=UNUSED,
)
