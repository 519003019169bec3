"""Phi-3, Phi-3.5 mini and Phi-4 mini (Abdin et al., 2024): Llama's form with joined matrices and LongRoPE.

Query, key and value are one matrix in its files, and so are gate and up. Of each head of Phi-4 mini a part turns.
"""

from __future__ import annotations

from functools import partial

from instil.model.families.family import Family, Stored
from instil.model.families.keys import Default, Fixed, Ignored, Key, tied, vocabulary
from instil.model.families.rotary import HUB, UNUSED, Context, Rope, gguf_table, heads, width_per_head
from instil.model.families.sliding import OneWindow
from instil.model.spec import DecoderSpec

_QKV, _GATE_UP = "blocks.{i}.attention.qkv.weight", "blocks.{i}.mlp.gate_up.weight"

PHI3 = Family(
    name="phi3",
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    spec=partial(DecoderSpec, family="phi3", norm="rms", mlp="swiglu", positions="rope"),
    keys=(
        Key("vocab_size", "vocab_size", vocabulary),
        Key("width", "hidden_size", "embedding_length"),
        Key("layers", "num_hidden_layers", "block_count"),
        Key("heads", "num_attention_heads", "attention.head_count"),
        Key("kv_heads", Default("num_key_value_heads", heads, blank=True), Default("attention.head_count_kv", heads)),
        Key(
            "head_width",
            Default("head_dim", width_per_head, blank=True),
            Default("attention.key_length", width_per_head, blank=True),
        ),
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
