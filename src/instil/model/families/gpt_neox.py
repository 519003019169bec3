"""GPT-NeoX (Black et al., 2022) and Pythia: GPT-2's parts with rope on a part of each head, and a parallel residual.

Its files hold query, key and value of one head after another in one matrix; GGUF holds them as we do.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from instil.errors import ModelError
from instil.model.families.family import Family, Stored
from instil.model.families.keys import Default, Fields, Header, Key, Row, tied
from instil.model.families.rotary import SIZES, UNUSED, Context, Rope
from instil.model.spec import DecoderSpec

_TANH = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # three ways to write one function


class _Shape(Row):
    """Heads share the width evenly and have keys and values of their own."""

    fields = ("head_width", "kv_heads")
    understood: Mapping[str, tuple[Any, ...]] = {"head_dim": ()}

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        found = self.from_gguf(None, known)
        if config.get("head_dim") not in (None, found["head_width"]):
            raise ModelError(
                f"config.json of a gpt_neox model sets head_dim={config['head_dim']!r}, where its heads are "
                f"{found['head_width']} wide"
            )
        return found

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        if spec.heads * spec.head_width != spec.width or spec.kv_heads != spec.heads:
            raise ModelError("config.json of a gpt_neox model cannot say that heads do not share the width evenly")
        return {}

    def from_gguf(self, header: Header | None, known: Fields) -> dict[str, Any]:
        width, heads = known["width"], known["heads"]
        if width % heads:
            raise ValueError(f"a width of {width} does not divide by {heads} heads")
        return {"head_width": width // heads, "kv_heads": heads}


class _Activation(Row):
    """GELU itself or its tanh form; GGUF does not say which, and the published models have GELU itself."""

    fields = ("mlp",)
    understood: Mapping[str, tuple[Any, ...]] = {"hidden_act": ("gelu", *_TANH)}

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        return {"mlp": "gelu" if config.get("hidden_act") in _TANH else "gelu_exact"}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        return {"hidden_act": "gelu" if spec.mlp == "gelu_exact" else "gelu_pytorch_tanh"}

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        return {"mlp": "gelu_exact"}


def _attention_bias(header: Header, known: Fields) -> bool:
    return "blk.0.attn_qkv.bias" in header.shapes


def _names(layer: str, parts: Mapping[str, str], whole: Mapping[str, str], *, by_head: bool) -> dict[str, Stored]:
    table = {ours: Stored((name,)) for ours, name in whole.items()}
    for ours, theirs in parts.items():
        for kind in ("weight", "bias"):
            stored = Stored((f"{layer}.{theirs}.{kind}",), by_head=by_head and ours == "attention.qkv")
            table[f"blocks.{{i}}.{ours}.{kind}"] = stored
    return table


GPT_NEOX = Family(
    name="gpt_neox",
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    spec=partial(DecoderSpec, family="gpt_neox", norm="layer", positions="rope", mlp_bias=True),
    keys=(
        *SIZES,
        _Shape(),
        Key("mlp_width", "intermediate_size", "feed_forward_length"),
        Context(),
        Key("norm_eps", Default("layer_norm_eps", 1e-5), "attention.layer_norm_epsilon"),
        Rope(
            "gpt_neox",
            Default("rope.freq_base", 10_000.0),
            partial=True,
            part=0.25,
            keys=("rotary_emb_base", "rotary_pct"),
        ),
        _Activation(),
        Key("parallel_residual", Default("use_parallel_residual", True), Default("use_parallel_residual", True)),
        Key("attention_bias", Default("attention_bias", True), _attention_bias),
        Key("tied", Default("tie_word_embeddings", False, blank=True), tied),
    ),
    prefix="gpt_neox.",
    hub=_names(
        "layers.{i}",
        {
            "norm1": "input_layernorm",
            "norm2": "post_attention_layernorm",
            "attention.qkv": "attention.query_key_value",
            "attention.out": "attention.dense",
            "mlp.up": "mlp.dense_h_to_4h",
            "mlp.down": "mlp.dense_4h_to_h",
        },
        {
            "embed.weight": "embed_in.weight",
            "norm.weight": "final_layer_norm.weight",
            "norm.bias": "final_layer_norm.bias",
            "head.weight": "lm_head.weight",
        },
        by_head=True,
    ),
    gguf=_names(
        "blk.{i}",
        {
            "norm1": "attn_norm",
            "norm2": "ffn_norm",
            "attention.qkv": "attn_qkv",
            "attention.out": "attn_output",
            "mlp.up": "ffn_up",
            "mlp.down": "ffn_down",
        },
        {
            "embed.weight": "token_embd.weight",
            "norm.weight": "output_norm.weight",
            "norm.bias": "output_norm.bias",
            "head.weight": "output.weight",
        },
        by_head=False,
    ),
    gguf_needs=("head.weight", "blocks.{i}.attention.qkv.bias", "blocks.{i}.attention.out.bias"),
    gguf_architecture="gptneox",
    unused=(*UNUSED, ".attention.bias", ".attention.masked_bias"),  # causal masks that old checkpoints carry
    renamed={"embed_out.weight": "lm_head.weight"},
)
