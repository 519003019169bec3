"""The least time a step can take: counted operations over measured peaks, and the optimizer's bytes over bandwidth.

Counted are the products of the linear layers, six operations (a multiplication and an addition, forward and twice
backward) for each weight and row: rows of the body are the tokens of a batch with its common beginning once, rows
of the head are the positions that have a target. Not counted, so that the floor is too low rather than too high:
attention's own products (about 1 % at these lengths), norms, activations, softmax, embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from instil.batches import Batch
    from instil.model.spec import DecoderSpec

OPERATIONS = 6
ADAMW_BYTES = 28  # float32: weight, gradient and two moments read, weight and two moments written


@dataclass(frozen=True, slots=True)
class Work:
    """What one step has to do at least."""

    tokens: int  # real ones, in all rows, without padding
    rows: int  # tokens to be computed, what rows share once
    scored: int  # positions that have a target
    body: int  # weights of the linear layers
    head: int  # weights of the head
    parameters: int

    @staticmethod
    def of(spec: DecoderSpec, batch: Batch, parameters: int) -> Work:
        """The work of a batch in the shared layout."""
        body, head = linear_weights(spec)
        scored = len(set(batch.at_S.tolist()))
        return Work(batch.real_tokens, len(batch.ids_N), scored, body, head, parameters)

    @property
    def flops(self) -> int:
        """Operations of the step."""
        return OPERATIONS * (self.body * self.rows + self.head * self.scored)

    def seconds(self, peak: float, bandwidth: float, *, untied: bool = False) -> float:
        """The floor, with ``peak`` in operations and ``bandwidth`` in bytes a second."""
        parameters = self.parameters + (self.head if untied else 0)
        return self.flops / peak + ADAMW_BYTES * parameters / bandwidth


def layer_shapes(spec: DecoderSpec) -> list[tuple[int, int]]:
    """The linear layers of one block, each as (outputs, inputs)."""
    attended = spec.heads * spec.head_width
    up = 2 * spec.mlp_width if spec.mlp in ("swiglu", "geglu") else spec.mlp_width
    return [
        (attended + 2 * spec.kv_heads * spec.head_width, spec.width),
        (spec.width, attended),
        (up, spec.width),
        (spec.width, spec.mlp_width),
    ]


def linear_weights(spec: DecoderSpec) -> tuple[int, int]:
    """Weights of all blocks' linear layers, and of the head; biases left out."""
    block = sum(outputs * inputs for outputs, inputs in layer_shapes(spec))
    return spec.layers * block, spec.vocab_size * spec.width
