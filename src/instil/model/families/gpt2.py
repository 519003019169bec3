"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, GELU, biases everywhere, Conv1D weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from instil.errors import ModelError
from instil.model.families.family import Checkpoint, Family, Shapes, StateDict, Stored
from instil.model.families.keys import Default, Fields, Fixed, Key, refuse_strangers, tied, vocabulary
from instil.model.spec import DecoderSpec

HPARAMS = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")


def spec_from_hparams(hparams: Mapping[str, Any], shapes: Shapes) -> DecoderSpec:
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


def _four_widths(known: Fields) -> Any:
    return 4 * known["width"]


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
BOOK_NORM_EPS = 1e-5
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


def _book_spec(shapes: Shapes) -> DecoderSpec:
    """The book's GPT-2 whose state dictionary has these shapes; its heads are 64 wide in every size.

    Raises:
        ModelError: there is none.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        found = shapes.get(name, ())
        if len(found) != dimensions:
            raise ModelError(f"no tensor {name!r} of {dimensions} dimensions; the file is incomplete")
        return found

    vocab_size, width = shape("tok_emb.weight", 2)
    if width % BOOK_HEAD_WIDTH:
        raise ModelError(f"its width of {width} is not a multiple of {BOOK_HEAD_WIDTH}: not a GPT-2")
    blocks = [int(name.split(".")[1]) for name in shapes if name.startswith("trf_blocks.")]
    return gpt2_spec(
        vocab_size=vocab_size,
        width=width,
        layers=max(blocks, default=-1) + 1,
        heads=width // BOOK_HEAD_WIDTH,
        mlp_width=shape("trf_blocks.0.ff.layers.0.weight", 2)[0],
        context=shape("pos_emb.weight", 2)[0],
        norm_eps=BOOK_NORM_EPS,
        tied=False,
    )


def _book_reads_back(spec: DecoderSpec) -> bool:
    """Whether shapes alone say this spec."""
    book = gpt2_spec(
        vocab_size=spec.vocab_size,
        width=spec.width,
        layers=spec.layers,
        heads=max(spec.width // BOOK_HEAD_WIDTH, 1),
        mlp_width=spec.mlp_width,
        context=spec.context,
        norm_eps=BOOK_NORM_EPS,
        tied=spec.tied,
    )
    return spec == book


def _book_masks(spec: DecoderSpec) -> dict[str, Tensor]:
    """The causal masks that the book's attention holds as buffers; one tensor for all layers."""
    mask = torch.triu(torch.ones(spec.context, spec.context), diagonal=1)
    return {f"trf_blocks.{layer}.att.mask": mask for layer in range(spec.layers)}


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


GPT2 = Family(
    name="gpt2",
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    spec=gpt2_spec,
    keys=(
        Key("vocab_size", "vocab_size", vocabulary),
        Key("width", "n_embd", "embedding_length"),
        Key("layers", "n_layer", "block_count"),
        Key("heads", "n_head", "attention.head_count"),
        Key("context", "n_positions", "context_length"),
        Key("mlp_width", Default("n_inner", _four_widths, blank=True), "feed_forward_length"),
        Key("norm_eps", Default("layer_norm_epsilon", 1e-5), "attention.layer_norm_epsilon"),
        Fixed("activation_function", "gelu_new", "gelu_pytorch_tanh"),
        Fixed("scale_attn_weights", None, True),
        Fixed("scale_attn_by_inverse_layer_idx", None, False),
        Fixed("reorder_and_upcast_attn", None, False),
        Fixed("add_cross_attention", None, False),
        Key("tied", Default("tie_word_embeddings", True), tied),
    ),
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
    unused=(".attn.bias", ".attn.masked_bias"),  # causal masks that old checkpoints carry
    state_dict=StateDict(
        names=BOOK_NAMES,
        mark="tok_emb.weight",
        head="out_head.weight",
        derived=".att.mask",
        buffers=_book_masks,
        spec=_book_spec,
        reads_back=_book_reads_back,
    ),
    checkpoint=Checkpoint(names=_tensorflow(), spec=spec_from_hparams),
)
