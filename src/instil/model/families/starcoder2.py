"""StarCoder2 (Lozhkov et al., 2024): GPT-2's norms, MLP and biases, with rope and fewer key/value heads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from instil.errors import ModelError
from instil.model.families.family import Family, Stored
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
from instil.model.families.sliding import OneWindow
from instil.model.spec import DecoderSpec


class _Biases(Row):
    """One key for the biases of all linear layers; norms always have one."""

    fields = ("attention_bias", "mlp_bias")
    understood: Mapping[str, tuple[Any, ...]] = {"use_bias": ()}

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        bias = config.get("use_bias", True)
        return {"attention_bias": bias, "mlp_bias": bias}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        if spec.attention_bias != spec.mlp_bias:
            raise ModelError("config.json of a starcoder2 model cannot say that only some linear layers have a bias")
        return {"use_bias": spec.mlp_bias}

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        return {"attention_bias": attention_bias(header, known), "mlp_bias": "blk.0.ffn_up.bias" in header.shapes}


def _with_gpt2s_mlp(table: Mapping[str, Stored], up: str, down: str) -> dict[str, Stored]:
    """Two matrices in place of three, and biases beside the norms."""
    kept = {ours: stored for ours, stored in table.items() if ".mlp." not in ours}
    norms = {
        ours.replace(".weight", ".bias"): Stored((stored.names[0].replace(".weight", ".bias"),))
        for ours, stored in kept.items()
        if "norm" in ours
    }
    mlp = {
        f"blocks.{{i}}.mlp.{ours}.{kind}": Stored((f"{theirs}.{kind}",))
        for ours, theirs in (("up", up), ("down", down))
        for kind in ("weight", "bias")
    }
    return {**kept, **norms, **mlp}


STARCODER2 = Family(
    name="starcoder2",
    model_type="starcoder2",
    architecture="Starcoder2ForCausalLM",
    spec=partial(DecoderSpec, family="starcoder2", norm="layer", mlp="gelu", positions="rope"),
    keys=(
        *SIZES,
        Key("kv_heads", Default("num_key_value_heads", 2), Default("attention.head_count_kv", heads)),
        HEAD_WIDTH,
        Key("mlp_width", "intermediate_size", "feed_forward_length"),
        Context(),
        Key("norm_eps", Default("norm_epsilon", 1e-5), "attention.layer_norm_epsilon"),
        Rope("starcoder2", Default("rope.freq_base", 10_000.0)),
        OneWindow("starcoder2"),
        _Biases(),
        Fixed("hidden_act", "gelu_pytorch_tanh", "gelu_new"),
        Fixed("norm_type", None, "layer_norm"),  # the published folders say so and how; transformers does not ask
        Fixed("mlp_type", None, "default"),
        Key("tied", Default("tie_word_embeddings", True), tied),
    ),
    prefix="model.",
    hub=_with_gpt2s_mlp(HUB, "layers.{i}.mlp.c_fc", "layers.{i}.mlp.c_proj"),
    gguf=_with_gpt2s_mlp(gguf_table(), "blk.{i}.ffn_up", "blk.{i}.ffn_down"),
    gguf_needs=("blocks.{i}.attention.out.bias", "blocks.{i}.mlp.up.bias", "blocks.{i}.mlp.down.bias"),
    gguf_even=True,
    unused=UNUSED,
)
