"""Families that are not read, and what of theirs is missing here: named, so that nobody looks for a damaged file."""

from __future__ import annotations

_LINEAR = "linear attention (a gated delta rule)"
_EXPERTS = "a mixture of experts"
_STATES = "state-space layers"
_LATENT = "attention over latent keys and values"
_IMAGES = "a vision tower"

# By model_type in transformers and by architecture in GGUF.
NOT_READ: dict[str, str] = {
    **dict.fromkeys(("qwen3_next", "qwen3next"), f"{_LINEAR} and {_EXPERTS}"),
    **dict.fromkeys(("qwen3_5", "qwen35"), f"{_LINEAR} and {_IMAGES}"),
    "qwen3_5_text": _LINEAR,
    **dict.fromkeys(("qwen3_5_moe", "qwen3_5_moe_text", "qwen35moe"), f"{_LINEAR} and {_EXPERTS}"),
    **dict.fromkeys(("gemma4", "gemma4_text"), "embeddings for every layer and keys and values shared between layers"),
    **dict.fromkeys(
        ("gemma3n", "gemma3n_text"), "embeddings for every layer, several residual streams and sparse activations"
    ),
    **dict.fromkeys(
        """mixtral phimoe qwen2_moe qwen2moe qwen3_moe qwen3moe granitemoe granitemoehybrid granitehybrid olmoe llama4
        llama4_text dbrx gpt_oss gpt-oss glm4_moe glm4moe ernie4_5_moe ernie4_5-moe minimax jetmoe lfm2_moe lfm2moe
        hunyuan_v1_moe hunyuan-moe grok grok-1 dots1 flex_olmo afmoe bailingmoe phi3moe""".split(),
        _EXPERTS,
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek2", "kimi_k2"), f"{_LATENT} and {_EXPERTS}"),
    "minicpm3": _LATENT,
    **dict.fromkeys("mamba mamba2 falcon_mamba jamba bamba zamba zamba2 nemotron_h falcon_h1".split(), _STATES),
    **dict.fromkeys(("rwkv", "rwkv6", "rwkv7", "recurrent_gemma", "xlstm"), "recurrent layers"),
    **dict.fromkeys(
        """llava llava_next qwen2_vl qwen2vl qwen2_5_vl qwen3_vl qwen3vl mllama idefics3 smolvlm paligemma mistral3
        internvl pixtral gemma3 phi4_multimodal""".split(),
        _IMAGES,
    ),
    **dict.fromkeys("t5 bart mt5 umt5 pegasus t5gemma blenderbot".split(), "an encoder before its decoder"),
    **dict.fromkeys("bert roberta distilbert modernbert deberta-v2 electra xlm-roberta".split(), "no causal attention"),
}


def what_is_missing(name: str) -> str:
    """The end of a message about a family: what it has that is not implemented here, if that is known."""
    return f". It has {NOT_READ[name]}, which is not implemented here" if name in NOT_READ else ""
