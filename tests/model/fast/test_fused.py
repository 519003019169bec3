"""Norm and gate against torch's own operations: values and gradients in float64 (E1), and what they keep."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instil.model.fast.fused import gated, rms_norm

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=2)


def compare(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(ours)
    found = torch.autograd.grad(ours, inputs, direction)
    wanted = torch.autograd.grad(theirs, inputs, direction)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.integers(1, 9), st.sampled_from([1e-6, 1e-1]))
def test_norm(leading: list[int], width: int, eps: float) -> None:
    x = torch.randn(*leading, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(width, dtype=torch.float64, requires_grad=True)
    compare(rms_norm(x, weight, eps), F.rms_norm(x, (width,), weight, eps), [x, weight])


def test_norm_of_a_view() -> None:
    """Queries and keys come as a part of a wider tensor."""
    wide = torch.randn(5, 4, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    part = wide[:, 1:3]
    compare(rms_norm(part, weight, 1e-5), F.rms_norm(part, (6,), weight, 1e-5), [wide, weight])


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.integers(1, 6), st.sampled_from(["silu", "gelu"]))
def test_gate(leading: list[int], width: int, activation: str) -> None:
    x = torch.randn(*leading, 2 * width, dtype=torch.float64, requires_grad=True)
    gate, up = x.chunk(2, dim=-1)
    shaped = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    compare(gated(x, activation), shaped * up, [x])


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_without_gradients_the_values_are_the_same(activation: str) -> None:
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(8)
    with torch.no_grad():
        silent = rms_norm(x, weight, 1e-5), gated(x, activation)
    torch.testing.assert_close(silent, (rms_norm(x, weight, 1e-5), gated(x, activation)))
    assert not silent[0].requires_grad


def kept(make: object) -> int:
    """Elements that autograd saves for backward, each storage once."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        make()  # type: ignore[operator]
    return sum(found.values())


def test_they_keep_their_input_and_little_else() -> None:
    x, weight = torch.randn(64, 32, requires_grad=True), torch.randn(32, requires_grad=True)
    assert kept(lambda: rms_norm(x, weight, 1e-5)) == 64 * 32 + 32 + 64
    assert kept(lambda: gated(x, "silu")) == 64 * 32


def test_narrow_types_keep_torchs_norm() -> None:
    """Squares of half-precision numbers overflow."""
    x = (torch.ones(2, 64) * 300).half().requires_grad_()
    weight = torch.ones(64).half()
    assert torch.equal(rms_norm(x, weight, 1e-5), F.rms_norm(x, (64,), weight, 1e-5))
    assert float(rms_norm(x, weight, 1e-5).detach().float().mean()) == pytest.approx(1.0, rel=1e-2)
