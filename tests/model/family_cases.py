"""Tiny models of every family, over which the parity tests run: one table, a case a line or a few.

A case is a class of transformers and what stands in its configuration, at awkward sizes: a head width that is not
width/heads and fewer key/value heads where the family allows, windows shorter than the texts of 23 tokens, biases on.
Vocabulary (97), tying and end tokens are put in by `tests.conftest.tiny_reference`. A family has as many cases as it
has ways to differ that a spec must hold; their names begin with the family's, and go on after a hyphen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WINDOWED, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One tiny model.

    Attributes:
        model: its class in transformers.
        config: of it, without what every case has.
        gguf: changes without which GGUF has no words for it; None where it has no form in GGUF at all.
    """

    model: str
    config: Mapping[str, Any]
    gguf: Mapping[str, Any] | None = field(default_factory=dict)

    def __hash__(self) -> int:
        return id(self)


def rope(theta: float, kind: str = "default", **more: Any) -> dict[str, Any]:
    """``rope_parameters`` of transformers 5."""
    return {"rope_type": kind, "rope_theta": theta, **more}


CASES: dict[str, Case] = {
    "gpt2": Case(
        model="GPT2LMHeadModel",
        config={"n_embd": 20, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 36},
    ),
    "llama": Case(
        model="LlamaForCausalLM",
        config={
            "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
            "head_dim": 8, "intermediate_size": 36, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
            "attention_bias": True, "mlp_bias": True, "rope_parameters": rope(5000.0),
        },
    ),
    "gemma3": Case(  # no padding id, which would have no gradient
        model="Gemma3ForCausalLM",
        config={
            "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
            "head_dim": 10, "intermediate_size": 36, "max_position_embeddings": 64, "query_pre_attn_scalar": 7,
            "sliding_window": 5, "layer_types": [WINDOWED, FULL] * 2, "rms_norm_eps": 1e-5, "pad_token_id": None,
            "rope_parameters": {WINDOWED: rope(50.0), FULL: rope(4000.0, "linear", factor=3.0)},
        },
        gguf={"query_pre_attn_scalar": 10},
    ),
    "qwen3": Case(
        model="Qwen3ForCausalLM",
        config={
            "hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 3,
            "head_dim": 8, "intermediate_size": 28, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
            "attention_bias": True, "rope_parameters": rope(3000.0),
        },
    ),
    "lfm2": Case(  # the width of its MLP is 32: two thirds of 28, half as much again, up to a multiple of 16
        model="Lfm2ForCausalLM",
        config={
            "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
            "head_dim": 8, "intermediate_size": 28, "block_ffn_dim_multiplier": 1.5, "block_multiple_of": 16,
            "max_position_embeddings": 64, "norm_eps": 1e-5, "conv_L_cache": 4, "conv_bias": True,
            "layer_types": ["conv", FULL, "conv", "conv"], "pad_token_id": None, "rope_parameters": rope(3000.0),
        },
    ),
}  # fmt: skip
