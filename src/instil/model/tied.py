"""The gradient of a table that is embedding and head at once, held once.

Autograd would build two dense tables, one of zeros with the embedding's rows added and one from the head,
and add them. Here the head's backward leaves its table with the pass, and the embedding's backward, which
always comes later, adds its few rows to it. Equal in exact arithmetic (E1).

Shape suffixes: N tokens · D width · V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class TiedGradient:
    """What one forward pass knows of the gradient of its tied table; it lives as long as the pass's graph."""

    def __init__(self) -> None:
        self.from_head_VD: Tensor | None = None
        self.backward = -1  # which run of backward left it: one may end before it comes to the embedding

    def leave(self, grad_VD: Tensor) -> None:
        """The head's share; a head applied several times in one pass leaves several."""
        left = self.from_head_VD if self.backward == _backward() else None
        self.from_head_VD = grad_VD if left is None else left.add_(grad_VD)
        self.backward = _backward()

    def take(self, like_VD: Tensor) -> Tensor:
        """What the head left in this backward, or zeros."""
        left = self.from_head_VD if self.backward == _backward() else None
        self.from_head_VD = None
        return torch.zeros_like(like_VD) if left is None else left


def _backward() -> int:
    """The number of the running backward."""
    return torch._C._current_graph_task_id()


def embed_tied(ids_N: Tensor, weight_VD: Tensor, tied: TiedGradient) -> Tensor:
    """Rows of the table, [N, D]; its gradient is that of the head and the embedding together."""
    return _EmbedTied.apply(ids_N, weight_VD, tied)  # type: ignore[no-any-return, no-untyped-call]


class _EmbedTied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids_N: Tensor, weight_VD: Tensor, tied: TiedGradient) -> Tensor:
        ctx.save_for_backward(ids_N, weight_VD)
        ctx.tied = tied
        return weight_VD.index_select(0, ids_N)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[None, Tensor, None]:
        ids_N, weight_VD = ctx.saved_tensors
        return None, ctx.tied.take(weight_VD).index_add_(0, ids_N, grad_ND), None
