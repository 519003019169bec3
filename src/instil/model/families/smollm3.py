"""SmolLM3 (Bakouch et al., 2025): Llama's form, in which one layer in four has no positions (NoPE)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from instil.model.families.family import Family
from instil.model.families.keys import Default, Fields, Fixed, Header, Key, Row, attention_bias, tied
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
from instil.model.families.sliding import FULL, WINDOWED, SomeWindows
from instil.model.spec import DecoderSpec

_PERIOD = 4  # one layer in so many does not turn; llama.cpp knows no other


class _RopeLayers(Row):
    """Which layers turn: a list with a one for each that does, or how many from one that does not to the next."""

    fields = ("rope_layers",)
    understood: Mapping[str, tuple[Any, ...]] = {"no_rope_layers": (), "no_rope_layer_interval": ()}

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        given = config.get("no_rope_layers")
        if given is None:
            return {"rope_layers": _every(config.get("no_rope_layer_interval", _PERIOD), known["layers"])}
        return {"rope_layers": tuple(bool(turns) for turns in given[: known["layers"]])}  # it may be longer

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        return {"no_rope_layers": [int(spec.turns(layer)) for layer in range(spec.layers)]}

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        return {"rope_layers": _every(_PERIOD, known["layers"])}


def _every(period: int, layers: int) -> tuple[bool, ...]:
    return tuple((layer + 1) % period != 0 for layer in range(layers))


def _kinds(config: Mapping[str, Any], known: Fields) -> list[str]:
    return [FULL if turns else WINDOWED for turns in known["rope_layers"]]


def _mlp_bias(header: Header, known: Fields) -> bool:
    return "blk.0.ffn_gate.bias" in header.shapes


SMOLLM3 = Family(
    name="smollm3",
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    spec=partial(DecoderSpec, family="smollm3", norm="rms", mlp="swiglu", positions="rope"),
    keys=(
        *SIZES,
        Key(
            "kv_heads",
            Default("num_key_value_heads", heads, blank=True, missing=4),
            Default("attention.head_count_kv", heads),
        ),
        HEAD_WIDTH,
        Key("mlp_width", "intermediate_size", "feed_forward_length"),
        Context(),
        Key("norm_eps", Default("rms_norm_eps", 1e-6), "attention.layer_norm_rms_epsilon"),
        Rope("smollm3", Default("rope.freq_base", 10_000.0), theta=2_000_000.0),
        _RopeLayers(),
        SomeWindows("smollm3", _kinds),
        Key("attention_bias", Default("attention_bias", False, blank=True), attention_bias),
        Key("mlp_bias", Default("mlp_bias", False, blank=True), _mlp_bias),
        Fixed("hidden_act", "silu"),
        Key("tied", Default("tie_word_embeddings", True), tied),
    ),
    prefix="model.",
    hub=HUB,
    gguf=gguf_table(paired_heads=True),
    gguf_lacks=("blocks.{i}.attention.out.bias", "blocks.{i}.mlp.gate_up.bias", "blocks.{i}.mlp.down.bias"),
    unused=UNUSED,
)
