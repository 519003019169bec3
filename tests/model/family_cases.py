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


SIZES = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 28, "max_position_embeddings": 64,
}  # fmt: skip
HEADS_ALIKE = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
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
    "gemma3-capped": Case(
        model="Gemma3ForCausalLM",
        config={
            "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 6, "intermediate_size": 28, "max_position_embeddings": 64, "query_pre_attn_scalar": 6,
            "sliding_window": 4, "final_logit_softcapping": 2.5, "pad_token_id": None,
        },
    ),
    "qwen3": Case(
        model="Qwen3ForCausalLM",
        config={
            "hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 3,
            "head_dim": 8, "intermediate_size": 28, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
            "attention_bias": True, "rope_parameters": rope(3000.0),
        },
    ),
    "gemma": Case(
        model="GemmaForCausalLM",
        config={
            "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
            "head_dim": 10, "intermediate_size": 36, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
            "attention_bias": True, "pad_token_id": None, "rope_parameters": rope(700.0),
        },
    ),
    "gemma2": Case(  # caps that scores and logits come near to
        model="Gemma2ForCausalLM",
        config={
            "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 3,
            "head_dim": 10, "intermediate_size": 36, "max_position_embeddings": 64, "query_pre_attn_scalar": 7,
            "sliding_window": 5, "layer_types": [WINDOWED, FULL, WINDOWED], "rms_norm_eps": 1e-5,
            "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.5, "pad_token_id": None,
            "rope_parameters": rope(900.0),
        },
        gguf={"query_pre_attn_scalar": 10},
    ),
    "gemma2-uncapped": Case(
        model="Gemma2ForCausalLM",
        config={
            "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "head_dim": 6, "intermediate_size": 28, "max_position_embeddings": 64, "query_pre_attn_scalar": 6,
            "sliding_window": 4, "attn_logit_softcapping": None, "final_logit_softcapping": None,
            "attention_bias": True, "pad_token_id": None,
        },
        gguf=None,
    ),
    "granite": Case(
        model="GraniteForCausalLM",
        config={
            "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
            "head_dim": 8, "intermediate_size": 36, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
            "attention_bias": True, "mlp_bias": True, "rope_parameters": rope(5000.0), "embedding_multiplier": 3.7,
            "attention_multiplier": 0.23, "residual_multiplier": 0.6, "logits_scaling": 1.3,
        },
    ),
    "olmo2": Case(
        model="Olmo2ForCausalLM",
        config={
            "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3,
            "head_dim": 8, "intermediate_size": 28, "max_position_embeddings": 64, "attention_bias": True,
            "pad_token_id": None, "rope_parameters": rope(3000.0),
        },
    ),
    "olmo3": Case(
        model="Olmo3ForCausalLM",
        config={
            "hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 3, "num_key_value_heads": 1,
            "head_dim": 10, "intermediate_size": 36, "max_position_embeddings": 64, "sliding_window": 6,
            "pad_token_id": None, "rope_parameters": {WINDOWED: rope(70.0), FULL: rope(400.0, "linear", factor=3.0)},
        },
        gguf={"rope_parameters": {WINDOWED: rope(400.0), FULL: rope(400.0, "linear", factor=3.0)}},
    ),
    "olmo3-yarn": Case(
        model="Olmo3ForCausalLM",
        config={
            "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "num_key_value_heads": 3,
            "intermediate_size": 28, "max_position_embeddings": 64, "sliding_window": 3, "pad_token_id": None,
            "attention_bias": True, "rope_parameters": {
                WINDOWED: rope(300.0), FULL: rope(300.0, "yarn", factor=3.0, original_max_position_embeddings=20),
            },
        },
    ),
    "qwen2": Case(model="Qwen2ForCausalLM", config={**SIZES, "rms_norm_eps": 1e-4, "rope_parameters": rope(3000.0)}),
    "qwen2-windows": Case(
        model="Qwen2ForCausalLM",
        config={
            **SIZES, "head_dim": 8, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1,
            "rope_parameters": rope(300.0, "yarn", factor=3.0, original_max_position_embeddings=20),
        },
        gguf=None,  # llama.cpp knows of no windows in this family
    ),
    "mistral": Case(
        model="MistralForCausalLM",
        config={**SIZES, "head_dim": 6, "sliding_window": None, "rope_parameters": rope(700.0)},
    ),
    "mistral-window": Case(
        model="MistralForCausalLM",
        config={**SIZES, "num_key_value_heads": 1, "sliding_window": 7, "rope_parameters": rope(700.0)},
        gguf=None,
    ),
    "phi3": Case(
        model="Phi3ForCausalLM",
        config={**SIZES, "sliding_window": 5, "pad_token_id": None, "rope_parameters": rope(900.0)},
    ),
    "phi3-longrope": Case(
        model="Phi3ForCausalLM",
        config={
            **SIZES, "hidden_size": 48, "pad_token_id": None, "partial_rotary_factor": 0.75, "sliding_window": 300,
            "original_max_position_embeddings": 24,
            "rope_parameters": rope(900.0, "longrope", short_factor=[1.0, 1.1, 1.5], long_factor=[1.5, 3.0, 9.0]),
        },
    ),
    "smollm3": Case(
        model="SmolLM3ForCausalLM",
        config={**SIZES, "num_hidden_layers": 5, "pad_token_id": None, "rope_parameters": rope(700.0)},
    ),
    "smollm3-windows": Case(
        model="SmolLM3ForCausalLM",
        config={
            **SIZES, "pad_token_id": None, "no_rope_layers": [0, 1, 0, 1], "use_sliding_window": True,
            "sliding_window": 4, "attention_bias": True, "rope_parameters": rope(700.0),
        },
        gguf=None,  # llama.cpp knows one order of layers by heart
    ),
    "starcoder2": Case(
        model="Starcoder2ForCausalLM",
        config={**SIZES, "norm_epsilon": 1e-4, "rope_parameters": rope(700.0)},
    ),
    "starcoder2-window": Case(
        model="Starcoder2ForCausalLM",
        config={**SIZES, "use_bias": False, "sliding_window": 5, "rope_parameters": rope(700.0)},
        gguf=None,
    ),
    "gpt_neox": Case(
        model="GPTNeoXForCausalLM",
        config={**HEADS_ALIKE, "hidden_size": 48, "rotary_pct": 0.25, "layer_norm_eps": 1e-4},
    ),
    "gpt_neox-serial": Case(
        model="GPTNeoXForCausalLM",
        config={
            **HEADS_ALIKE, "hidden_act": "gelu_fast", "attention_bias": False, "use_parallel_residual": False,
            "rope_parameters": rope(300.0, "linear", factor=2.0, partial_rotary_factor=0.5),
        },
        gguf=None,  # it has no word for the activation
    ),
    "lfm2": Case(  # the width of its MLP is 32: two thirds of 28, half as much again, up to a multiple of 16
        model="Lfm2ForCausalLM",
        config={
            "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
            "head_dim": 8, "intermediate_size": 28, "block_ffn_dim_multiplier": 1.5, "block_multiple_of": 16,
            "max_position_embeddings": 64, "norm_eps": 1e-5, "conv_L_cache": 4, "conv_bias": True,
            "layer_types": ["conv", FULL, "conv", "conv"], "pad_token_id": None, "rope_parameters": rope(3000.0),
        },
        gguf={"conv_bias": False, "head_dim": 4},  # llama.cpp knows no others, though the file has words for them
    ),
}  # fmt: skip
