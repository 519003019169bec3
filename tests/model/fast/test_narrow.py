"""Products in bfloat16: near the exact gradients, in bfloat16 indeed, with less kept, and nothing small lost."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from instil import machine
from instil.batches import Batch
from instil.data.loader import Loader
from instil.model.decoder import Decoder
from instil.model.fast import narrow
from instil.model.fast.gemm import Linear, linear
from instil.model.fast.narrow import narrowed, rounded
from instil.model.fast.recompute import checkpointed
from instil.model.lora import add_lora
from instil.model.lora_layer import LoraLinear
from instil.model.rope import apply_rope, rope_tables
from instil.settings.options import DpoOptions
from instil.tasks.pairs.batches import PairCollator
from instil.tasks.pairs.losses import Preference
from instil.train import head_loss
from instil.train.losses import nll_sum
from instil.train.objective import Likelihood, Objective
from instil.train.optimizer import AdamWInBackward
from instil.train.step import take_step
from tests.closeness import assert_e1, difference
from tests.model.fast.test_recompute import pairs
from tests.recipes.kept import kept_for_backward
from tests.train.test_training import SPECS, decoder, some_rows

ROUNDING = 2.0**-8  # of one number in bfloat16, relative to it
FAMILIES = sorted(SPECS)
PRODUCTS = (
    "mm",
    "addmm",
    "addmm_",
    "bmm",
    "baddbmm",
    "_linear_pointwise",
    "_scaled_dot_product_flash_attention_for_cpu",
)


def in_bf16() -> torch.autocast:
    """As a step with ``train.precision=bf16``."""
    return torch.autocast("cpu", torch.bfloat16)


def batch() -> Batch:
    """Rows that begin alike."""
    return next(Loader(some_rows(11), 11, pad_id=0).steps())[0]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: Decoder) -> dict[str, Tensor]:
    """Of the loss of the batch, in float64."""
    loss = nll_sum(model, batch())
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()))
    return {name: grad.double() for name, grad in zip(trained, found, strict=True)}


# How many roundings the whole gradient may be off by, of its length: what these models make of roundings by torch's own
# autocast, too. Norms after the layers let small differences through as large ones, sharp attention even more.
WITHIN = {"gemma2": 8, "gemma3": 40, "olmo3": 8}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_exact_but_for_rounding(family: str, method: str) -> None:
    """Each of a few dozen products in a row rounds its factors and what it makes, each time anew, as noise."""
    found = []
    for exact in (True, False):
        model = decoder(family)
        if method == "lora":
            add_lora(model, rank=2)
            for layer in model.modules():
                if isinstance(layer, LoraLinear):
                    with torch.no_grad():  # beside zeros A would have no gradient
                        layer.lora_b.copy_(0.02 * draw(*layer.lora_b.shape))
                        if layer.inside_TO is not None:
                            layer.lora_b.mul_(layer.inside_TO.t())
        if exact:
            found.append(gradients(model))
        else:
            with in_bf16():
                found.append(gradients(model.float()))
    exact_ones, ours = found
    assert exact_ones.keys() == ours.keys()
    apart = sum(float((ours[name] - one).square().sum()) for name, one in exact_ones.items())
    whole = sum(float(one.square().sum()) for one in exact_ones.values())
    assert 0 < (apart / whole) ** 0.5 < WITHIN.get(family, 3) * ROUNDING


class Products(TorchDispatchMode):
    """Notes the types of all products that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            matrices = [one for one in args if isinstance(one, Tensor) and one.dim() > 1]
            self.seen.extend((name, one.dtype, one.numel()) for one in matrices)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("what", ["full", "lora", "dpo", "checkpointing"])
def test_all_products_of_a_step_are_narrow(family: str, what: str) -> None:
    """Also attention's, the head's, and those of gradients; with fp32 none is."""
    for precision, wanted in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        model = decoder(family).float()
        if what == "lora":
            add_lora(model, rank=2)
        model.gradient_checkpointing = what == "checkpointing"
        objective: Objective = Likelihood()
        step: list[Batch] = [batch()]
        if what == "dpo":
            objective = Preference(DpoOptions())
            step = next(Loader(pairs(), 4, pad_id=0, collator=PairCollator).steps())
        optimizer = AdamWInBackward(model.parameters(), weight_decay=0.1)
        with Products() as products:
            take_step(model.train(), step, optimizer, objective, precision)
        assert {kind for _, kind, _ in products.seen} == {wanted}
        layers = sum(isinstance(one, Linear) for one in model.modules())
        assert len(products.seen) >= 6 * layers  # two factors each of at least three products


def test_outside_of_a_step_nothing_is_narrow() -> None:
    with Products() as products, torch.no_grad():
        nll_sum(decoder("llama").float(), batch())
    assert {kind for _, kind, _ in products.seen} == {torch.float32}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_less_is_kept_for_backward_than_in_float32(family: str, method: str) -> None:
    """At most four fifths. The weights' copies are not kept, or, of frozen weights, not for backward alone."""
    kept_bytes = []
    for enabled in (False, True):
        spec = replace(SPECS[family], width=96, head_width=24, heads=4, kv_heads=4, mlp_width=256)
        model = Decoder(spec)
        if method == "lora":
            add_lora(model, rank=2)
        with kept_for_backward(model) as kept, torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = nll_sum(model, batch())
        assert loss.requires_grad  # and so is not let go of
        kept_bytes.append(sum(kept.nbytes().values()))
    assert kept_bytes[1] < 0.8 * kept_bytes[0], kept_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_large_activations_do_not_overflow(family: str) -> None:
    """Beyond what float16 holds (65,504), as the streams of some models are."""
    model = decoder(family).float()
    with torch.no_grad():
        model.embed.weight.mul_(1e6)
        for block in model.blocks:
            (block.mlp.up if hasattr(block.mlp, "up") else block.mlp.gate_up).weight.mul_(1e6)
    with in_bf16():
        loss = nll_sum(model, batch())
    assert loss.isfinite()
    for grad in torch.autograd.grad(loss, list(model.parameters())):
        assert grad.isfinite().all()


@pytest.mark.parametrize("biased", [True, False])
def test_a_linear_layer_in_bfloat16(biased: bool) -> None:
    layer = nn.Linear(24, 40, bias=biased)
    x, direction = draw(9, 24).requires_grad_(), draw(9, 40, seed=1)
    wanted = torch.autograd.grad(layer(x), [x, *layer.parameters()], direction)
    with in_bf16():
        made = linear(x, layer.weight, layer.bias)
    found = torch.autograd.grad(made, [x, *layer.parameters()], direction.bfloat16())
    assert made.dtype == torch.bfloat16
    assert {one.dtype for one in found} == {torch.float32}
    assert 0 < difference([made, *found], [layer(x), *wanted]) < 4 * ROUNDING


def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, *, causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=True)


@pytest.mark.parametrize(
    ("piece", "long"), [(1, narrow.LONG), (1 << 12, narrow.LONG), (narrow.PIECE, narrow.LONG), (narrow.PIECE, 7)]
)
@pytest.mark.parametrize("masked", ["causal", "all", "prefix", "each"])
@pytest.mark.parametrize("shared", [1, 3])
def test_attention_is_that_of_torch(
    monkeypatch: pytest.MonkeyPatch, piece: int, long: int, masked: str, shared: int
) -> None:
    """Query by query, some at a time, and all at once; masks of all rows and of each."""
    monkeypatch.setattr(narrow, "PIECE", piece)
    monkeypatch.setattr(narrow, "LONG", long)
    length, keys = (7, 7) if masked == "causal" else (7, 11)
    inputs = [draw(2, heads, size, 8, seed=n) for n, (heads, size) in enumerate([(6, length), (6 // shared, keys)] * 2)]
    q, k, v = (one.bfloat16().double().requires_grad_() for one in (inputs[0], inputs[1], inputs[3]))
    mask = None
    if masked in ("prefix", "each"):
        mask = torch.arange(length)[:, None] + 4 >= torch.arange(keys)
    if masked == "each":
        mask = torch.stack([mask, mask & (torch.arange(keys) != 2)])[:, None]
    direction = draw(2, 6, length, 8, seed=9)
    made = attended(q, k, v, mask, 0.3, causal=masked == "causal")
    wanted = torch.autograd.grad(made, [q, k, v], direction.double())
    ours = [one.detach().bfloat16().requires_grad_() for one in (q, k, v)]
    found_one = narrow.attention(*ours, mask, 0.3, causal=masked == "causal")
    found = torch.autograd.grad(found_one, ours, direction.bfloat16())
    assert {one.dtype for one in (found_one, *found)} == {torch.bfloat16}
    assert_e1([found_one.double(), *(one.double() for one in found)], [made, *wanted], within=8 * ROUNDING)


@pytest.mark.parametrize(("length", "share"), [(narrow.LONG - 1, 1.0), (narrow.LONG, 0.625), (600, 0.625)])
def test_of_long_causal_scores_most_of_the_hidden_half_is_not_made(length: int, share: float) -> None:
    q, k = torch.empty(1, 3, length, 8), torch.empty(1, 1, length, 8)
    pieces = list(narrow._pieces(q, k, causal=True))
    made = sum((queries.stop - queries.start) * keys.stop for queries, keys in pieces)
    assert [one for queries, _ in pieces for one in range(queries.start, queries.stop)] == list(range(length))
    assert all(keys.stop >= queries.stop for queries, keys in pieces)
    assert made <= share * length * length
    assert len(list(narrow._pieces(q, k, causal=False))) == 1


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # without a cap and with it
def test_scores_are_in_float32_for_some_rows_at_a_time(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows have nothing to do with one another, so what comes of them is the same."""
    made: list[tuple[int, torch.dtype]] = []
    as_gradient = head_loss._scores_to_gradient

    def seen(scores_UV: Tensor, *args: Any, **options: Any) -> Tensor:
        made.append((len(scores_UV), scores_UV.dtype))
        return as_gradient(scores_UV, *args, **options)

    monkeypatch.setattr(head_loss, "_scores_to_gradient", seen)
    found, losses, counts = [], [], []
    for most in (head_loss.CHEAP_SCORES, 6 * 17 * 4):
        monkeypatch.setattr(head_loss, "CHEAP_SCORES", most)
        model = decoder(family).float()
        with in_bf16():
            losses.append(nll_sum(model, batch()))
        found.append(torch.autograd.grad(losses[-1], list(model.parameters())))
        counts.append(made.copy())
        made.clear()
    (whole,), pieces = counts
    assert whole[0] == sum(rows for rows, _ in pieces) > 2 * max(rows for rows, _ in pieces)
    assert {kind for _, kind in (whole, *pieces)} == {torch.float32}
    torch.testing.assert_close(*losses)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_many_scores_are_not_kept() -> None:
    """Only what torch's own attention would keep, where they are more than a piece."""
    q, k, v = (draw(4, 2, 512, 8, seed=n).requires_grad_() for n in range(3))
    kept: list[int] = []

    def note(saved: Tensor) -> Tensor:
        kept.append(saved.nbytes)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        narrow.attention(q, k, v, None, None, causal=True)
    assert sum(kept) < 4 * q.nbytes


def test_heads_are_turned_in_float32() -> None:
    """Angles of bfloat16 would be far off at late positions."""
    tables = rope_tables(torch.arange(990, 1000), 16, 10000.0, None, torch.float32)
    x, direction = draw(10, 3, 16).requires_grad_(), draw(10, 3, 16, seed=1)
    wanted = apply_rope(x, *tables)
    with in_bf16():
        found = apply_rope(x, *tables)
    assert found.dtype == torch.bfloat16
    grads = [torch.autograd.grad(one, x, direction.to(one.dtype))[0] for one in (wanted, found)]
    torch.testing.assert_close(found.float(), wanted, rtol=ROUNDING, atol=1e-6)
    torch.testing.assert_close(grads[1], grads[0], rtol=4 * ROUNDING, atol=4 * ROUNDING)


@pytest.mark.parametrize("grad", [True, False])
def test_what_adapters_add_is_not_rounded_away(grad: bool) -> None:
    """A thousandth of the outputs, less than half of what bfloat16 can tell: it arrives on average."""
    model = decoder("llama").float()
    add_lora(model, rank=2)
    layer = model.blocks[0].mlp.down
    x = draw(500, layer.in_features)
    outputs = []
    with torch.set_grad_enabled(grad), in_bf16():
        outputs.append(layer(x).double())
        with torch.no_grad():
            layer.lora_b.copy_(draw(*layer.lora_b.shape))
            size = 1e-3 * outputs[0].std()
            exact = x @ layer.lora_a.t() @ layer.lora_b.t() * layer.scale
            layer.lora_b.mul_(size / exact.std())
            exact = exact.mul(size / exact.std()).double()
        outputs.append(layer(x).double())
    added = (outputs[1] - outputs[0]).detach()
    assert float((added * exact).sum() / exact.square().sum()) == pytest.approx(1, abs=0.2)


def test_a_frozen_weight_is_cast_once_and_again_when_it_has_changed() -> None:
    model = decoder("llama").float()
    add_lora(model, rank=2)
    layer = model.blocks[0].attention.out
    x = draw(5, layer.in_features)
    with in_bf16():
        first = layer(x)
        held = layer.beside._held[1]
        layer(x)
        assert layer.beside._held[1] is held
        with torch.no_grad():
            layer.weight.mul_(2)
        assert not torch.equal(layer(x), first)
    other = decoder("llama").float()
    add_lora(other, rank=2)
    layer = other.blocks[0].attention.out
    with in_bf16():
        checkpointed(layer, x, layer.parameters())
    assert layer.beside._held is None  # it is to spare memory


STEP = 2.0**-7  # of bfloat16's grid between 1 and 2


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.25, 0.9], ids=["on the grid", "half way", "a quarter", "nearly"])
@pytest.mark.parametrize("moved", [1 / 16, -1 / 16, 1 / 128, 0.0])
def test_a_product_follows_its_weight_however_little_it_moves(place: float, moved: float, sign: int) -> None:
    """To the nearest, weights half way would all take the whole step of the grid, and those on it none."""
    start = torch.full((3, 512), sign * (1 + place * STEP))
    follows = sign * moved * STEP
    before, after = (rounded(weight).float().mean(1) for weight in (start, start + follows))
    torch.testing.assert_close(before, start.mean(1), atol=STEP / 512, rtol=0)
    torch.testing.assert_close(after - before, torch.full((3,), follows), atol=STEP / 512 * 1.01, rtol=0)


def test_a_weight_is_rounded_to_one_of_its_neighbours_and_stays_if_it_is_one() -> None:
    weight = torch.randn(64, 300) * torch.logspace(-30, 30, 64)[:, None]
    found = rounded(weight)
    near = weight.to(torch.bfloat16)
    assert (found.float() - weight).abs().le(2.0**-7 * weight.abs()).all()
    assert not torch.equal(found, near) and torch.equal(rounded(near.float()), near) and rounded(near) is near
    assert torch.equal(found, -rounded(-weight)) and torch.equal(found, rounded(weight))
    kept = torch.tensor([[0.0, -0.0, float("inf"), float("-inf"), 1.0, 2.0**-133, 3.0e38]]).to(torch.bfloat16)
    assert torch.equal(rounded(kept.float()).view(torch.int16), kept.view(torch.int16))
    assert rounded(torch.full((2, 2), float("nan"))).isnan().all()
    assert rounded(torch.full((2, 8), 1e-45)).float().abs().max() < 1e-38
    for other in (torch.randn(3), torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float16)):
        assert torch.equal(rounded(other), other.to(torch.bfloat16))


def test_a_large_weight_is_rounded_in_pieces_and_any_layout_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(70, 48)
    whole = rounded(weight)
    monkeypatch.setattr(narrow, "ROUNDED", 48 * 8)
    assert torch.equal(rounded(weight), whole) and torch.equal(rounded(weight.t().contiguous().t()), whole)
    wider = torch.zeros(70, 60, dtype=torch.bfloat16)
    rounded(weight, wider[:, :48])
    assert torch.equal(wider[:, :48], whole) and not wider[:, 48:].any()
    assert rounded(torch.zeros(0, 4)).shape == (0, 4) and rounded(torch.zeros(4, 0)).shape == (4, 0)


def test_columns_of_other_shapes_have_other_thresholds() -> None:
    """Else a channel would be scaled alike by every layer that reads it."""
    half = 1 + STEP / 2
    first, other = (rounded(torch.full((rows, 512), half))[0] for rows in (3, 4))
    assert 200 < (first == other).sum() < 312


def test_layers_their_adapters_and_the_head_read_the_same_numbers() -> None:
    """A reference is asked before adapters are put on, and compared to what is trained with them."""
    model = decoder("llama").float()
    layer = model.blocks[0].attention.out
    wanted = rounded(layer.weight.detach())
    with in_bf16():
        assert torch.equal(linear(torch.eye(layer.in_features), layer.weight), wanted.t())
    add_lora(model, rank=2)
    adapted = model.blocks[0].attention.out
    with in_bf16():
        adapted(torch.ones(1, layer.in_features))
    assert torch.equal(adapted.beside.matrix(adapted.lora_b, 1.0)[:, : layer.in_features], wanted)
    head = model.head.weight.detach()
    assert torch.equal(narrowed(head), rounded(head))


def test_the_head_is_cast_into_the_same_memory_once_for_each_state_of_it() -> None:
    weight = torch.nn.Parameter(torch.randn(6, 4))
    first = narrowed(weight)
    assert torch.equal(first, rounded(weight.detach())) and not first.requires_grad
    version = first._version
    assert narrowed(weight) is first and first._version == version  # not written again
    with torch.no_grad():
        weight.detach().mul_(2)  # as the optimizer does
    again = narrowed(weight)
    assert again is first and first._version > version and torch.equal(again, rounded(weight.detach()))
    weight.data = torch.randn(3, 4)
    assert torch.equal(narrowed(weight), rounded(weight.detach()))
    assert narrowed(first) is first  # nothing to do
    with torch.inference_mode():
        assert torch.equal(narrowed(weight), rounded(weight.detach()))


def test_where_weights_are_gathered_from_parts_no_copy_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_little", True)
    weight = torch.nn.Parameter(torch.randn(6, 4))
    assert narrowed(weight) is not narrowed(weight)
    with torch.autograd._unsafe_preserve_version_counter(weight.detach()):  # as FSDP2 fills what it gathers
        weight.detach().mul_(2)
    assert torch.equal(narrowed(weight), rounded(weight.detach()))


def test_a_copy_that_backward_wants_is_not_changed_unseen() -> None:
    weight, x = torch.nn.Parameter(torch.randn(6, 4)), torch.randn(2, 4, dtype=torch.bfloat16, requires_grad=True)
    out = (x @ narrowed(weight).t()).sum()
    with torch.no_grad():
        weight.add_(1)
    narrowed(weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_a_copy_goes_with_its_weight() -> None:
    weight = torch.nn.Parameter(torch.randn(6, 4))
    copy = weakref.ref(narrowed(weight))
    assert copy() is not None
    del weight
    assert copy() is None
