"""Tiny GGUF files written from a model of transformers, for tests of the reader."""

from __future__ import annotations

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
    writer = gguf.GGUFWriter(str(path), family)
    table = {"llama": LLAMA, "qwen3": QWEN3, "gemma3": GEMMA3, "gpt2": GPT2, "lfm2": LFM2}[family]
    if family != "gpt2":
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(_mlp_width(model))
        writer.add_head_count(config.num_attention_heads)
        if family == "lfm2":
            counts = [0 if kind == "conv" else config.num_key_value_heads for kind in config.layer_types]
            writer.add_head_count_kv(counts)
            writer.add_shortconv_l_cache(config.conv_L_cache)
        else:
            writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
        rope = config.rope_parameters
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
        writer.add_layer_norm_rms_eps(config.norm_eps if family == "lfm2" else config.rms_norm_eps)
        if family == "gemma3":
            _add_windows(writer, config)
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
        if family == "llama" and ours.endswith("attn_q"):
            value = pairs_from_halves(value, config.num_attention_heads)
        if family == "llama" and ours.endswith("attn_k"):
            value = pairs_from_halves(value, config.num_key_value_heads)
        if family == "gemma3" and name.endswith("norm.weight"):
            value = value + 1
        if name.endswith("conv.conv.weight"):
            value = value.squeeze(1)
        if family == "gpt2" and value.dim() == 2 and not ours.endswith("embd"):
            value = value.T if "c_" in stem else value
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
    layer = model.model.layers[0]
    return int(layer.feed_forward.w1.out_features) if hasattr(layer, "feed_forward") else model.config.intermediate_size


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
