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
    """Slower turning, for texts longer than those a model was first trained on.

    ``"linear"`` divides every frequency by ``factor`` (Chen et al., 2023; Gemma 3 from 4B up).
    ``"llama3"`` divides those that turn fewer than ``low`` times in ``context`` tokens, keeps those that
    turn more than ``high`` times, and goes smoothly between (Llama 3.1).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low: float = 1.0
    high: float = 4.0
    context: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """The shape of a decoder-only transformer.

    ``positions="learned"`` adds a table of ``context`` rows to the embedding (GPT-2);
    ``"rope"`` turns queries and keys instead (Llama). ``norm="layer"`` has a bias, ``"rms"`` none,
    and the weights of ``"rms_offset"`` say how far a scale is from one (Gemma 3).
    ``mlp="gelu"`` is two matrices with the tanh form of GELU, ``"swiglu"`` is three with SiLU, and
    ``"geglu"`` three with GELU (Gemma 3).

    Attention: ``qk_norm`` puts a norm on queries and keys before rope, on each ``"head"`` (Qwen3, Gemma 3) or on
    ``"all"`` heads as one (OLMo 2); scores are multiplied by ``attention_multiplier``, which is one over the root of
    the head width if not given, and then capped at ``attention_softcap`` (Gemma 2); ``windows`` holds for each
    layer how many tokens a token sees, itself included, None being all before it (empty: None everywhere).
    Layers with a window turn by ``window_rope_theta`` unscaled, where that is given, the others by
    ``rope_theta`` and ``rope_scaling``.

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
    mlp: Literal["gelu", "swiglu", "geglu"]
    positions: Literal["learned", "rope"]
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    windows: tuple[int | None, ...] = ()
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
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_width", "mlp_width", "context"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; wanted a whole number above zero")
        for name in ("norm_eps", "rope_theta", *FACTORS):
            number = getattr(self, name)
            if number is None and name in FACTORS:
                continue
            if type(number) not in (int, float) or not 0 < number < 1e12:
                raise ValueError(f"{name} is {number!r}; wanted a number above zero")
        for name in ("attention_bias", "mlp_bias", "tied"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {getattr(self, name)!r}; wanted true or false")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")
        if self.positions == "rope" and self.head_width % 2:
            raise ValueError(f"rope turns pairs; a head width of {self.head_width} is odd")
        if self.qk_norm not in (None, "head", "all"):
            raise ValueError(f"qk_norm is {self.qk_norm!r}; wanted 'head', 'all' or None")
        if self.positions == "learned" and self.qk_norm:
            raise ValueError("queries and keys are given a norm only where rope turns them")
        if not (self.pre_norms or self.post_norms):
            raise ValueError("neither pre_norms nor post_norms: attention and MLP want a norm before or after them")
        if len(self.windows) not in (0, self.layers):
            raise ValueError(f"{len(self.windows)} windows for {self.layers} layers")
        if any(window is not None and (type(window) is not int or window < 1) for window in self.windows):
            raise ValueError(f"windows are {self.windows!r}; wanted whole numbers above zero, or None")

    def window_of(self, layer: int) -> int | None:
        """How many tokens a token of this layer sees, itself included; None is all before it."""
        return self.windows[layer] if self.windows else None

    def rope_of(self, window: int | None) -> tuple[float, RopeScaling | None]:
        """Base and scaling of the angles in layers with this window."""
        if window is not None and self.window_rope_theta is not None:
            return self.window_rope_theta, None
        return self.rope_theta, self.rope_scaling
