"""How the next token is picked: a function handed to the engine (chapter 5.3).

Shape suffixes: B rows · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from instil.generate.options import GenerateOptions

# Picks a token for each row: (logits_BV, numbers of the rows) -> ids_B.
Pick = Callable[[Tensor, Sequence[int]], Tensor]


def greedy(logits_BV: Tensor, rows: Sequence[int]) -> Tensor:
    """The likeliest token of each row."""
    del rows
    return logits_BV.argmax(-1)


def sampler(options: GenerateOptions) -> Pick:
    """The pick that the options describe; seeded for each row, so that neighbours do not matter."""
    if options.temperature == 0:
        return greedy
    generators: dict[int, torch.Generator] = {}

    def pick(logits_BV: Tensor, rows: Sequence[int]) -> Tensor:
        kept_BV = top_k(logits_BV.double(), options.top_k)
        kept_BV = (kept_BV - kept_BV.amax(-1, keepdim=True)) / options.temperature  # no overflow near zero
        probabilities_BV = torch.softmax(kept_BV, dim=-1).cpu()
        ids = []
        for row, probabilities_V in zip(rows, probabilities_BV, strict=True):
            if row not in generators:
                generators[row] = torch.Generator().manual_seed(options.seed * 1_000_003 + row)
            ids.append(torch.multinomial(probabilities_V, 1, generator=generators[row]))
        return torch.cat(ids).to(logits_BV.device)

    return pick


def top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Logits with all but the k largest of each row at minus infinity; 0 keeps all.

    >>> top_k(torch.tensor([[1.0, 3.0, 2.0]]), 2).tolist()
    [[-inf, 3.0, 2.0]]
    """
    if k <= 0 or k >= logits_BV.shape[-1]:
        return logits_BV
    least_B1 = logits_BV.topk(k, dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
