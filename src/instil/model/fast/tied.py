"""The gradient of a table that is embedding and head at once, held once.

Autograd would build two dense tables, one of zeros with the embedding's rows added and one from the head,
and add them. Here the head's backward leaves its table with the pass, and the embedding's backward, which
always comes later, adds its few rows to it. Equal in exact arithmetic (E1).

Shape suffixes: N tokens · D width · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instil.model.fast.gemm import weight_gradient

# Called with some rows of the table and their gradient, each row once, in order.
RowGradientHook = Callable[[slice, Tensor], None]
PIECE = 12 << 20  # bytes of gradient given to a hook at once: little enough to stay in a cache
GPU_PIECE = 1 << 28  # as many as keep a GPU busy


class TiedGradient:
    """What one forward pass knows of the gradient of its tied table; it lives as long as the pass's graph.

    The head's share is left as its two factors where they are smaller than their product: the gradient is then
    made when the embedding's backward is reached, after everything that the layers kept for backward has gone.

    Args:
        grad_hook: is called with the gradient in pieces as it is made, so that it never exists whole. Without one the
            gradient goes where autograd's goes.
    """

    def __init__(self, grad_hook: RowGradientHook | None = None) -> None:
        self.grad_hook = grad_hook
        self._factors: list[tuple[Tensor, Tensor]] = []
        self._table_VD: Tensor | None = None
        self._run = -1  # which run of backward left them: one may end before it comes to the embedding

    def leave(self, grad_UV: Tensor, hidden_UD: Tensor) -> None:
        """The head's share, ``grad^T hidden``; a head applied several times in one pass leaves several."""
        self._begin()
        if grad_UV.shape[0] <= hidden_UD.shape[1]:
            self._factors.append((grad_UV, hidden_UD))
        else:
            table_VD = weight_gradient(grad_UV, hidden_UD)
            self._add(table_VD.to(torch.promote_types(table_VD.dtype, torch.float32)))  # products may be in bfloat16

    def leave_table(self, grad_VD: Tensor) -> None:
        """The head's share as a table, which is kept and may be changed."""
        self._begin()
        self._add(grad_VD)

    def finish(self, ids_N: Tensor, grad_ND: Tensor, weight_VD: Tensor) -> Tensor | None:
        """The whole gradient, [V, D]: what the head left in this backward and the embedding's own; None if given."""
        self._begin()
        if self.grad_hook is None:
            whole_VD = self._rows(slice(0, len(weight_VD)), ids_N, grad_ND, weight_VD)
        else:
            most = PIECE if weight_VD.device.type == "cpu" else GPU_PIECE
            size = max(1, most // (weight_VD.shape[1] * weight_VD.element_size()))
            for first in range(0, len(weight_VD), size):
                rows = slice(first, min(first + size, len(weight_VD)))
                self.grad_hook(rows, self._rows(rows, ids_N, grad_ND, weight_VD))
            whole_VD = None
        self._factors, self._table_VD = [], None
        return whole_VD

    def _rows(self, rows: slice, ids_N: Tensor, grad_ND: Tensor, weight_VD: Tensor) -> Tensor:
        total_RD = None if self._table_VD is None else self._table_VD[rows].to(weight_VD.dtype)
        for grad_UV, hidden_UD in self._factors:
            part_RD = weight_gradient(grad_UV[:, rows], hidden_UD).to(weight_VD.dtype)
            total_RD = part_RD if total_RD is None else total_RD.add_(part_RD)
        if total_RD is None:
            total_RD = torch.zeros_like(weight_VD[rows])
        if rows == slice(0, len(weight_VD)):
            return total_RD.index_add_(0, ids_N, grad_ND)
        here_N = (ids_N >= rows.start) & (ids_N < rows.stop)
        if ids_N.device.type == "cpu":
            return total_RD.index_add_(0, ids_N[here_N] - rows.start, grad_ND[here_N])
        at_N = (ids_N - rows.start).clamp(0, len(total_RD) - 1)  # to pick tokens out, the host would wait
        return total_RD.index_add_(0, at_N, grad_ND.where(here_N[:, None], 0.0))

    def _add(self, grad_VD: Tensor) -> None:
        self._table_VD = grad_VD if self._table_VD is None else self._table_VD.add_(grad_VD)

    def _begin(self) -> None:
        if self._run != _backward():
            self._factors, self._table_VD, self._run = [], None, _backward()


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
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[None, Tensor | None, None]:
        ids_N, weight_VD = ctx.saved_tensors
        return None, ctx.tied.finish(ids_N, grad_ND, weight_VD), None
