"""The tree of segments as FlashAttention is asked for it, against bunches side by side; the kernel itself by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instil.batches import Batch
from instil.data.collate import collate_shared
from instil.layouts import Tree
from instil.model import segments
from instil.records import Encoded
from instil.train.losses import nll_sum
from tests.closeness import assert_e1
from tests.gpu.pretended import PretendedGpu, to_gpu
from tests.train.test_training import SPECS, decoder, some_rows


def by_hand(
    q_NHW: Tensor, k_MKW: Tensor, v_MKW: Tensor, ends: Tensor, seen_ends: Tensor, longest: int, most_seen: int,
    *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """What `torch.nn.attention.varlen.varlen_attn` says that it computes, one sequence after another."""
    assert ends.dtype == seen_ends.dtype == torch.int32 and window_size[1] == 0
    assert all(x.stride(-1) == 1 for x in (q_NHW, k_MKW, v_MKW)), "the kernel wants heads whole"
    assert enable_gqa == (q_NHW.shape[1] != k_MKW.shape[1])
    assert len({x.dtype for x in (q_NHW, k_MKW, v_MKW)}) == 1
    borders, seen = getattr(ends, "held", ends).tolist(), getattr(seen_ends, "held", seen_ends).tolist()
    assert longest == max(b - a for a, b in pairwise(borders))
    assert most_seen == max(b - a for a, b in pairwise(seen))
    found = []
    for at in range(len(borders) - 1):
        q = q_NHW[borders[at] : borders[at + 1]].transpose(0, 1)
        k, v = (x[seen[at] : seen[at + 1]].transpose(0, 1) for x in (k_MKW, v_MKW))
        behind = k.shape[1] - q.shape[1]
        place = behind + torch.arange(q.shape[1], device=q.device)[:, None] - torch.arange(k.shape[1], device=q.device)
        mask = place >= 0 if window_size[0] < 0 else (place >= 0) & (place <= window_size[0])
        found.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa))
    return torch.cat(found, 1).transpose(0, 1)


def trees() -> list[Batch]:
    """Rows that share nothing, a preface and more, and that begin within one another."""
    preface, stem = (1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11)
    ends = [(3, 3), (4,), (12, 1, 2, 3), (5, 5, 5), (0, 1)]
    alike = [(5, 5), (*preface, 9, 9), *((*preface, *stem, *end) for end in ends)]
    rows = [Encoded(ids, tuple(at > 0 for at in range(len(ids))), 1, row) for row, ids in enumerate(alike)]
    made = [collate_shared(some_rows()), collate_shared(rows), collate_shared(rows[:1])]
    assert isinstance(made[1].layout, Tree) and len(made[1].layout.path(len(made[1].layout.lengths) - 1)) == 3
    return made


@pytest.mark.parametrize("family", SPECS)
def test_one_call_is_what_bunches_are(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """E1: losses and gradients."""
    for batch in trees():
        found = []
        for kernel in (None, by_hand):
            with monkeypatch.context() as patch:
                if kernel is not None:
                    patch.setattr("instil.model.segments.kernel", lambda: by_hand)
                    patch.setattr("instil.model.attention.suits", lambda q_NHW: True)
                model = decoder(family)
                loss = nll_sum(model, batch)
                loss.backward()  # type: ignore[no-untyped-call]
            gradients = [one.grad for one in model.parameters() if one.grad is not None]
            found.append([loss.detach(), *gradients])
        assert_e1(found[1], found[0])


def test_on_a_gpu_in_bfloat16_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []

    def kernel(*args: Any, **how: Any) -> Tensor:
        asked.append(args[0].dtype)
        return by_hand(*args, **how)

    monkeypatch.setattr("instil.model.segments.kernel", lambda: kernel)
    monkeypatch.setattr("instil.model.segments.WIDEST", 6)
    monkeypatch.setattr("instil.model.segments.STEP", 6)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    segments._able.cache_clear()
    batch = trees()[1]
    wanted = nll_sum(decoder().float(), batch)
    with PretendedGpu() as gpu:
        model = to_gpu(decoder().float())
        there = batch.to(model.device)
        nll_sum(model, there)
        assert not asked  # in float32 bunches are computed
        with torch.autocast("cuda", torch.bfloat16):
            loss = nll_sum(model, there)
            loss.backward()  # type: ignore[no-untyped-call]
        assert asked == [torch.bfloat16] * model.spec.layers
        assert not gpu.waits
        assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=0.02)
    segments._able.cache_clear()


@pytest.mark.parametrize(
    ("width", "kind", "capability", "suits"),
    [(64, torch.bfloat16, (9, 0), True), (64, torch.float32, (9, 0), False), (60, torch.bfloat16, (9, 0), False),
     (512, torch.bfloat16, (9, 0), False), (64, torch.float16, (7, 5), False)],
)  # fmt: skip
def test_whom_it_suits(
    width: int, kind: torch.dtype, capability: tuple[int, int], suits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    segments._able.cache_clear()
    with PretendedGpu() as gpu:
        q = torch.zeros(3, 2, width, dtype=kind, device="cuda")
        assert segments.suits(q) == suits
    assert not segments.suits(torch.zeros(3, 2, width, dtype=kind))
    assert not gpu.waits
    segments._able.cache_clear()


def test_torch_has_the_kernel_by_this_name() -> None:
    assert segments.kernel() is not None
