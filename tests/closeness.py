"""What "equal in exact arithmetic" (E1) means for gradients: differences are measured against the largest value.

An entry that is a small difference of large terms carries the rounding of those terms, so entry by entry there is no
bound on the relative difference; normwise there is (Higham, Accuracy and Stability of Numerical Algorithms, 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def assert_e1(found: Sequence[Tensor], wanted: Sequence[Tensor], within: float = 1e-12) -> None:
    """Every tensor of ``found`` is that of ``wanted`` but for ``within`` times the largest value among all of them."""
    largest = max(1e-3, *(float(tensor.abs().max()) for tensor in wanted))
    torch.testing.assert_close(list(found), list(wanted), rtol=0.0, atol=within * largest)


def difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The greatest difference of any entry, relative to the largest value among all that is wanted.

    Not a number where an entry is none.
    """
    apart = []
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape, f"shapes {tuple(ours.shape)} and {tuple(theirs.shape)}"
        apart.append((ours - theirs).abs().max())
    largest = torch.stack([tensor.abs().max() for tensor in wanted]).max()
    return float(torch.stack(apart).max() / largest)
