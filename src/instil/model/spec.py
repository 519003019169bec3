"""What distinguishes one family of decoders from another, as data.

A field is here only if two families use it differently and a parity test covers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """The shape of a decoder-only transformer.

    ``positions="learned"`` adds a table of ``context`` rows to the embedding (GPT-2);
    ``"rope"`` turns queries and keys instead (Llama). ``norm="layer"`` has a bias, ``"rms"`` none.
    ``mlp="gelu"`` is two matrices with the tanh form of GELU, ``"swiglu"`` is three with SiLU.
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
    norm: Literal["layer", "rms"]
    norm_eps: float
    mlp: Literal["gelu", "swiglu"]
    positions: Literal["learned", "rope"]
    rope_theta: float = 10_000.0
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
        for name in ("attention_bias", "mlp_bias", "tied"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {getattr(self, name)!r}; wanted true or false")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")
        if self.positions == "rope" and self.head_width % 2:
            raise ValueError(f"rope turns pairs; a head width of {self.head_width} is odd")
