"""What the families with rotary positions and a gated MLP have in common: keys about rope, and names of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instil.errors import ModelError
from instil.model.families.family import Stored
from instil.model.families.keys import Default, Fields, Header, Row, look_up, refuse_strangers
from instil.model.spec import DecoderSpec, RopeScaling

UNUSED = (".rotary_emb.inv_freq",)  # angles that old checkpoints carry
_KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


class Rope(Row):
    """Base and scaling of the angles where all layers turn alike, in the words of old and new transformers.

    Args:
        family: its name, for messages.
        base: the key of GGUF; a scaling is not read from there.
    """

    fields = ("rope_theta", "rope_scaling")
    understood: Mapping[str, tuple[Any, ...]] = {"rope_theta": (), "rope_scaling": (), "rope_parameters": ()}

    def __init__(self, family: str, base: str | Default) -> None:
        self._family, self._base = family, base

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        settings = config.get("rope_scaling") or config.get("rope_parameters") or {}  # the older comes first
        theta = settings.get("rope_theta") or config.get("rope_theta") or 10_000.0
        return {"rope_theta": float(theta), "rope_scaling": rope_scaling(self._family, settings)}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        settings = rope_settings(spec.rope_theta, spec.rope_scaling)
        return {
            "rope_theta": spec.rope_theta,
            "rope_scaling": None if spec.rope_scaling is None else settings,
            "rope_parameters": settings,
        }

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        return {"rope_theta": look_up(self._base, header, known), "rope_scaling": None}


def rope_scaling(family: str, settings: Mapping[str, Any]) -> RopeScaling | None:
    """The scaling that ``rope_scaling`` or ``rope_parameters`` of a ``config.json`` describes.

    Raises:
        ModelError: it is of a kind, or has a setting, that is not implemented here.
        KeyError: a setting is missing.
    """
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind not in _KINDS:
        raise ModelError(
            f"config.json of a {family} model scales its rope ({kind!r}), which is not implemented here; "
            f"read here: {', '.join(_KINDS)}"
        )
    known: dict[str, tuple[Any, ...]] = dict.fromkeys(("rope_type", "type", "rope_theta", *_KINDS[kind]), ())
    refuse_strangers(family, settings, {**known, "partial_rotary_factor": (1.0,)})
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=float(settings["factor"]))
    return RopeScaling(
        kind="llama3",
        factor=float(settings["factor"]),
        low=float(settings["low_freq_factor"]),
        high=float(settings["high_freq_factor"]),
        context=settings["original_max_position_embeddings"],
    )


def rope_settings(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """Base and scaling as ``rope_parameters`` of transformers 5 has them."""
    settings: dict[str, Any] = {"rope_type": "default" if scaling is None else scaling.kind, "rope_theta": theta}
    if scaling is not None:
        settings["factor"] = scaling.factor
    if scaling is not None and scaling.kind == "llama3":
        settings |= {
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.context,
        }
    return settings


def heads(known: Fields) -> Any:
    """As many key/value heads as query heads."""
    return known["heads"]


def width_per_head(known: Fields) -> Any:
    """The width shared evenly by the heads."""
    return known["width"] // known["heads"]


def _table(outer: dict[str, str], linear: dict[str, Stored]) -> dict[str, Stored]:
    """A table of names; a bias lies beside every linear weight, where the spec has one."""
    table = {ours: Stored((name,)) for ours, name in outer.items()}
    for ours, stored in linear.items():
        for kind in ("weight", "bias"):
            names = tuple(f"{name}.{kind}" for name in stored.names)
            table[f"blocks.{{i}}.{ours}.{kind}"] = Stored(names, paired_heads=stored.paired_heads)
    return table


HUB = _table(
    {
        "embed.weight": "embed_tokens.weight",
        "norm.weight": "norm.weight",
        "head.weight": "lm_head.weight",
        "blocks.{i}.norm1.weight": "layers.{i}.input_layernorm.weight",
        "blocks.{i}.norm2.weight": "layers.{i}.post_attention_layernorm.weight",
    },
    {
        "attention.qkv": Stored(tuple(f"layers.{{i}}.self_attn.{part}_proj" for part in "qkv")),
        "attention.out": Stored(("layers.{i}.self_attn.o_proj",)),
        "mlp.gate_up": Stored(("layers.{i}.mlp.gate_proj", "layers.{i}.mlp.up_proj")),
        "mlp.down": Stored(("layers.{i}.mlp.down_proj",)),
    },
)
HUB_QK_NORMS = {
    "blocks.{i}.attention.q_norm.weight": Stored(("layers.{i}.self_attn.q_norm.weight",)),
    "blocks.{i}.attention.k_norm.weight": Stored(("layers.{i}.self_attn.k_norm.weight",)),
}


def gguf_table(*, paired_heads: bool = False) -> dict[str, Stored]:
    """The names in GGUF; ``paired_heads`` where llama.cpp puts the rows of queries and keys into another order."""
    paired = (True, True, False) if paired_heads else ()
    return _table(
        {
            "embed.weight": "token_embd.weight",
            "norm.weight": "output_norm.weight",
            "head.weight": "output.weight",
            "blocks.{i}.norm1.weight": "blk.{i}.attn_norm.weight",
            "blocks.{i}.norm2.weight": "blk.{i}.ffn_norm.weight",
        },
        {
            "attention.qkv": Stored(tuple(f"blk.{{i}}.attn_{part}" for part in "qkv"), paired_heads=paired),
            "attention.out": Stored(("blk.{i}.attn_output",)),
            "mlp.gate_up": Stored(("blk.{i}.ffn_gate", "blk.{i}.ffn_up")),
            "mlp.down": Stored(("blk.{i}.ffn_down",)),
        },
    )


GGUF_QK_NORMS = {
    "blocks.{i}.attention.q_norm.weight": Stored(("blk.{i}.attn_q_norm.weight",)),
    "blocks.{i}.attention.k_norm.weight": Stored(("blk.{i}.attn_k_norm.weight",)),
}


class PlainHeader(Row):
    """Refuses what a GGUF file may say of rope and of experts, and is not implemented here."""

    def __init__(self, architecture: str) -> None:
        self._architecture = architecture

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        head_width = known["head_width"]
        turned = header.get("rope.dimension_count", head_width)
        scaling = header.get("rope.scaling.type", "none")
        experts = header.get("expert_count", 0)
        if turned != head_width or scaling != "none" or experts:
            raise ModelError(
                f"a {self._architecture} GGUF with rope over {turned} of {head_width} dimensions, rope scaling "
                f"{scaling!r} and {experts} experts is not implemented here"
            )
        return {}
