"""Decoders by their shapes alone: one small enough to count by hand, and Llama 3 8B."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from instil.model.spec import DecoderSpec

SMALL = DecoderSpec(
    family="llama", vocab_size=10, width=8, layers=2, heads=2, kv_heads=1, head_width=4, mlp_width=16, context=32,
    norm="rms", norm_eps=1e-5, mlp="swiglu", positions="rope", tied=False,
)  # fmt: skip
LLAMA_3_8B: dict[str, Any] = {  # config.json of meta-llama/Meta-Llama-3-8B
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "llama", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip


def llama_3_8b(folder: Path) -> Path:
    """A folder with the configuration of Llama 3 8B and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B))
    return folder
