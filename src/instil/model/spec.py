"""What distinguishes one family of decoders from another, as data.

A field is here only if two families use it differently and a parity test covers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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

    Attention: ``qk_norm`` puts a norm on every query and key before rope (Qwen3, Gemma 3); scores are
    divided by the root of ``score_width``, which is the head width if not given; ``windows`` holds for each
    layer how many tokens a token sees, itself included, None being all before it (empty: None everywhere).
    Layers with a window turn by ``window_rope_theta`` unscaled, where that is given, the others by
    ``rope_theta`` and ``rope_scaling``.

    ``convolutions`` holds for each layer the length of the gated convolution that it has in place of attention, None
    where it has attention (empty: None everywhere; LFM2), and ``convolution_bias`` gives its three matrices a bias.

    ``scaled_embedding`` multiplies the embedding by the root of the width, and ``post_norms`` puts a norm
    after attention and MLP as well as before (Gemma 3).
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
    convolutions: tuple[int | None, ...] = ()
    convolution_bias: bool = False
    window_rope_theta: float | None = None
    score_width: int | None = None
    qk_norm: bool = False
    post_norms: bool = False
    scaled_embedding: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_width", "mlp_width", "context"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; wanted a whole number above zero")
        for name in ("norm_eps", "rope_theta"):
            number = getattr(self, name)
            if type(number) not in (int, float) or not 0 < number < 1e12:
                raise ValueError(f"{name} is {number!r}; wanted a number above zero")
        for name in ("attention_bias", "convolution_bias", "mlp_bias", "tied"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {getattr(self, name)!r}; wanted true or false")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")
        if self.positions == "rope" and self.head_width % 2:
            raise ValueError(f"rope turns pairs; a head width of {self.head_width} is odd")
        if self.positions == "learned" and self.qk_norm:
            raise ValueError("queries and keys are given a norm only where rope turns them")
        for name in ("windows", "convolutions"):
            values = getattr(self, name)
            if len(values) not in (0, self.layers):
                raise ValueError(f"{len(values)} {name} for {self.layers} layers")
            if any(value is not None and (type(value) is not int or value < 1) for value in values):
                raise ValueError(f"{name} are {values!r}; wanted whole numbers above zero, or None")

    def window_of(self, layer: int) -> int | None:
        """How many tokens a token of this layer sees, itself included; None is all before it."""
        return self.windows[layer] if self.windows else None

    def convolution_of(self, layer: int) -> int | None:
        """How many tokens this layer convolves, the last being its own; None where it has attention."""
        return self.convolutions[layer] if self.convolutions else None

    def rope_of(self, window: int | None) -> tuple[float, RopeScaling | None]:
        """Base and scaling of the angles in layers with this window."""
        if window is not None and self.window_rope_theta is not None:
            return self.window_rope_theta, None
        return self.rope_theta, self.rope_scaling
