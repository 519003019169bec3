"""How many floating-point operations a step takes, counted from the shape of the decoder.

A product of a token with a weight is two operations, and backward takes it twice more: for the gradient of the input
and of the weight (Kaplan et al., 2020, arXiv 2001.08361, section 2.1). Frozen weights have no gradient of their own.
Attention counts what a token sees: the half of a causal table, less with windows. What is not counted are norms,
activations, rope and the update of the weights, which take time and hardly any operations.
"""

from __future__ import annotations

from dataclasses import dataclass

from instil.model.spec import DecoderSpec
from instil.recipes.plan.sizes import Sizes


@dataclass(frozen=True, slots=True)
class Operations:
    """Floating-point operations of a mean token, forward and backward; ``again`` is what checkpointing adds."""

    forward: float
    backward: float
    again: float = 0.0

    @property
    def all(self) -> float:
        """All of them."""
        return self.forward + self.backward + self.again


def visible(length: int, window: int | None) -> float:
    """How many tokens a mean token of a row of so many sees, itself included.

    >>> visible(4, None), visible(4, 2)
    (2.5, 1.75)
    """
    if window is None or window >= length:
        return (length + 1) / 2
    return (window * (window + 1) / 2 + (length - window) * window) / length


def of_token(
    spec: DecoderSpec, sizes: Sizes, length: int, supervised: float = 1.0, *, checkpointing: bool = False
) -> Operations:
    """Operations of a mean token in rows of ``length``, of which the share ``supervised`` is predicted from."""
    seen = sum(visible(length, spec.window_of(layer)) for layer in range(spec.layers) if not spec.convolution_of(layer))
    attention = 4 * spec.heads * spec.head_width * seen  # queries with keys, and weights with values
    products = 2 * sizes.blocks.products
    adapters = 2 * sizes.adapters
    head = 2 * spec.width * spec.vocab_size * supervised
    full = not sizes.adapters
    return Operations(
        forward=products + adapters + attention + head,
        backward=(2 if full else 1) * products + 2 * adapters + 2 * attention + (2 if sizes.head_trained else 1) * head,
        again=products + adapters + attention if checkpointing else 0.0,
    )
