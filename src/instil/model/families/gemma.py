"""Gemma (Gemma Team, 2024): Llama's form with a scaled embedding, norms kept as their distance from one, and GELU.

What the later Gemmas have in common with it is here, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from instil.model.families.family import Family, Stored
from instil.model.families.keys import Default, Fields, Fixed, Header, Key, Row, attention_bias, tied
from instil.model.families.rotary import HUB, SIZES, UNUSED, Context, Rope, gguf_table
from instil.model.spec import DecoderSpec

TANH_GELU = "gelu_pytorch_tanh"


class RootOfWidth(Row):
    """The embedding is multiplied by the root of the width; no file says so."""

    fields = ("embedding_multiplier",)

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        return {"embedding_multiplier": known["width"] ** 0.5}

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        return {"embedding_multiplier": known["width"] ** 0.5}


class QueryScalar(Row):
    """The number by whose root scores are divided; llama.cpp knows it by the number of layers.

    Args:
        missing: what it is where ``config.json`` lacks it; None: it must not.
        layers_27b: of the largest model, which alone divides by the root of width / heads and not of the head width.
    """

    fields = ("attention_multiplier",)
    understood: Mapping[str, tuple[Any, ...]] = {"query_pre_attn_scalar": ()}

    def __init__(self, missing: int | None, *, layers_27b: int) -> None:
        self._missing, self._layers_27b, self.optional = missing, layers_27b, missing is not None

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        key = "query_pre_attn_scalar"
        scalar = config[key] if self._missing is None else config.get(key, self._missing)
        return {"attention_multiplier": scalar**-0.5}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        scalar = float(spec.head_width) if spec.attention_multiplier is None else spec.attention_multiplier**-2
        whole = round(scalar)  # transformers takes nothing else
        return {"query_pre_attn_scalar": whole if abs(scalar - whole) < 1e-9 * scalar else scalar}

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        largest = known["layers"] == self._layers_27b
        return {"attention_multiplier": (known["width"] // known["heads"] if largest else known["head_width"]) ** -0.5}


# Norms as GGUF has them: llama.cpp keeps the scales themselves.
GGUF_NORMS = {
    ours: Stored((name,), one_added=True)
    for ours, name in {
        "norm.weight": "output_norm.weight",
        "blocks.{i}.norm1.weight": "blk.{i}.attn_norm.weight",
        "blocks.{i}.norm2.weight": "blk.{i}.ffn_norm.weight",
    }.items()
}
# From Gemma 2 on there are two norms around attention, and two around the MLP.
HUB_NORMS_AROUND = {
    ours: Stored((name,))
    for ours, name in {
        "blocks.{i}.norm1.weight": "layers.{i}.input_layernorm.weight",
        "blocks.{i}.post_norm1.weight": "layers.{i}.post_attention_layernorm.weight",
        "blocks.{i}.norm2.weight": "layers.{i}.pre_feedforward_layernorm.weight",
        "blocks.{i}.post_norm2.weight": "layers.{i}.post_feedforward_layernorm.weight",
    }.items()
}
GGUF_NORMS_AROUND = {
    **GGUF_NORMS,
    "blocks.{i}.post_norm1.weight": Stored(("blk.{i}.post_attention_norm.weight",), one_added=True),
    "blocks.{i}.post_norm2.weight": Stored(("blk.{i}.post_ffw_norm.weight",), one_added=True),
}

GGUF_LACKS = ("blocks.{i}.attention.out.bias", "head.weight")  # the head is always the embedding there

GEMMA = Family(
    name="gemma",
    model_type="gemma",
    architecture="GemmaForCausalLM",
    spec=partial(DecoderSpec, family="gemma", norm="rms_offset", mlp="geglu", positions="rope"),
    keys=(
        *SIZES,
        Key("kv_heads", "num_key_value_heads", "attention.head_count_kv"),
        Key("head_width", Default("head_dim", 256), "attention.key_length"),
        Key("mlp_width", "intermediate_size", "feed_forward_length"),
        Context(),
        Key("norm_eps", Default("rms_norm_eps", 1e-6), "attention.layer_norm_rms_epsilon"),
        Rope("gemma", Default("rope.freq_base", 10_000.0)),
        RootOfWidth(),
        Key("attention_bias", Default("attention_bias", False, blank=True), attention_bias),
        Fixed("hidden_act", TANH_GELU, "gelu"),  # as the first files say, which mean its tanh form
        Fixed("hidden_activation", TANH_GELU),
        Fixed("use_bidirectional_attention", None, False),
        Key("tied", Default("tie_word_embeddings", True), tied),
    ),
    prefix="model.",
    hub=HUB,
    gguf={**gguf_table(), **GGUF_NORMS},
    gguf_lacks=GGUF_LACKS,
    unused=UNUSED,
)
