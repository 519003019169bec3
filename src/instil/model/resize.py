"""More rows for a vocabulary that has grown since the model was made.

A new row is the mean of the old ones, which says of a new token what is likely of any (Hewitt, 2021: "Initializing
new word embeddings for pretrained language models"); no chance is involved, so that a run is the same every time.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from instil.model.decoder import Decoder


def grow_vocabulary(decoder: Decoder, vocab_size: int) -> None:
    """Give embedding and head rows up to ``vocab_size``; those that are there stay as they are.

    Raises:
        ValueError: the model has more rows than that.
    """
    spec = decoder.spec
    new = vocab_size - spec.vocab_size
    if new < 0:
        raise ValueError(f"a vocabulary of {spec.vocab_size} cannot grow to {vocab_size}")
    if not new:
        return
    decoder.embed.weight = _parameter(decoder.embed.weight, new)
    decoder.head.weight = decoder.embed.weight if spec.tied else _parameter(decoder.head.weight, new)
    decoder.embed.num_embeddings = decoder.head.out_features = vocab_size
    if decoder.head.bias is not None:
        decoder.head.bias = _parameter(decoder.head.bias, new)
    decoder.spec = replace(spec, vocab_size=vocab_size)


def grown(rows: Tensor, new: int) -> Tensor:
    """With so many more rows, each the mean of those that are there."""
    mean = rows.detach().double().mean(0, keepdim=True).to(rows.dtype)
    return torch.cat([rows.detach(), mean.expand(new, *rows.shape[1:])])


def _parameter(rows: Tensor, new: int) -> nn.Parameter:
    return nn.Parameter(grown(rows, new))
