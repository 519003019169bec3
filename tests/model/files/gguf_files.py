"""Tiny GGUF files written from a model of transformers, for tests of the reader."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

LLAMA = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
QWEN3 = {**LLAMA, "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
GEMMA3 = {
    **QWEN3, "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
LFM2 = {
    "model.embed_tokens": "token_embd", "model.embedding_norm": "token_embd_norm", "lm_head": "output",
    "operator_norm": "attn_norm", "ffn_norm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output", "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm", "conv.conv": "shortconv.conv", "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj", "feed_forward.w1": "ffn_gate", "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
}  # fmt: skip
PHI3 = {**LLAMA, "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
STARCODER2 = {**LLAMA, "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
GPT_NEOX = {
    "gpt_neox.embed_in": "token_embd", "gpt_neox.final_layer_norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "attention.query_key_value": "attn_qkv", "attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down",
}  # fmt: skip
GEMMA2 = {name: theirs for name, theirs in GEMMA3.items() if "q_norm" not in name and "k_norm" not in name}
OLMO = {name: theirs for name, theirs in GEMMA3.items() if name not in ("input_layernorm", "pre_feedforward_layernorm")}
TABLES = {
    "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "smollm3": LLAMA, "qwen3": QWEN3, "gemma3": GEMMA3,
    "phi3": PHI3, "starcoder2": STARCODER2, "gpt_neox": GPT_NEOX, "gemma": LLAMA, "gemma2": GEMMA2,
    "granite": LLAMA, "olmo2": OLMO, "olmo3": OLMO, "lfm2": LFM2,
}  # fmt: skip
ARCHITECTURES = {"mistral": "llama", "gpt_neox": "gptneox", "olmo3": "olmo2"}  # where it is not the family's name
PAIRED = ("llama", "mistral", "smollm3", "granite")  # whose queries and keys llama.cpp turns by neighbouring pairs
GPT2 = {
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
    "lm_head": "output", "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip


SCALES = {  # where a block of a K quant keeps its half-precision scales
    Kind.Q2_K: (80, 84),
    Kind.Q3_K: (108, 110),
    Kind.Q4_K: (0, 4),
    Kind.Q5_K: (0, 4),
    Kind.Q6_K: (208, 210),
}


def pairs_from_halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's order of a head's rows: neighbouring rotary pairs."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(model: Any, path: Path, kind: Kind = Kind.F32) -> dict[str, np.ndarray]:
    """Write a model as GGUF; matrices are stored as ``kind``. Returns the raw stored arrays."""
    config = model.config
    family = config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(str(path), ARCHITECTURES.get(family, family))
    table = {**TABLES, "gpt2": GPT2}[family]
    if family != "gpt2":
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(_mlp_width(model))
        writer.add_head_count(config.num_attention_heads)
        if family == "lfm2":
            writer.add_head_count_kv([config.num_key_value_heads * (kind != "conv") for kind in config.layer_types])
            writer.add_shortconv_l_cache(config.conv_L_cache)
        else:
            writer.add_head_count_kv(getattr(config, "num_key_value_heads", config.num_attention_heads))
        head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        writer.add_key_length(head_width)
        writer.add_value_length(head_width)
        rope = config.rope_parameters
        turned = int(head_width * rope.get("partial_rotary_factor", 1.0))
        writer.add_rope_dimension_count(turned)
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
        if family == "lfm2":
            writer.add_layer_norm_rms_eps(config.norm_eps)
        elif hasattr(config, "rms_norm_eps"):
            writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        else:
            writer.add_layer_norm_eps(getattr(config, "norm_epsilon", None) or config.layer_norm_eps)
        if family == "gemma3":
            _add_windows(writer, config)
        elif getattr(config, "sliding_window", None):
            writer.add_sliding_window(config.sliding_window)
        if family == "gpt_neox":
            writer.add_parallel_residual(config.use_parallel_residual)
        _add_caps_and_factors(writer, family, config)
        own = rope if family == "gemma3" else rope.get("full_attention", rope)
        _add_scaling(writer, own, turned, config.max_position_embeddings)
    else:
        writer.add_context_length(config.n_positions)
        writer.add_embedding_length(config.n_embd)
        writer.add_block_count(config.n_layer)
        writer.add_feed_forward_length(config.n_inner)
        writer.add_head_count(config.n_head)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    stored: dict[str, np.ndarray] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = tensor.detach().float()
        stem, _, leaf = name.rpartition(".")
        parts = stem.split(".")
        if ".layers." in name or ".h." in name:
            ours = f"blk.{parts[2]}.{table['.'.join(parts[3:])]}"
        else:
            ours = table[stem]
        value = _as_llama_cpp_has_it(value, name, ours, family, config)
        array = np.ascontiguousarray(value.numpy())
        if value.dim() == 2 and kind != Kind.F32:
            block, _ = gguf.GGML_QUANT_SIZES[kind]
            if array.shape[-1] % block == 0:
                raw = _quantised(array, kind)
                stored[f"{ours}.{leaf}"] = raw
                writer.add_tensor(f"{ours}.{leaf}", raw, raw_dtype=kind)
                continue
        stored[f"{ours}.{leaf}"] = array
        writer.add_tensor(f"{ours}.{leaf}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _mlp_width(model: Any) -> int:
    """What the MLP has, which in LFM2 is not what the configuration says."""
    if model.config.model_type == "lfm2":
        return int(model.model.layers[0].feed_forward.w1.out_features)
    return int(model.config.intermediate_size)


def _as_llama_cpp_has_it(value: torch.Tensor, name: str, ours: str, family: str, config: Any) -> torch.Tensor:
    if family in PAIRED and ours.endswith("attn_q"):
        return pairs_from_halves(value, config.num_attention_heads)
    if family in PAIRED and ours.endswith("attn_k"):
        return pairs_from_halves(value, config.num_key_value_heads)
    if family == "gpt_neox" and ours.endswith("attn_qkv"):
        by_head = value.reshape(config.num_attention_heads, 3, -1, *value.shape[1:])
        return by_head.swapaxes(0, 1).reshape(value.shape)
    if family.startswith("gemma") and name.endswith("norm.weight"):
        return value + 1
    if family == "gpt2" and value.dim() == 2 and not ours.endswith("embd"):
        return value.T if "c_" in name else value
    return value.squeeze(1) if name.endswith("conv.conv.weight") else value


def _add_scaling(writer: gguf.GGUFWriter, rope: Any, head_width: int, context: int) -> None:
    """As llama.cpp's converter writes them: keys of the header, or a tensor with a number for every pair."""
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if kind == "longrope":
        factor = rope["factor"] if rope.get("factor") else context / rope["original_max_position_embeddings"]
        trained = rope["original_max_position_embeddings"]
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(factor) / math.log(trained)))
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(rope[f"{name}_factor"], dtype=np.float32))
    if kind == "llama3":
        low, high, trained = (
            rope[key] for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        )
        factors = []
        for n in range(0, head_width, 2):
            length = 2 * math.pi * rope["rope_theta"] ** (n / head_width)
            smooth = (trained / length - low) / (high - low)
            between = 1 / ((1 - smooth) / rope["factor"] + smooth)
            factors.append(1 if length < trained / high else rope["factor"] if length > trained / low else between)
        writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))


def _add_caps_and_factors(writer: gguf.GGUFWriter, family: str, config: Any) -> None:
    if family in ("gemma2", "olmo3"):
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if family == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
        writer.add_attention_scale(config.attention_multiplier)


def _add_windows(writer: gguf.GGUFWriter, config: Any) -> None:
    """What llama.cpp does not know by heart: it takes one layer in six, and 10000, where these are absent."""
    writer.add_sliding_window(config.sliding_window)
    windowed = [kind == "sliding_attention" for kind in config.layer_types]
    if windowed != [(layer + 1) % 6 != 0 for layer in range(len(windowed))]:
        writer.add_sliding_window_pattern(windowed)
    if config.rope_parameters["sliding_attention"]["rope_theta"] != 10_000.0:
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    full = config.rope_parameters["full_attention"]
    if full["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])


def _quantised(array: np.ndarray, kind: Kind) -> np.ndarray:
    """Quantise, or, for the K quants that the package only reads, make random blocks with small scales."""
    try:
        return gguf.quants.quantize(array, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        rng = np.random.default_rng(0)
        shape = (*array.shape[:-1], array.shape[-1] // block, size)
        raw = rng.integers(0, 256, shape, dtype=np.uint8)
        first, last = SCALES[kind]
        small = rng.uniform(0.00001, 0.0001, (*shape[:-1], (last - first) // 2)).astype(np.float16)
        raw[..., first:last] = small.view(np.uint8)
        return raw.reshape(*array.shape[:-1], -1)
