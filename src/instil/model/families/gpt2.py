"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, GELU, biases everywhere, Conv1D weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instil.model.families.family import Family, Stored, refuse_strangers
from instil.model.spec import DecoderSpec

_UNDERSTOOD: dict[str, tuple[Any, ...]] = {
    "vocab_size": (),
    "n_embd": (),
    "n_layer": (),
    "n_head": (),
    "n_positions": (),
    "n_inner": (),
    "layer_norm_epsilon": (),
    "tie_word_embeddings": (),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
}


def _spec_from_config(config: Mapping[str, Any]) -> DecoderSpec:
    refuse_strangers("gpt2", config, _UNDERSTOOD)
    width = config["n_embd"]
    return gpt2_spec(
        vocab_size=config["vocab_size"],
        width=width,
        layers=config["n_layer"],
        heads=config["n_head"],
        mlp_width=config.get("n_inner") or 4 * width,
        context=config["n_positions"],
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        tied=config.get("tie_word_embeddings", True),
    )


def _spec_from_gguf(meta: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> DecoderSpec:
    return gpt2_spec(
        vocab_size=shapes["token_embd.weight"][0],
        width=meta["gpt2.embedding_length"],
        layers=meta["gpt2.block_count"],
        heads=meta["gpt2.attention.head_count"],
        mlp_width=meta["gpt2.feed_forward_length"],
        context=meta["gpt2.context_length"],
        norm_eps=meta["gpt2.attention.layer_norm_epsilon"],
        tied="output.weight" not in shapes,
    )


HPARAMS = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")


def spec_from_hparams(hparams: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> DecoderSpec:
    """The spec from OpenAI's ``hparams.json``; the width of the MLP is only in the tensors' shapes.

    Raises:
        KeyError: a key or the MLP's weight is missing.
        ModelError: there are keys that are not known.
        ValueError: the numbers cannot be those of a decoder.
    """
    refuse_strangers("gpt2", hparams, dict.fromkeys(HPARAMS, ()), file="hparams.json")
    values = {key: hparams[key] for key in HPARAMS}
    spec = gpt2_spec(
        vocab_size=values["n_vocab"],
        width=values["n_embd"],
        layers=values["n_layer"],
        heads=values["n_head"],
        mlp_width=shapes["model/h0/mlp/c_fc/w"][-1],
        context=values["n_ctx"],
        norm_eps=1e-5,
        tied=True,
    )
    if spec.heads * spec.head_width != spec.width:
        raise ValueError(f"a width of {spec.width} does not divide by {spec.heads} heads")
    return spec


def gpt2_spec(
    *,
    vocab_size: int,
    width: int,
    layers: int,
    heads: int,
    mlp_width: int,
    context: int,
    norm_eps: float,
    tied: bool,
) -> DecoderSpec:
    """What all GPT-2 models have in common, and what tells them apart."""
    return DecoderSpec(
        family="gpt2",
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        mlp_width=mlp_width,
        context=context,
        norm="layer",
        norm_eps=norm_eps,
        mlp="gelu",
        positions="learned",
        attention_bias=True,
        mlp_bias=True,
        tied=tied,
    )


def _config_from_spec(spec: DecoderSpec) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": spec.vocab_size,
        "n_embd": spec.width,
        "n_layer": spec.layers,
        "n_head": spec.heads,
        "n_positions": spec.context,
        "n_inner": spec.mlp_width,
        "layer_norm_epsilon": spec.norm_eps,
        "activation_function": "gelu_new",
        "tie_word_embeddings": spec.tied,
    }


def _norms_and_biases(table: dict[str, Stored]) -> dict[str, Stored]:
    """Every weight of GPT-2's blocks has a bias of the same name, which is never transposed."""
    biases = {
        ours.replace(".weight", ".bias"): Stored(
            tuple(n.replace(".weight", ".bias").replace(".scale", ".shift") for n in stored.names)
        )
        for ours, stored in table.items()
        if ours not in ("embed.weight", "positions.weight", "head.weight")
    }
    return {**table, **biases}


BOOK_HEAD_WIDTH = 64  # in all four sizes
BOOK_NAMES = _norms_and_biases(
    {
        "embed.weight": Stored(("tok_emb.weight",)),
        "positions.weight": Stored(("pos_emb.weight",)),
        "blocks.{i}.norm1.weight": Stored(("trf_blocks.{i}.norm1.scale",)),
        "blocks.{i}.attention.qkv.weight": Stored(
            tuple(f"trf_blocks.{{i}}.att.W_{part}.weight" for part in ("query", "key", "value"))
        ),
        "blocks.{i}.attention.out.weight": Stored(("trf_blocks.{i}.att.out_proj.weight",)),
        "blocks.{i}.norm2.weight": Stored(("trf_blocks.{i}.norm2.scale",)),
        "blocks.{i}.mlp.up.weight": Stored(("trf_blocks.{i}.ff.layers.0.weight",)),
        "blocks.{i}.mlp.down.weight": Stored(("trf_blocks.{i}.ff.layers.2.weight",)),
        "norm.weight": Stored(("final_norm.scale",)),
        "head.weight": Stored(("out_head.weight",)),
    }
)


def _tensorflow() -> dict[str, Stored]:
    """OpenAI's names: ``w`` and ``b`` for a matrix, ``g`` and ``b`` for a norm; the embedding is the head."""
    norms = {"blocks.{i}.norm1": "model/h{i}/ln_1", "blocks.{i}.norm2": "model/h{i}/ln_2", "norm": "model/ln_f"}
    matrices = {
        "blocks.{i}.attention.qkv": "model/h{i}/attn/c_attn",
        "blocks.{i}.attention.out": "model/h{i}/attn/c_proj",
        "blocks.{i}.mlp.up": "model/h{i}/mlp/c_fc",
        "blocks.{i}.mlp.down": "model/h{i}/mlp/c_proj",
    }
    return (
        {"embed.weight": Stored(("model/wte",)), "positions.weight": Stored(("model/wpe",))}
        | {"head.weight": Stored(("model/wte",))}
        | {f"{ours}.weight": Stored((f"{name}/g",)) for ours, name in norms.items()}
        | {f"{ours}.weight": Stored((f"{name}/w",), transposed=True) for ours, name in matrices.items()}
        | {f"{ours}.bias": Stored((f"{name}/b",)) for ours, name in (norms | matrices).items()}
    )


GPT2_TENSORFLOW = _tensorflow()

GPT2 = Family(
    name="gpt2",
    model_type="gpt2",
    prefix="transformer.",
    hub=_norms_and_biases(
        {
            "embed.weight": Stored(("wte.weight",)),
            "positions.weight": Stored(("wpe.weight",)),
            "blocks.{i}.norm1.weight": Stored(("h.{i}.ln_1.weight",)),
            "blocks.{i}.attention.qkv.weight": Stored(("h.{i}.attn.c_attn.weight",), transposed=True),
            "blocks.{i}.attention.out.weight": Stored(("h.{i}.attn.c_proj.weight",), transposed=True),
            "blocks.{i}.norm2.weight": Stored(("h.{i}.ln_2.weight",)),
            "blocks.{i}.mlp.up.weight": Stored(("h.{i}.mlp.c_fc.weight",), transposed=True),
            "blocks.{i}.mlp.down.weight": Stored(("h.{i}.mlp.c_proj.weight",), transposed=True),
            "norm.weight": Stored(("ln_f.weight",)),
            "head.weight": Stored(("lm_head.weight",)),
        }
    ),
    gguf=_norms_and_biases(
        {
            "embed.weight": Stored(("token_embd.weight",)),
            "positions.weight": Stored(("position_embd.weight",)),
            "blocks.{i}.norm1.weight": Stored(("blk.{i}.attn_norm.weight",)),
            "blocks.{i}.attention.qkv.weight": Stored(("blk.{i}.attn_qkv.weight",)),
            "blocks.{i}.attention.out.weight": Stored(("blk.{i}.attn_output.weight",)),
            "blocks.{i}.norm2.weight": Stored(("blk.{i}.ffn_norm.weight",)),
            "blocks.{i}.mlp.up.weight": Stored(("blk.{i}.ffn_up.weight",)),
            "blocks.{i}.mlp.down.weight": Stored(("blk.{i}.ffn_down.weight",)),
            "norm.weight": Stored(("output_norm.weight",)),
            "head.weight": Stored(("output.weight",)),
        }
    ),
    spec_from_config=_spec_from_config,
    config_from_spec=_config_from_spec,
    spec_from_gguf=_spec_from_gguf,
    unused=(".attn.bias", ".attn.masked_bias"),  # causal masks that old checkpoints carry
)
