"""OLMo 2 (OLMo Team, 2024): norms after attention and MLP alone, and one over all queries, and one over all keys.

In GGUF it is one architecture with OLMo 3, which has a window there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from instil.model.families.family import Family, Stored
from instil.model.families.keys import Default, Fields, Fixed, Header, Key, Row, attention_bias, tied, vocabulary
from instil.model.families.rotary import (
    GGUF_QK_NORMS,
    HUB,
    HUB_QK_NORMS,
    UNUSED,
    Context,
    Rope,
    gguf_table,
    heads,
    width_per_head,
)
from instil.model.families.sliding import PeriodicWindows
from instil.model.spec import DecoderSpec

PERIOD = 4  # of OLMo 3: one layer in so many sees everything


def olmo_spec(**fields: Any) -> DecoderSpec:
    """The spec of either; OLMo 3 says for every layer whether it has a window."""
    of_both = partial(DecoderSpec, norm="rms", mlp="swiglu", positions="rope", qk_norm="all", pre_norms=False)
    return of_both(family="olmo3" if fields["windows"] else "olmo2", post_norms=True, **fields)


class GgufWindows(Row):
    """The windows of OLMo 3 in GGUF, whose layers turn by the same base as the others, and unscaled."""

    fields = ("windows", "window_rope_theta")

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        return {"windows": (), "window_rope_theta": None}

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        if not header.get("attention.sliding_window"):
            return {"windows": (), "window_rope_theta": None}
        found = PeriodicWindows("olmo3", PERIOD, window=None).from_gguf(header, known)
        return {**found, "window_rope_theta": known["rope_theta"]}


def _after(table: Mapping[str, Stored], norms: Mapping[str, str]) -> dict[str, Stored]:
    """A table without the norms before attention and MLP, and with those after."""
    kept = {ours: stored for ours, stored in table.items() if not ours.startswith("blocks.{i}.norm")}
    return kept | {ours: Stored((name,)) for ours, name in norms.items()}


OLMO_HUB = _after(
    {**HUB, **HUB_QK_NORMS},
    {
        "blocks.{i}.post_norm1.weight": "layers.{i}.post_attention_layernorm.weight",
        "blocks.{i}.post_norm2.weight": "layers.{i}.post_feedforward_layernorm.weight",
    },
)
OLMO_GGUF = _after(
    {**gguf_table(), **GGUF_QK_NORMS},
    {
        "blocks.{i}.post_norm1.weight": "blk.{i}.post_attention_norm.weight",
        "blocks.{i}.post_norm2.weight": "blk.{i}.post_ffw_norm.weight",
    },
)
OLMO_LACKS, OLMO_NEEDS = ("blocks.{i}.attention.out.bias",), ("head.weight",)
OLMO_KEYS = (
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
    Key("attention_bias", Default("attention_bias", False, blank=True), attention_bias),
    Fixed("hidden_act", "silu"),
    Key("tied", Default("tie_word_embeddings", False, blank=True), tied),
)

OLMO2 = Family(
    name="olmo2",
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    spec=olmo_spec,
    keys=(*OLMO_KEYS, Rope("olmo2", Default("rope.freq_base", 10_000.0)), GgufWindows()),
    prefix="model.",
    hub=OLMO_HUB,
    gguf=OLMO_GGUF,
    gguf_lacks=OLMO_LACKS,
    gguf_needs=OLMO_NEEDS,
    gguf_even=True,
    unused=UNUSED,
)
