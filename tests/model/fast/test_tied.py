"""The gradient of a table that is embedding and head: whole, in pieces, from few rows or many."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from instil.model.fast import tied
from instil.model.fast.tied import TiedGradient, embed_tied
from instil.train.head_loss import head_nll_sum

VOCABULARY, WIDTH = 13, 4


def loss_of(table: Tensor, ids: Tensor, ours: TiedGradient | None) -> Tensor:
    hidden = (table[ids] if ours is None else embed_tied(ids, table, ours)).sin()
    rows = torch.arange(len(ids))
    return head_nll_sum(hidden, table, rows, ids.roll(1), torch.ones(len(ids), dtype=table.dtype), ours)


@pytest.mark.parametrize("tokens", [3, WIDTH, 9])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_it_is_autograds(tokens: int, in_pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens leave factors, many a table; both come out whole or in pieces."""
    monkeypatch.setattr(tied, "PIECE", 5 * WIDTH * 8)
    table = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(VOCABULARY, (tokens,))
    (wanted,) = torch.autograd.grad(loss_of(table, ids, None), table)
    given: list[tuple[slice, Tensor]] = []
    grad_hook = (lambda rows, grad: given.append((rows, grad.clone()))) if in_pieces else None
    loss_of(table, ids, TiedGradient(grad_hook)).backward()  # type: ignore[no-untyped-call]
    if in_pieces:
        assert table.grad is None
        assert [(rows.start, rows.stop) for rows, _ in given] == [(0, 5), (5, 10), (10, 13)]
        found = torch.cat([grad for _, grad in given])
    else:
        assert table.grad is not None
        found = table.grad
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_second_backward_counts_nothing_twice() -> None:
    table = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([1, 2, 3])
    loss = loss_of(table, ids, TiedGradient())
    (first,) = torch.autograd.grad(loss, table, retain_graph=True)
    (second,) = torch.autograd.grad(loss, table)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
