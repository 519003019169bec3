"""What the families with rotary positions and a gated MLP have in common: keys about rope, and names of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from instil.errors import ModelError
from instil.model.families.family import Stored
from instil.model.families.keys import Default, Fields, Header, Key, Row, look_up, refuse_strangers, vocabulary
from instil.model.families.scaled import FREQUENCIES, gguf_scaling, scaling_in_gguf
from instil.model.spec import DecoderSpec, RopeScaling

UNUSED = (".rotary_emb.inv_freq",)  # angles that old checkpoints carry
_YARN = ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "finetuned")
_KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": _YARN,
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor"),
}
_ORIGINAL = "original_max_position_embeddings"
_PARTIAL = "partial_rotary_factor"


class Rope(Row):
    """Base and scaling of the angles where all layers turn alike, in the words of old and new transformers.

    Args:
        family: its name, for messages.
        base: the key of GGUF.
        theta: the base where a configuration says none.
        partial: whether the family can turn a part of every head's dimensions; others refuse one.
        part: which part, where a configuration says none.
        keys: what the configuration calls base and part beside ``rope_parameters``.
        original: how many tokens a model was first trained on, where a configuration says nothing (none: its context).
        longrope: other names for this scaling.
    """

    fields = ("rope_theta", "rope_scaling", "rotary_width")
    tensors = FREQUENCIES

    def __init__(
        self,
        family: str,
        base: str | Default,
        *,
        theta: float = 10_000.0,
        partial: bool = False,
        part: float = 1.0,
        keys: tuple[str, str] = ("rope_theta", _PARTIAL),
        original: int | None = None,
        longrope: tuple[str, ...] = (),
    ) -> None:
        self._family, self._base, self._theta, self._keys = family, base, theta, keys
        self._partial, self._part, self._original = partial, part, original
        self._kinds = dict.fromkeys(longrope, "longrope")
        self.understood = {"rope_scaling": (), "rope_parameters": (), _ORIGINAL: (), keys[0]: ()}
        self.understood[keys[1]] = () if partial else (1.0,)

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        settings = config.get("rope_scaling") or config.get("rope_parameters") or {}  # the older comes first
        if not isinstance(settings, Mapping):
            raise ValueError(f"rope_parameters={settings!r}; wanted an object")
        theta = settings.get("rope_theta") or config.get(self._keys[0]) or self._theta
        kind = settings.get("rope_type") or settings.get("type") or "default"
        if (original := config.get(_ORIGINAL) or self._original) is not None:  # beside the settings it comes first
            settings = {**settings, _ORIGINAL: original}
        context = config.get("max_position_embeddings")
        scaling = rope_scaling(
            self._family, {**settings, "rope_type": self._kinds.get(kind, kind)}, context, partial=self._partial
        )
        part = settings.get(_PARTIAL, config.get(self._keys[1], self._part))
        width = int(known["head_width"] * float(part)) if self._partial else known["head_width"]
        return {"rope_theta": float(theta), "rope_scaling": scaling, "rotary_width": _width(known, width)}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        scaling = spec.rope_scaling
        settings = rope_settings(spec.rope_theta, scaling)
        found: dict[str, Any] = {self._keys[0]: spec.rope_theta}
        if spec.rotary_width is not None and not self._partial:
            raise ModelError(f"config.json of a {self._family} model cannot say that a part of each head turns")
        if self._partial:
            found[self._keys[1]] = settings[_PARTIAL] = _share(spec)
        older: dict[str, Any] | None = None if scaling is None else dict(settings)
        if scaling is not None and scaling.kind == "longrope":
            found[_ORIGINAL] = scaling.context
            older = {"type": "longrope", "short_factor": list(scaling.short), "long_factor": list(scaling.long)}
            if not math.isclose(scaling.attention_factor, _longrope_attention((scaling.reach or 0), scaling.context)):
                older["attention_factor"] = scaling.attention_factor
        return {**found, "rope_scaling": older, "rope_parameters": settings}

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        theta, head_width = look_up(self._base, header, known), known["head_width"]
        width = header.get("rope.dimension_count", head_width)
        if width != head_width and not self._partial:
            raise ModelError(
                f"a {self._family} GGUF with rope over {width} of {head_width} dimensions is not implemented here"
            )
        scaling = gguf_scaling(self._family, header, float(theta), width)
        return {"rope_theta": theta, "rope_scaling": scaling, "rotary_width": _width(known, width)}

    def to_gguf(self, spec: DecoderSpec) -> dict[str, Any]:
        base = self._base.key if isinstance(self._base, Default) else self._base
        return {
            base: float(spec.rope_theta),
            "rope.dimension_count": spec.turned_width,
            **scaling_in_gguf(self._family, spec),
        }


class Context(Key):
    """How many tokens a model can be given; with longrope as many as it was first trained on.

    Beyond them such a model turns by other angles, for all tokens of a text and all texts beside it, and what a cache
    holds would have to be made anew; up to them, everything is what transformers computes.
    """

    def __init__(self, config: str = "max_position_embeddings", gguf: str = "context_length") -> None:
        super().__init__("context", config, gguf)
        self.fields = ("context",)

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        return self._within(super().from_config(config, known), known)

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        reach = None if spec.rope_scaling is None else spec.rope_scaling.reach
        return super().to_config(spec) if reach is None else {self._name: reach}

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        return self._within(super().from_gguf(header, known), known)

    def to_gguf(self, spec: DecoderSpec) -> dict[str, Any]:
        reach = None if spec.rope_scaling is None else spec.rope_scaling.reach
        return {key: reach or value for key, value in super().to_gguf(spec).items()}

    def _within(self, found: dict[str, Any], known: Fields) -> dict[str, Any]:
        scaling = known["rope_scaling"]
        if scaling is not None and scaling.kind == "longrope" and scaling.long != scaling.short:
            found["context"] = min(found["context"], scaling.context)
        return found


def _width(known: Fields, width: Any) -> int | None:
    return None if width == known["head_width"] else width


def _share(spec: DecoderSpec) -> float:
    """What part of a head turns: a number of which the whole dimensions are those that do."""
    share = spec.turned_width / spec.head_width
    return share if int(spec.head_width * share) == spec.turned_width else math.nextafter(share, 2.0)


def rope_scaling(
    family: str, settings: Mapping[str, Any], context: Any = None, *, partial: bool = False
) -> RopeScaling | None:
    """The scaling that ``rope_scaling`` or ``rope_parameters`` of a ``config.json`` describes.

    Args:
        family: its name, for messages.
        settings: what they say.
        context: ``max_position_embeddings``, which is what a model was first trained on if they do not say.
        partial: whether they may say that a part of each head turns; that is read elsewhere.

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
    known: dict[str, tuple[Any, ...]] = dict.fromkeys(("rope_type", "type", "rope_theta", _ORIGINAL, *_KINDS[kind]), ())
    refuse_strangers(family, settings, {**known, _PARTIAL: () if partial else (1.0,)})
    original = settings.get(_ORIGINAL) or context
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=float(settings["factor"]))
    if original is None:
        raise KeyError(_ORIGINAL)
    if kind == "llama3":
        return RopeScaling(
            kind="llama3",
            factor=float(settings["factor"]),
            low=float(settings["low_freq_factor"]),
            high=float(settings["high_freq_factor"]),
            context=original,
        )
    factor = settings.get("factor") if kind == "longrope" else settings["factor"]
    factor = float(factor if factor is not None else (context or original) / original)
    attention = settings.get("attention_factor")
    if kind == "longrope":
        if attention is None:
            attention = _longrope_attention(factor * original, original)
        return RopeScaling(
            kind="longrope",
            factor=factor,
            context=original,
            short=tuple(float(x) for x in settings["short_factor"]),
            long=tuple(float(x) for x in settings["long_factor"]),
            reach=context,
            attention_factor=float(attention),
        )
    if attention is None:
        above, below = settings.get("mscale"), settings.get("mscale_all_dim")
        if above and below:
            attention = _yarn_attention(factor, above) / _yarn_attention(factor, below)
        else:
            attention = _yarn_attention(factor)
    return RopeScaling(
        kind="yarn",
        factor=factor,
        low=float(settings.get("beta_slow") or 1),
        high=float(settings.get("beta_fast") or 32),
        context=original,
        truncate=bool(settings.get("truncate", True)),
        attention_factor=float(attention),
    )


def _yarn_attention(factor: float, weight: float = 1.0) -> float:
    """Peng et al., 2023, equation 22."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1


def _longrope_attention(reach: float, context: int) -> float:
    """Ding et al., 2024: so much more, the more tokens are to be told apart."""
    return 1.0 if reach <= context else math.sqrt(1 + math.log(reach / context) / math.log(context))


def rope_settings(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """Base and scaling as ``rope_parameters`` of transformers 5 has them."""
    settings: dict[str, Any] = {"rope_type": "default" if scaling is None else scaling.kind, "rope_theta": theta}
    if scaling is None:
        return settings
    settings["factor"] = scaling.factor
    if scaling.kind == "linear":
        return settings
    settings[_ORIGINAL] = scaling.context
    if scaling.kind == "llama3":
        return {**settings, "low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    settings["attention_factor"] = scaling.attention_factor
    if scaling.kind == "longrope":
        return {**settings, "short_factor": list(scaling.short), "long_factor": list(scaling.long)}
    return {**settings, "beta_slow": scaling.low, "beta_fast": scaling.high, "truncate": scaling.truncate}


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


# Keys that these families share, in the order in which they are written.
SIZES = (
    Key("vocab_size", "vocab_size", vocabulary),
    Key("width", "hidden_size", "embedding_length"),
    Key("layers", "num_hidden_layers", "block_count"),
    Key("heads", "num_attention_heads", "attention.head_count"),
)
KV_HEADS = Key("kv_heads", Default("num_key_value_heads", heads, blank=True), Default("attention.head_count_kv", heads))
HEAD_WIDTH = Key(
    "head_width",
    Default("head_dim", width_per_head, blank=True),
    Default("attention.key_length", width_per_head, blank=True),
)
