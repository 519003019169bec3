"""Which tokens come right before which: what a convolution over a sequence asks of the layout of a batch.

It is what attention asks, too, for a few tokens instead of all. The flat tokens of a batch form runs: tokens of one
sequence that lie side by side. Inside a run the k-th token before another one lies k places before it; before the run's
first token comes what the layout says: nothing (a row of a padded grid), the end of the prefix (a row that continues
it), the end of a stem and, where that is shorter than the convolution's reach, of the prefix before it (a branch), or
what a cache holds of the row (`instil.model.attention` has one pattern for each layout). A token that several runs
continue is read by all of them, and its gradient is the sum over them.

Shape suffixes: N tokens · D width · M tokens and what is read beside them · R runs · K steps back · I those of the
tokens with too few before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice

import torch
from torch import Tensor

from instil.machine import sent

NOTHING = -1

Steps = list[tuple[Tensor, Tensor]]
"""For each step back, nearest first: the index of the token so far before each, [N], and of tokens with none, [I].

Where there is none the index is 0, and what it finds is to be taken for zero."""


class Runs:
    """What the patterns of all layouts have in common: tokens that lie side by side in runs."""

    def __init__(self) -> None:
        self._steps: dict[int, Steps] = {}

    def runs(self, reach: int) -> tuple[Sequence[int], Sequence[Sequence[int]]]:
        """Lengths of all runs, in order, and what comes before each: ``reach`` indices of its own, nearest first.

        ``NOTHING`` stands where a sequence has begun; see `last`.
        """
        raise NotImplementedError

    def preceding(self, layer: int, x_ND: Tensor, reach: int) -> tuple[Tensor, Steps]:
        """Where a layer finds its inputs of the tokens before each token.

        Args:
            layer: its number.
            x_ND: its inputs of all tokens.
            reach: how many steps back it looks.

        Returns:
            The inputs, [M, D], of which the first N are those given, and at which of them the token stands that is
            one step, two steps, up to ``reach`` steps before each.
        """
        del layer
        return x_ND, self.steps(reach, x_ND.device)

    def steps(self, reach: int, device: torch.device) -> Steps:
        """As ``preceding`` returns them; made once for all layers that look equally far."""
        if reach not in self._steps:
            self._steps[reach] = _steps(*self.runs(reach), reach, device)
        return self._steps[reach]


def last(reach: int, *pieces: range) -> list[int]:
    """The last indices of a sequence that consists of some pieces, nearest first.

    >>> last(3, range(0, 5)), last(3, range(0, 5), range(7, 8)), last(2)
    ([4, 3, 2], [7, 4, 3], [-1, -1])
    """
    found = list(islice(chain.from_iterable(reversed(piece) for piece in reversed(pieces)), reach))
    return found + [NOTHING] * (reach - len(found))


def _steps(lengths: Sequence[int], before: Sequence[Sequence[int]], reach: int, device: torch.device) -> Steps:
    lengths_R = torch.tensor(lengths)
    before_RK = torch.tensor(before, dtype=torch.long).view(len(lengths), reach)
    run_N = torch.arange(len(lengths)).repeat_interleave(lengths_R)
    at_N = torch.arange(len(run_N))
    own_N = at_N - (lengths_R.cumsum(0) - lengths_R)[run_N]  # place in the run
    found = []
    for step in range(1, reach + 1):
        outside_N = before_RK[run_N, (step - 1 - own_N).clamp(min=0)]
        index_N = torch.where(own_N >= step, at_N - step, outside_N)
        none_I = (index_N == NOTHING).nonzero()[:, 0]
        found.append((sent(index_N.clamp(min=0), device), sent(none_I, device)))
    return found
