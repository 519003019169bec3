"""What a training step keeps of each token until backward comes, in bytes, counted from the shape of the decoder.

It is counted as `instil.model.decoder` has it: norms, activations and gates are made again in backward, where they
cost nothing to keep (`instil.model.fast.recompute`), attention keeps no table of scores, and the head keeps the scores
of supervised rows alone, in pieces of at most `LARGEST_SCORES` bytes (`instil.train.head_loss`). A test holds it
against what autograd keeps of real decoders.

Symbols: D width · H query heads · K key/value heads · W head width · F width inside the MLP · V vocabulary.
"""

from __future__ import annotations

from instil.model.spec import DecoderSpec
from instil.recipes.plan.sizes import Sizes
from instil.train.head_loss import CHEAP_SCORES, LARGEST_SCORES

WIDE = 4  # bytes of a number in float32: the stream between layers, whatever the products are in


def of_layer(spec: DecoderSpec, layer: int, narrow: int) -> int:
    """Bytes that one layer keeps of one token, with ``narrow`` bytes for each number that its products make.

    Of rows side by side, as the shared layout has them: queries, keys and values are kept as the projection made them
    and as attention reads them.
    """
    if spec.convolution_of(layer):
        mix = narrow * 3 * spec.width  # gates and inputs
    else:
        mix = _attention(spec, layer, narrow)
    mlp = 2 * spec.mlp_width if spec.mlp in ("swiglu", "geglu") else spec.mlp_width
    if narrow < WIDE and spec.mlp in ("swiglu", "geglu"):
        mlp += spec.mlp_width  # what the gate lets through
    return _stream(spec, narrow) + mix + narrow * mlp


def _stream(spec: DecoderSpec, narrow: int) -> int:
    """The stream before attention and before the MLP; what norms make of it where it is cast for a product."""
    kept = WIDE * spec.width * (1 if spec.parallel_residual else 2)
    if narrow < WIDE:
        kept += 2 * narrow * spec.width
    if spec.post_norms:
        kept += 2 * (WIDE if spec.norm == "rms_offset" else narrow) * spec.width
    return kept


def _attention(spec: DecoderSpec, layer: int, narrow: int) -> int:
    """Projection, what rope and norms turn, what attention reads and makes, and what the last product reads."""
    queries, keys = spec.heads * spec.head_width, spec.kv_heads * spec.head_width
    turned = queries + keys
    kept = narrow * (queries + 2 * keys)
    if spec.turns(layer):
        kept += WIDE * turned
    if spec.qk_norm and narrow < WIDE:
        kept += WIDE * turned  # their norms are in float32
    return kept + narrow * (2 * queries + 2 * keys) + WIDE * spec.heads + narrow * queries


def of_adapters(sizes: Sizes, narrow: int) -> int:
    """Bytes that the adapters of all layers keep of one token: what they have read of it."""
    return narrow * sizes.blocks.ranks


def kept_bytes(spec: DecoderSpec, sizes: Sizes, tokens: int, narrow: int, *, checkpointing: bool) -> int:
    """Bytes that all layers keep of so many tokens until backward.

    With gradient checkpointing each layer keeps its input, and one at a time the rest (Chen et al., 2016).
    """
    layers = [of_layer(spec, layer, narrow) for layer in range(spec.layers)]
    last = WIDE * spec.width  # what the last norm reads
    if not checkpointing:
        return tokens * (sum(layers) + of_adapters(sizes, narrow) + last)
    return tokens * (spec.layers * WIDE * spec.width + max(layers) + of_adapters(sizes, narrow) // spec.layers + last)


def working_bytes(spec: DecoderSpec, tokens: int, narrow: int) -> int:
    """Bytes that the backward of one layer holds for a while: gradients of its MLP, and what is made again."""
    mlp = (5 if spec.mlp in ("swiglu", "geglu") else 3) * spec.mlp_width
    return tokens * (narrow * mlp + 2 * WIDE * spec.width)


def head_bytes(spec: DecoderSpec, sizes: Sizes, tokens: int, narrow: int) -> int:
    """Bytes of the scores of so many supervised tokens, of the states they are made of, and of their gradients."""
    most = LARGEST_SCORES if sizes.head_trained else CHEAP_SCORES
    whole = WIDE * tokens * spec.vocab_size * (1 if spec.logits_softcap is None else 2)  # and the slopes of the cap
    scores, table = min(whole, most), spec.vocab_size * spec.width
    if narrow < WIDE:
        scores += scores * narrow // WIDE
    copies = narrow * table if narrow < WIDE else 0  # of the head's weights
    if sizes.head_trained and whole > most:
        copies += (WIDE + narrow) * table  # the gradient is added up piece by piece, before backward comes
    return scores + copies + 2 * WIDE * tokens * spec.width
