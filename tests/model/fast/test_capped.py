"""Capped scores against the form that is written out: values and gradients in float64 (E1), under any mask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instil.data.collate import collate_shared
from instil.model.decoder import batch_of_ids
from instil.model.fast import capped
from instil.model.fast.capped import capped_attention, soft_cap
from instil.model.lora import add_lora
from instil.records import Encoded
from instil.train import head_loss
from instil.train.losses import log_probs, nll_sum
from tests.closeness import assert_e1
from tests.model.fast.test_fused import compare
from tests.train.test_training import SPECS, decoder

SCALED = replace(  # as Granite is
    SPECS["llama"], attention_multiplier=0.3, embedding_multiplier=3.0, residual_multiplier=0.7, logits_scaling=1.3,
    tied=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPECS, "scaled", SCALED)


def written_out(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, cap: float, *, causal: bool
) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = cap * torch.tanh(scores / cap)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1) @ v


def drawn(rows: int, heads: int, shared: int, queries: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values as attention has them: views of flat tokens."""
    sizes = ((heads, queries), (shared, keys), (shared, keys))
    flat = [torch.randn(rows, length, count, 6, dtype=dtype, requires_grad=True) for count, length in sizes]
    return [x.transpose(1, 2) for x in flat]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["causal", "none", "for all rows", "for each row"]), st.integers(1, 3), st.integers(1, 3),
    st.integers(1, 3), st.integers(1, 7), st.integers(0, 4), st.sampled_from([None, 0.7]),
    st.sampled_from([0.5, 3.0, 500.0]), st.sampled_from([1, 200, 1 << 20]),
)  # fmt: skip
def test_attention(
    mask: str, rows: int, shared: int, group: int, queries: int, more: int, scale: float | None, cap: float, piece: int
) -> None:
    keys = queries if mask == "causal" else queries + more
    inputs = drawn(rows, shared * group, shared, queries, keys, torch.float64)
    seen = None
    if mask.startswith("for"):
        seen = torch.rand(*((queries, keys) if "all" in mask else (rows, 1, queries, keys))) > 0.4
        seen[..., 0] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capped, "PIECE", piece)
        how = (seen, scale, cap)
        ours = capped_attention(*inputs, *how, causal=mask == "causal")
        compare(ours, written_out(*inputs, *how, causal=mask == "causal"), inputs)


def test_attention_is_that_of_transformers() -> None:
    from transformers.models.gemma2 import modeling_gemma2

    module = torch.nn.Module()
    module.num_key_value_groups, module.head_dim = 3, 6  # type: ignore[assignment]
    inputs = drawn(2, 6, 2, 9, 9, torch.float64)
    seen = torch.ones(9, 9, dtype=torch.bool).tril().triu(-3)
    hidden = torch.zeros(9, 9, dtype=torch.float64).masked_fill(~seen, float("-inf"))
    theirs, _ = modeling_gemma2.eager_attention_forward(module, *inputs, hidden, scaling=0.4, softcap=1.2)
    ours = capped_attention(*inputs, seen, 0.4, 1.2, causal=False)
    torch.testing.assert_close(ours.transpose(1, 2), theirs, rtol=1e-6, atol=1e-6)  # its softmax is in float32


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_attention_in_narrow_numbers(how: str) -> None:
    """Near, of the narrow type, and softmax not in it."""
    inputs = drawn(2, 4, 2, 40, 40, torch.float32)
    wanted = written_out(*inputs, None, None, 2.0, causal=True)
    direction = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, inputs, direction)
    narrow = inputs if how == "autocast" else [x.bfloat16() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        found = capped_attention(*narrow, None, None, 2.0, causal=True)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=0.03)
    assert_e1(torch.autograd.grad(found, inputs, direction.bfloat16()), gradients, within=0.03)


def test_pieces_are_small_and_leave_out_what_no_query_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Size] = []
    monkeypatch.setattr(capped, "PIECE", 4 * 100 * 4 * 25)
    monkeypatch.setattr(capped, "_tanh", lambda *args, true=capped._tanh: made.append((x := true(*args)).shape) or x)
    inputs = drawn(1, 4, 2, 100, 100, torch.float32)
    capped_attention(*inputs, None, None, 5.0, causal=True).sum().backward()
    assert made == [torch.Size((1, 2, 50, keys)) for keys in (25, 50, 75, 100)] * 2


@pytest.mark.parametrize("cap", [0.3, 30.0])
def test_soft_cap(cap: float) -> None:
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    compare(soft_cap(x * 3, cap), cap * torch.tanh(x * 3 / cap), [x])
    with torch.no_grad():
        mine = x * 3
        assert soft_cap(mine, cap) is mine
        torch.testing.assert_close(mine, cap * torch.tanh(x * 3 / cap))


@pytest.mark.parametrize("chunks", [False, True], ids=["whole", "chunks"])
@pytest.mark.parametrize("head", ["tied", "untied", "adapted"])
@pytest.mark.parametrize("family", ["gemma2", "scaled"])
def test_losses_see_the_caps_and_scales_of_logits(
    family: str, head: str, chunks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against torch's own cross-entropy of the decoder's logits, where the loss makes its scores itself."""
    if chunks:
        for limit in ("LARGEST_SCORES", "CHEAP_SCORES"):
            monkeypatch.setattr(head_loss, limit, 3 * 17 * 8)
    model = decoder(family)
    if head == "untied":
        model.untie()
    if head == "adapted":
        add_lora(model, rank=2, targets=("q", "head"))
        for name, parameter in model.named_parameters():
            if "lora_b" in name:  # zero at first, which would hide mistakes
                torch.nn.init.normal_(parameter, std=0.5)
    rows = [(1, 2, 3, 4, 5), (1, 2, 9, 6, 7, 8)]
    batch = collate_shared([Encoded(ids, (True,) * len(ids)) for ids in rows])
    wanted = torch.zeros((), dtype=torch.float64)
    for ids in rows:
        scores = model.logits(model(batch_of_ids(torch.tensor([ids[:-1]]))))
        wanted = wanted + F.cross_entropy(scores, torch.tensor(ids[1:]), reduction="sum")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(wanted, trained)
    for found in (nll_sum(model, batch), -(log_probs(model, batch) * batch.weights_S).sum()):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        assert_e1(torch.autograd.grad(found, trained), gradients)
    with torch.no_grad():
        torch.testing.assert_close(nll_sum(model, batch), wanted, rtol=1e-12, atol=1e-12)
        found = -(log_probs(model, batch) * batch.weights_S).sum()
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    model.spec = replace(SPECS[family], logits_softcap=None, logits_scaling=None)
    assert (nll_sum(model, batch) - wanted).abs() > 0.1  # they matter here


def test_slopes_beside_scores_are_half_of_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(head_loss, "LARGEST_SCORES", 4 * 17 * 8)
    monkeypatch.setattr(
        head_loss, "_scores", lambda *args, true=head_loss._scores: made.append(len(args[0])) or true(*args)
    )
    batch = collate_shared([Encoded((1, 2, 3, 4, 5, 6, 7, 8, 9), (True,) * 9)])
    for family, sizes in (("scaled", [4, 4]), ("gemma2", [2, 2, 2, 2])):
        nll_sum(decoder(family), batch).backward()
        assert made == sizes
        made.clear()
