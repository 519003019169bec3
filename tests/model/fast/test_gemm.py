"""The seam of matrix products: oneDNN's give what torch's give, values and gradients, and the choice is one's own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from instil.errors import SettingsError
from instil.model.fast import gemm


@pytest.fixture(params=["torch", "onednn"])
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One of the two, for small matrices too."""
    monkeypatch.setenv("INSTIL_GEMM", request.param)
    monkeypatch.setattr(gemm, "SMALL", 0)
    gemm.backend.cache_clear()
    yield request.param
    gemm.backend.cache_clear()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, 37])
def test_values_and_gradients(chosen: str, tokens: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = gemm.Linear(24, 40, bias=bias)
    x = torch.randn(tokens, 24, requires_grad=True)
    ours, theirs = layer(x), F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(ours)
    inputs = [x, *layer.parameters()]
    found = torch.autograd.grad(ours, inputs, direction)
    torch.testing.assert_close(found, torch.autograd.grad(theirs, inputs, direction), rtol=1e-5, atol=1e-5)
    name = type(ours.grad_fn).__name__
    assert (name == "_LinearBackward") == (chosen == "onednn")
    with torch.no_grad():
        torch.testing.assert_close(layer(x), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 5, 70])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_weights_give_the_same_until_they_change(chosen: str, tokens: int, bias: bool) -> None:
    layer = gemm.Linear(24, 40, bias=bias)
    x = torch.randn(tokens, 24)
    with torch.no_grad():
        wanted = layer(x)
        gemm.pack(layer)
        assert (layer.packed is not None) == (chosen == "onednn")
        torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
        assert layer.packed is None
        gemm.pack(layer)
        layer.weight = torch.nn.Parameter(torch.zeros(40, 24))
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        gemm.pack(layer)
        layer.weight.data = torch.ones(40, 24)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
        gemm.pack(layer)
        assert copy.deepcopy(layer).packed is None
        gemm.unpack(layer)
        assert layer.packed is None
        gemm.pack(layer)
    layer(x).sum().backward()  # type: ignore[no-untyped-call]
    assert layer.packed is None, "training holds no second copy"
    with torch.no_grad():
        gemm.pack(layer)
        assert layer.double()(x.double()).dtype == torch.float64


def test_other_types_are_torchs(chosen: str) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        layer = gemm.Linear(8, 8).to(dtype)
        x = torch.randn(3, 8, dtype=dtype)
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_a_frozen_weight_gets_no_gradient(chosen: str) -> None:
    layer = gemm.Linear(8, 8)
    layer.weight.requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    layer(x).sum().backward()  # type: ignore[no-untyped-call]
    assert layer.weight.grad is None
    assert x.grad is not None
    assert layer.bias.grad is not None


@pytest.mark.parametrize(("gain", "backend"), [(1.04, "torch"), (1.08, "onednn")])
def test_it_is_chosen_by_a_clear_gain(gain: float, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INSTIL_GEMM", raising=False)
    monkeypatch.setattr(gemm, "_gain", lambda: gain)
    monkeypatch.setattr(gemm, "_before", "")
    gemm.backend.cache_clear()
    assert gemm.backend() == backend
    gemm.backend.cache_clear()


def test_what_another_process_used_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INSTIL_GEMM", raising=False)
    monkeypatch.setattr(gemm, "_gain", lambda: 9.0)
    monkeypatch.setattr(gemm, "_before", "")
    assert gemm.use_again("torch") == gemm.backend() == "torch"
    monkeypatch.setenv("INSTIL_GEMM", "onednn")  # the user's word counts for more
    assert gemm.use_again("torch") == "onednn"
    monkeypatch.undo()
    gemm.backend.cache_clear()


def test_what_another_process_used_is_used_again_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was measured before is what holds afterwards: it is not measured once more."""
    monkeypatch.delenv("INSTIL_GEMM", raising=False)
    monkeypatch.setattr(gemm, "_before", "")
    gemm.backend.cache_clear()
    gains = iter((9.0, 0.1))
    monkeypatch.setattr(gemm, "_gain", functools.cache(lambda: next(gains)))
    assert gemm.backend() == "onednn"
    with gemm.own_products():
        assert gemm.use_again("torch") == gemm.backend() == "torch"
        with pytest.raises(ZeroDivisionError), gemm.own_products():
            assert gemm.use_again("onednn") == "onednn"
            raise ZeroDivisionError
        assert gemm.backend() == "torch"
    assert gemm.backend() == "onednn"
    monkeypatch.undo()
    gemm.backend.cache_clear()


def test_it_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter(((9.0, 1.0), (1.0, 9.0)))
    monkeypatch.setattr(gemm, "least_seconds", lambda *works: next(measured))
    gemm._gain.cache_clear()
    assert gemm._gain() == gemm._gain() == 9.0
    gemm._gain.cache_clear()


def test_both_are_measured() -> None:
    assert 0.01 < gemm._gain() < 100


def test_slow_rounds_at_first_do_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's work beside ours may last some rounds: who is faster is told by what each can do."""
    now = [0.0]
    monkeypatch.setattr(gemm.time, "perf_counter", lambda: now[0])

    def lasting(*seconds: float) -> Callable[[], None]:
        rounds = iter((seconds[0], *seconds))  # the first one is not counted

        def work() -> None:
            now[0] += next(rounds, seconds[-1])

        return work

    found = gemm.least_seconds(lasting(2.0, 2.0, 2.0), lasting(6.0, 5.0, 5.0, 1.2, 1.0, 1.0))
    assert found == pytest.approx([2.0, 1.0])
    falling = [10 * 0.9**n for n in range(99)]
    assert gemm.least_seconds(lasting(*falling), most=5) == pytest.approx([falling[4]])  # it ends


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTIL_GEMM", "blas")
    gemm.backend.cache_clear()
    with pytest.raises(SettingsError, match="wanted torch or onednn"):
        gemm.backend()


def test_measuring_leaves_random_numbers_and_default_types_alone() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float64)
    try:
        gemm._gain()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(1), wanted)


def test_what_bfloat16_gains_is_measured_on_the_same_products(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[set[torch.dtype]] = []

    def measured(*works: Callable[[], tuple[torch.Tensor, ...]]) -> list[float]:
        kinds.extend({one.dtype for one in work()} for work in works)
        return [3.0, 1.5]

    monkeypatch.setattr(gemm, "least_seconds", measured)
    gemm.narrow_gain.cache_clear()
    assert gemm.narrow_gain() == 2.0
    gemm.narrow_gain.cache_clear()
    assert kinds == [{torch.float32}, {torch.bfloat16}]


@pytest.mark.parametrize(
    ("asked", "device", "gain", "on_gpu", "found"),
    [
        ("auto", "cpu", 2.1, False, "bf16"),
        ("auto", "cpu", 0.4, True, "fp32"),
        ("auto", "cuda", 0.4, True, "bf16"),
        ("auto", "cuda", 2.1, False, "fp32"),
        ("fp32", "cpu", 2.1, True, "fp32"),
        ("bf16", "cpu", 0.4, False, "bf16"),
    ],
)
def test_auto_is_bfloat16_where_there_are_units_for_it(
    asked: str, device: str, gain: float, on_gpu: bool, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "narrow_gain", lambda: gain)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: on_gpu and not including_emulation)
    assert gemm.precision_for(asked, device) == found
