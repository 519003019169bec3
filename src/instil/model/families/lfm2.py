"""LFM2, dense (Liquid AI, 2025, arXiv 2511.23404): most layers convolve the last few tokens, the others attend."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from instil.errors import ModelError
from instil.model.families.family import Family, Stored
from instil.model.families.keys import Default, Fields, Fixed, Header, Ignored, Key, Row, tied
from instil.model.families.rotary import HEAD_WIDTH, HUB, SIZES, UNUSED, Context, Rope, gguf_table
from instil.model.spec import DecoderSpec

_LENGTH = 3  # of a convolution, where nothing is said
_CONVOLVES, _ATTENDS = "conv", "full_attention"


def _given(config: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value of a key, or the default where it is missing or null."""
    return default if config.get(key) is None else config[key]


class _Layers(Row):
    """Which layers convolve, and how many tokens: a list of kinds, or of the layers with attention.

    GGUF counts the key/value heads of each layer, and where there are none is a convolution.
    """

    fields = ("convolutions", "kv_heads")
    understood: Mapping[str, tuple[Any, ...]] = {
        "layer_types": (), "full_attn_idxs": (), "conv_L_cache": (), "num_key_value_heads": (),
    }  # fmt: skip
    optional = False

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        kinds, attending = config.get("layer_types"), config.get("full_attn_idxs")
        if kinds is None:
            every = range(known["layers"])
            kinds = [_ATTENDS if attending is None or layer in attending else _CONVOLVES for layer in every]
        if strange := sorted(set(kinds) - {_CONVOLVES, _ATTENDS}):
            raise ModelError(
                f"config.json of an lfm2 model has layers of the kinds {strange} in layer_types, which is not "
                "implemented here"
            )
        length = _given(config, "conv_L_cache", _LENGTH)
        return {
            "convolutions": tuple(length if kind == _CONVOLVES else None for kind in kinds),
            "kv_heads": config["num_key_value_heads"],
        }

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        attends = [spec.convolution_of(layer) is None for layer in range(spec.layers)]
        return {
            "layer_types": [_ATTENDS if here else _CONVOLVES for here in attends],
            "full_attn_idxs": [layer for layer, here in enumerate(attends) if here],
            "conv_L_cache": _length(spec, "config.json"),
            "num_key_value_heads": spec.kv_heads,
        }

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        if window := header.get("attention.sliding_window", 0):
            raise ModelError(f"an lfm2 GGUF with a window of {window} tokens is not implemented here")
        counts = header["attention.head_count_kv"]
        counts = counts if isinstance(counts, list) else [counts] * known["layers"]
        different = set(counts) - {0}
        if len(different) > 1:
            raise ModelError(
                f"an lfm2 GGUF with unlike numbers of key/value heads, {sorted(different)}, is not implemented here"
            )
        length = header["shortconv.l_cache"]
        return {
            "convolutions": tuple(None if count else length for count in counts),
            "kv_heads": different.pop() if different else known["heads"],
        }

    def to_gguf(self, spec: DecoderSpec) -> dict[str, Any]:
        if spec.convolution_bias or spec.heads * spec.head_width != spec.width:
            raise ModelError(
                "llama.cpp computes an lfm2 model only without biases and with heads that together are as wide as the "
                "model. Use --to hf"
            )
        attends = [spec.convolution_of(layer) is None for layer in range(spec.layers)]
        return {
            "attention.head_count_kv": [spec.kv_heads if here else 0 for here in attends],
            "shortconv.l_cache": _length(spec, "GGUF"),
        }


def _length(spec: DecoderSpec, file: str) -> int:
    """The length of all convolutions."""
    lengths = {length for length in spec.convolutions if length is not None}
    if len(lengths) > 1:
        raise ModelError(
            f"{file} of an lfm2 model has room for convolutions of one length, and this model has {sorted(lengths)}"
        )
    return lengths.pop() if lengths else _LENGTH


class _MlpWidth(Row):
    """The width inside the MLP, which older files give as what it is made of; it is written as it is."""

    fields = ("mlp_width",)
    understood: Mapping[str, tuple[Any, ...]] = dict.fromkeys(
        (
            "intermediate_size", "block_ff_dim", "block_auto_adjust_ff_dim", "block_ffn_dim_multiplier",
            "block_multiple_of",
        ),
        (),
    )  # fmt: skip
    optional = False

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        width = config["intermediate_size"] if config.get("block_ff_dim") is None else config["block_ff_dim"]
        if _given(config, "block_auto_adjust_ff_dim", True):
            width = int(2 * width / 3)
            factor = config.get("block_ffn_dim_multiplier", 1.0)
            if factor is not None:
                multiple = _given(config, "block_multiple_of", 256)
                width = -(-int(factor * width) // multiple) * multiple
        return {"mlp_width": width}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        return {
            "intermediate_size": spec.mlp_width,
            "block_ff_dim": spec.mlp_width,
            "block_auto_adjust_ff_dim": False,
            "block_ffn_dim_multiplier": 1.0,
            "block_multiple_of": 256,
        }

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        return {"mlp_width": header["feed_forward_length"]}

    def to_gguf(self, spec: DecoderSpec) -> dict[str, Any]:
        return {"feed_forward_length": spec.mlp_width}


class _Tied(Row):
    """Whether the embedding is the head, under an older and a newer name, of which the older counts."""

    fields = ("tied",)
    understood: Mapping[str, tuple[Any, ...]] = {"tie_embedding": (), "tie_word_embeddings": ()}

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        return {"tied": _given(config, "tie_embedding", _given(config, "tie_word_embeddings", True))}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        return {"tie_word_embeddings": spec.tied, "tie_embedding": spec.tied}

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        return {"tied": tied(header, known)}


class _Twice(Row):
    """Sizes that the hub's files say once more under other names, which other programs read; they must agree."""

    _SAME = {  # noqa: RUF012
        "block_dim": "hidden_size", "conv_dim": "hidden_size", "conv_dim_out": "hidden_size",
        "num_heads": "num_attention_heads",
    }  # fmt: skip
    understood: Mapping[str, tuple[Any, ...]] = dict.fromkeys(_SAME, ())

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        for key, size in self._SAME.items():
            if config.get(key) not in (None, config[size]):
                raise ModelError(
                    f"config.json of an lfm2 model sets {key}={config[key]!r} beside {size}={config[size]!r}, which is "
                    "not implemented here"
                )
        return {}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        sizes = {"hidden_size": spec.width, "num_attention_heads": spec.heads}
        return {key: sizes[size] for key, size in self._SAME.items()}


def _convolution_bias(header: Header, known: Fields) -> bool:
    return any(name.endswith(".shortconv.conv.bias") for name in header.shapes)


def _linear(ours: str, *theirs: str) -> dict[str, Stored]:
    return {
        f"blocks.{{i}}.{ours}.{kind}": Stored(tuple(f"{name}.{kind}" for name in theirs)) for kind in ("weight", "bias")
    }


_HUB_NORMS = {
    "norm.weight": "embedding_norm.weight",
    "blocks.{i}.norm1.weight": "layers.{i}.operator_norm.weight",
    "blocks.{i}.norm2.weight": "layers.{i}.ffn_norm.weight",
    "blocks.{i}.attention.q_norm.weight": "layers.{i}.self_attn.q_layernorm.weight",
    "blocks.{i}.attention.k_norm.weight": "layers.{i}.self_attn.k_layernorm.weight",
}
_GGUF_NORMS = {
    "norm.weight": "token_embd_norm.weight",  # llama.cpp calls the last norm so in this family
    "blocks.{i}.attention.q_norm.weight": "blk.{i}.attn_q_norm.weight",
    "blocks.{i}.attention.k_norm.weight": "blk.{i}.attn_k_norm.weight",
}

LFM2 = Family(
    name="lfm2",
    model_type="lfm2",
    architecture="Lfm2ForCausalLM",
    spec=partial(DecoderSpec, family="lfm2", norm="rms", mlp="swiglu", positions="rope", qk_norm="head"),
    keys=(
        _Twice(),
        *SIZES,
        HEAD_WIDTH,
        _MlpWidth(),
        Context(),
        Key("norm_eps", Default("norm_eps", 1e-5), "attention.layer_norm_rms_epsilon"),
        Rope("lfm2", Default("rope.freq_base", 10_000.0), theta=1_000_000.0),
        _Layers(),
        Key("convolution_bias", Default("conv_bias", False, blank=True), _convolution_bias),
        Fixed("block_use_swiglu", None, True),
        Fixed("use_pos_enc", None, True),
        Ignored(
            "block_mlp_init_scale",
            "block_out_init_scale",
            "block_use_xavier_init",
            "conv_use_xavier_init",
            "block_norm_eps",
            "theta",
        ),
        _Tied(),
    ),
    prefix="model.",
    hub={
        **HUB,
        **{ours: Stored((name,)) for ours, name in _HUB_NORMS.items()},
        **_linear("attention.out", "layers.{i}.self_attn.out_proj"),
        **_linear("mlp.gate_up", "layers.{i}.feed_forward.w1", "layers.{i}.feed_forward.w3"),
        **_linear("mlp.down", "layers.{i}.feed_forward.w2"),
        **_linear("convolution.in_proj", "layers.{i}.conv.in_proj"),
        **_linear("convolution.out", "layers.{i}.conv.out_proj"),
        "blocks.{i}.convolution.weight": Stored(("layers.{i}.conv.conv.weight",), by_channel=True),
        "blocks.{i}.convolution.bias": Stored(("layers.{i}.conv.conv.bias",)),
    },
    gguf={
        **gguf_table(),
        **{ours: Stored((name,)) for ours, name in _GGUF_NORMS.items()},
        **_linear("convolution.in_proj", "blk.{i}.shortconv.in_proj"),
        **_linear("convolution.out", "blk.{i}.shortconv.out_proj"),
        "blocks.{i}.convolution.weight": Stored(("blk.{i}.shortconv.conv.weight",)),
        "blocks.{i}.convolution.bias": Stored(("blk.{i}.shortconv.conv.bias",)),
    },
    unused=UNUSED,
)
