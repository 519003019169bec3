"""Granite (IBM, 2024): Llama's form with four numbers that scale (muP: Yang et al., 2022, arXiv 2203.03466)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from instil.errors import ModelError
from instil.model.families.family import Family
from instil.model.families.keys import (
    Default,
    Fields,
    Fixed,
    Header,
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


class _Factor(Row):
    """A number that is one where ``config.json`` lacks it; where GGUF does (or says 0), llama.cpp leaves it out."""

    def __init__(self, field: str, config: str, gguf: str) -> None:
        self._field, self._config, self._gguf = field, config, gguf
        self.fields, self.understood = (field,), {config: ()}

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        return {self._field: config.get(self._config, 1.0)}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        left_out = spec.head_width**-0.5 if self._field == "attention_multiplier" else 1.0
        value = getattr(spec, self._field)
        return {self._config: left_out if value is None else value}

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        return {self._field: header.get(self._gguf) or None}

    def to_gguf(self, spec: DecoderSpec) -> dict[str, Any]:
        value = getattr(spec, self._field)
        if value is None and self._field != "logits_scaling":  # without which llama.cpp reads no file
            return {}
        return {self._gguf: 1.0 if value is None else float(value)}


class _PlainHeader(Row):
    """Refuses what a GGUF file of this architecture may say and is not implemented here."""

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        if not header.get("rope.scaling.finetuned", True):  # by this key llama.cpp knows models without rope
            raise ModelError("a granite GGUF without rope (rope.scaling.finetuned is false) is not implemented here")
        if experts := header.get("expert_count", 0):
            raise ModelError(f"a granite GGUF with {experts} experts is not implemented here")
        return {}


GRANITE = Family(
    name="granite",
    model_type="granite",
    architecture="GraniteForCausalLM",
    spec=partial(DecoderSpec, family="granite", norm="rms", mlp="swiglu", positions="rope"),
    keys=(
        _PlainHeader(),
        *SIZES,
        KV_HEADS,
        HEAD_WIDTH,
        Key("mlp_width", "intermediate_size", "feed_forward_length"),
        Context(),
        Key("norm_eps", Default("rms_norm_eps", 1e-6), "attention.layer_norm_rms_epsilon"),
        Rope("granite", Default("rope.freq_base", 10_000.0)),
        _Factor("embedding_multiplier", "embedding_multiplier", "embedding_scale"),
        _Factor("attention_multiplier", "attention_multiplier", "attention.scale"),
        _Factor("residual_multiplier", "residual_multiplier", "residual_scale"),
        _Factor("logits_scaling", "logits_scaling", "logit_scale"),
        Key("attention_bias", Default("attention_bias", False, blank=True), attention_bias),
        Key("mlp_bias", Default("mlp_bias", False, blank=True), mlp_bias),
        Fixed("hidden_act", "silu"),
        Key("tied", Default("tie_word_embeddings", False, blank=True), tied),
    ),
    prefix="model.",
    hub=HUB,
    gguf=gguf_table(paired_heads=True),
    unused=UNUSED,
)
