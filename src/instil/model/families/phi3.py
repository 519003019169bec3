"""Phi-3, Phi-3.5 mini and Phi-4 mini (Abdin et al., 2024): Llama's form with joined matrices and LongRoPE.

Query, key and value are one matrix in its files, and so are gate and up. Of each head of Phi-4 mini a part turns.
"""

from __future__ import annotations

from functools import partial

from instil.model.families.family import Family, Stored
from instil.model.families.keys import Default, Fixed, Ignored, Key, tied
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
from instil.model.families.sliding import OneWindow
from instil.model.spec import DecoderSpec

_QKV, _GATE_UP = "blocks.{i}.attention.qkv.weight", "blocks.{i}.mlp.gate_up.weight"

PHI3 = Family(
    name="phi3",
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    spec=partial(DecoderSpec, family="phi3", norm="rms", mlp="swiglu", positions="rope"),
    keys=(
        *SIZES,
        KV_HEADS,
        HEAD_WIDTH,
        Key("mlp_width", "intermediate_size", "feed_forward_length"),
        Context(),
        Key("norm_eps", Default("rms_norm_eps", 1e-5), "attention.layer_norm_rms_epsilon"),
        Rope(
            "phi3",
            Default("rope.freq_base", 10_000.0),
            partial=True,
            original=4096,
            longrope=("su", "yarn"),  # what the first of its folders called it
        ),
        OneWindow("phi3", gguf="attention.sliding_window"),
        Fixed("attention_bias", None, False),
        Ignored("full_attn_mod", "interpolate_factor"),  # of the code that Microsoft's folders once brought with them
        Fixed("hidden_act", "silu"),
        Key("tied", Default("tie_word_embeddings", False, blank=True), tied),
    ),
    prefix="model.",
    hub={
        **HUB,
        _QKV: Stored(("layers.{i}.self_attn.qkv_proj.weight",)),
        _GATE_UP: Stored(("layers.{i}.mlp.gate_up_proj.weight",)),
    },
    gguf={
        **gguf_table(),
        _QKV: Stored(("blk.{i}.attn_qkv.weight",)),
        _GATE_UP: Stored(("blk.{i}.ffn_up.weight",)),
    },
    gguf_even=True,
    unused=UNUSED,
)
