"""What all layers with rounded weights are, and where they must not go."""

from __future__ import annotations

from typing import Self

from instil.errors import SettingsError
from instil.model.decoder import Decoder
from instil.model.fast.recompute import ReadsRecomputed

PACKED_FOR = 16  # tokens for which the order of packed weights is chosen; it suits others well


class RoundedLinear(ReadsRecomputed):
    """A linear layer for inference alone.

    Attributes:
        weights: how they are held, as the command line calls it.
    """

    weights: str

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """The same layer, of which nothing is ever changed; what oneDNN has put in order cannot be copied."""
        return self


def weights_of(decoder: Decoder) -> str:
    """How its linear layers hold their weights: ``fp32`` (or whichever type they had), or as rounded ones say."""
    return next((module.weights for module in decoder.modules() if isinstance(module, RoundedLinear)), "fp32")


def refuse_rounded(decoder: Decoder) -> None:
    """SettingsError for a decoder with rounded layers, which hold nothing that could be trained, saved or adapted."""
    for module in decoder.modules():
        if isinstance(module, RoundedLinear):
            raise SettingsError(
                f"the weights of this decoder are held in {module.weights}, which is for answering alone: they cannot "
                f"be trained, saved or given adapters; load the model again without {module.weights}"
            )
