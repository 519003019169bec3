"""What distinguishes one family of decoders from another, as data.

A field is here only if two families use it differently and a parity test covers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FACTORS = (
    "attention_multiplier", "attention_softcap", "embedding_multiplier", "residual_multiplier", "logits_scaling",
    "logits_softcap",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Slower turning, for texts longer than those a model was first trained on: ``context`` tokens.

    ``"linear"`` divides every frequency by ``factor`` (Chen et al., 2023; Gemma 3 from 4B up).
    ``"llama3"`` divides those that turn fewer than ``low`` times in ``context`` tokens, keeps those that
    turn more than ``high`` times, and goes smoothly between (Llama 3.1).
    ``"yarn"`` does so, too, but goes evenly from dimension to dimension; where ``truncate`` is set, from a whole
    dimension to a whole one (Peng et al., 2023).
    ``"longrope"`` divides each frequency by a number of its own, one of ``short`` in texts of up to ``context`` tokens
    and one of ``long`` where a text of a batch is longer (Ding et al., 2024; Phi-3). A model is used for texts of up
    to ``context`` tokens here; ``reach`` is how long they may be elsewhere.

    Sine and cosine are multiplied by ``attention_factor`` (yarn and longrope).
    """

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    context: int = 8192
    truncate: bool = True
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    reach: int | None = None
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        numbers = {"factor": self.factor, "low": self.low, "high": self.high, "attention_factor": self.attention_factor}
        numbers |= {f"{name}[{n}]": x for name in ("short", "long") for n, x in enumerate(getattr(self, name))}
        for name, number in numbers.items():
            if type(number) not in (int, float) or not 0 < number < 1e12:
                raise ValueError(f"{name} of a scaling of rope is {number!r}; wanted a number above zero")
        if type(self.context) is not int or self.context < 1:
            raise ValueError(f"the context of a scaling of rope is {self.context!r}; wanted a whole number above zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """The shape of a decoder-only transformer.

    ``positions="learned"`` adds a table of ``context`` rows to the embedding (GPT-2);
    ``"rope"`` turns queries and keys instead (Llama). ``norm="layer"`` has a bias, ``"rms"`` none,
    and the weights of ``"rms_offset"`` say how far a scale is from one (Gemma 3).
    ``mlp="gelu"`` is two matrices with the tanh form of GELU, ``"gelu_exact"`` with GELU itself (GPT-NeoX),
    ``"swiglu"`` is three with SiLU, and ``"geglu"`` three with GELU (Gemma 3). With ``parallel_residual`` the MLP
    reads what attention reads and not what it has added (Wang and Komatsuzaki, 2021; GPT-NeoX).

    Attention: ``qk_norm`` puts a norm on queries and keys before rope, on each ``"head"`` (Qwen3, Gemma 3) or on
    ``"all"`` heads as one (OLMo 2); scores are multiplied by ``attention_multiplier``, which is one over the root of
    the head width if not given, and then capped at ``attention_softcap`` (Gemma 2); ``windows`` holds for each
    layer how many tokens a token sees, itself included, None being all before it (empty: None everywhere).
    Layers with a window turn by ``window_rope_theta`` unscaled, where that is given, the others by
    ``rope_theta`` and ``rope_scaling``. ``rotary_width`` is how many of a head's dimensions turn, the first ones; all
    if not given (Phi-4, GPT-NeoX). ``rope_layers`` says for each layer whether it turns at all (empty: yes; SmolLM3).
    ``out_bias`` says whether there is a bias after attention, where that is not as before it (Qwen2).

    ``convolutions`` holds for each layer the length of the gated convolution that it has in place of attention, None
    where it has attention (empty: None everywhere; LFM2), and ``convolution_bias`` gives its three matrices a bias.

    Norms stand before attention and MLP (``pre_norms``), after both (``post_norms``, OLMo 2), or around them (Gemma).

    Numbers that scale, None being one: ``embedding_multiplier`` the embedding (Gemma: the root of the width),
    ``residual_multiplier`` what attention and MLP add to the stream (Granite); logits are divided by
    ``logits_scaling`` (Granite) and then capped at ``logits_softcap`` (Gemma 2).
    """

    family: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    context: int
    norm: Literal["layer", "rms", "rms_offset"]
    norm_eps: float
    mlp: Literal["gelu", "gelu_exact", "swiglu", "geglu"]
    positions: Literal["learned", "rope"]
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rotary_width: int | None = None
    rope_layers: tuple[bool, ...] = ()
    windows: tuple[int | None, ...] = ()
    convolutions: tuple[int | None, ...] = ()
    convolution_bias: bool = False
    window_rope_theta: float | None = None
    attention_multiplier: float | None = None
    attention_softcap: float | None = None
    qk_norm: Literal["head", "all"] | None = None
    pre_norms: bool = True
    post_norms: bool = False
    embedding_multiplier: float | None = None
    residual_multiplier: float | None = None
    logits_scaling: float | None = None
    logits_softcap: float | None = None
    parallel_residual: bool = False
    attention_bias: bool = False
    out_bias: bool | None = None
    mlp_bias: bool = False
    tied: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_width", "mlp_width", "context"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; wanted a whole number above zero")
        given = [name for name in FACTORS if getattr(self, name) is not None]
        for name in ("norm_eps", "rope_theta", *given):
            number = getattr(self, name)
            if type(number) not in (int, float) or not 0 < number < 1e12:
                raise ValueError(f"{name} is {number!r}; wanted a number above zero")
        for name in ("attention_bias", "convolution_bias", "mlp_bias", "parallel_residual", "tied"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {getattr(self, name)!r}; wanted true or false")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")
        turned = self.turned_width
        if self.positions == "rope" and turned % 2:
            raise ValueError(f"rope turns pairs; a head width of {turned} is odd")
        if not 0 < turned <= self.head_width:
            raise ValueError(f"rope cannot turn {turned} of {self.head_width} dimensions")
        scaling = self.rope_scaling
        if scaling is not None and scaling.kind == "longrope":
            found = [len(scaling.short), len(scaling.long)]
            if found != [turned // 2] * 2:
                raise ValueError(f"there are {found} factors of longrope for {turned // 2} pairs of dimensions")
            if scaling.long != scaling.short and self.context > scaling.context:
                raise ValueError(f"a context of {self.context} goes beyond the {scaling.context} tokens of longrope")
        if len(self.rope_layers) not in (0, self.layers):
            raise ValueError(f"whether rope turns is said of {len(self.rope_layers)} layers of {self.layers}")
        self._check_norms()
        for name in ("windows", "convolutions"):
            values = getattr(self, name)
            if len(values) not in (0, self.layers):
                raise ValueError(f"{len(values)} {name} for {self.layers} layers")
            if any(value is not None and (type(value) is not int or value < 1) for value in values):
                raise ValueError(f"{name} are {values!r}; wanted whole numbers above zero, or None")

    def _check_norms(self) -> None:
        if self.qk_norm not in (None, "head", "all"):
            raise ValueError(f"qk_norm is {self.qk_norm!r}; wanted 'head', 'all' or None")
        if self.positions == "learned" and self.qk_norm:
            raise ValueError("queries and keys are given a norm only where rope turns them")
        if not (self.pre_norms or self.post_norms):
            raise ValueError("attention and MLP have a norm neither before nor after them; wanted one at least")

    def window_of(self, layer: int) -> int | None:
        """How many tokens a token of this layer sees, itself included; None is all before it."""
        return self.windows[layer] if self.windows else None

    def convolution_of(self, layer: int) -> int | None:
        """How many tokens this layer convolves, the last being its own; None where it has attention."""
        return self.convolutions[layer] if self.convolutions else None

    @property
    def turned_width(self) -> int:
        """How many dimensions of a head rope turns."""
        return self.head_width if self.rotary_width is None else self.rotary_width

    def turns(self, layer: int) -> bool:
        """Whether rope turns queries and keys of this layer."""
        return self.positions == "rope" and (not self.rope_layers or self.rope_layers[layer])

    def rope_of(self, window: int | None) -> tuple[float, RopeScaling | None]:
        """Base and scaling of the angles in layers with this window."""
        if window is not None and self.window_rope_theta is not None:
            return self.window_rope_theta, None
        return self.rope_theta, self.rope_scaling
