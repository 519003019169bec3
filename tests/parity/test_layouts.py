"""Shared = padded = row by row: losses and gradients in float64, for every family and any rows (E1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instil.batches import Batch
from instil.data import tree
from instil.data.collate import collate, collate_shared
from instil.data.loader import Loader
from instil.layouts import Tree
from instil.model.decoder import Decoder, batch_of_ids
from instil.records import Encoded
from instil.train import head_loss
from instil.train.losses import nll_sum
from tests.closeness import assert_e1
from tests.train.test_training import SPECS, decoder

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
IDS = st.lists(st.integers(0, 16), max_size=7)


@pytest.fixture(autouse=True, scope="module")
def every_beginning() -> Iterator[None]:
    """What these few tokens have in common is set together, which would not be worth it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "WORTH", 1)
        yield


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Encoded], int | None]:
    """Rows that begin alike or not, masks of any kind, and a limit of length or none."""
    beginnings = [draw(IDS)]
    for _ in range(draw(st.integers(0, 2))):  # each goes on with one before it
        beginnings.append([*draw(st.sampled_from(beginnings)), *draw(IDS)])
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        ids = (*draw(st.sampled_from(beginnings)), *draw(IDS))
        ids = ids if len(ids) > 1 else (*ids, 3, 4)
        rows.append(Encoded(ids, tuple(draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))))))
    return rows, draw(st.none() | st.integers(1, 14))


def row_by_row(model: Decoder, rows: Sequence[Encoded], max_length: int | None) -> Tensor:
    """The loss as a text would write it: a row at a time, every position scored, torch's own cross-entropy."""
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        count = min(len(row.ids) - 1, max_length or len(row.ids))
        logits_TV = model.logits(model(batch_of_ids(torch.tensor([row.ids[:count]]))))
        targets = [id_ if trained else -100 for id_, trained in zip(row.ids, row.trained, strict=True)]
        total = total + F.cross_entropy(logits_TV, torch.tensor(targets[1 : count + 1]), reduction="sum")
    return total


def with_gradients(model: Decoder, loss: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("family", SPECS)
@settings(max_examples=25, deadline=None)
@given(batches())
def test_three_ways_to_one_loss(family: str, given_rows: tuple[list[Encoded], int | None]) -> None:
    rows, limit = given_rows
    model = decoder(family)
    wanted = with_gradients(model, row_by_row(model, rows, limit))
    for batch in (collate(rows, 0, limit), collate_shared(rows, limit)):
        assert_e1(with_gradients(model, nll_sum(model, batch)), wanted)


@pytest.mark.parametrize("family", SPECS)
@settings(max_examples=10, deadline=None)
@given(batches())
def test_counts_are_those_of_the_padded_batch(family: str, given_rows: tuple[list[Encoded], int | None]) -> None:
    del family
    rows, limit = given_rows
    padded, shared = collate(rows, 0, limit), collate_shared(rows, limit)
    assert shared.trained_tokens == padded.trained_tokens
    assert shared.real_tokens == padded.real_tokens
    assert len(shared.ids_N) <= len(padded.ids_N)


def encoded(*ids: int) -> Encoded:
    return Encoded(ids, (True,) * len(ids))


@pytest.mark.parametrize(
    ("rows", "layout"),
    [
        ([encoded(1, 2, 3, 4), encoded(1, 2, 3, 5), encoded(1, 2, 6)], Tree((-1, 0, 1, 1, 0), (1, 1, 1, 1, 1), rows=3)),
        ([encoded(1, 2, 3), encoded(4, 2, 3)], Tree.of([2, 2])),  # nothing in common
        ([encoded(1, 2, 3, 4)], Tree.of([3])),  # a batch of one has nothing to share
        ([encoded(1, 2, 3, 4)] * 3, Tree.of([1, 1, 1], prefix=2)),  # equal rows
        (
            [encoded(1, 2, 3, 4, 5, 6), encoded(1, 2, 3, 4, 5, 7, 8)],
            Tree.of([1, 2], prefix=4),
        ),  # prefix longer than the rest
    ],
)
def test_what_is_shared(rows: list[Encoded], layout: Tree) -> None:
    assert collate_shared(rows).layout == layout


LONG = tuple(range(20, 60))


@pytest.mark.parametrize(
    ("ends", "layout"),
    [
        # two prompts that begin alike, one of them with two rows: 15 tokens that would be saved are not worth it
        (((1, 2), (*LONG[:15], 1, 2), (*LONG[:15], 3, 4)), Tree.of([1, 16, 16], prefix=2)),
        (((1, 2), (*LONG[:16], 1, 2), (*LONG[:16], 3, 4)), Tree((-1, 0, 0, 1, 1), (2, 16, 1, 1, 1), rows=3)),
        # three rows save it twice; and what is not worth it by itself belongs to what comes after
        (((1, 2), *((*LONG[:8], n, n) for n in (1, 2, 3))), Tree((-1, 0, 0, 1, 1, 1), (2, 8, 1, 1, 1, 1), rows=4)),
        (
            ((1, 2), (5, 5, 3, 9), (5, 5, *LONG, 1), (5, 5, *LONG, 2, 2)),
            Tree((-1, 0, 0, 0, 1, 1), (2, 41, 1, 3, 1, 2), rows=4),
        ),
        # conversations, each longer by a turn, and one that is all of another's beginning
        (
            (LONG[:20], LONG, (*LONG, 7, 7), (*LONG, 8, 8)),
            Tree((-1, 0, 0, 1, 1, 1), (20, 20, 1, 1, 3, 3), rows=4),
        ),
    ],
)
def test_what_is_worth_being_set_together(
    ends: Sequence[Sequence[int]], layout: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "WORTH", 16)
    rows = [encoded(9, 9, *end) for end in ends]
    assert collate_shared(rows).layout == layout


def test_the_preamble_counts_once_for_each_row_and_ends_in_a_target_each() -> None:
    batch = collate_shared([encoded(1, 2, 3, 4), encoded(1, 2, 5, 6)])
    assert list(zip(batch.at_S.tolist(), batch.targets_S.tolist(), batch.weights_S.tolist(), strict=True)) == [
        (0, 2, 2.0), (1, 3, 1.0), (2, 4, 1.0), (1, 5, 1.0), (3, 6, 1.0),
    ]  # fmt: skip


def test_a_shared_batch_has_no_rectangle() -> None:
    with pytest.raises(TypeError, match="no rectangle"):
        _ = collate_shared([encoded(1, 2, 3), encoded(1, 2, 4)]).inputs


@pytest.mark.parametrize("family", SPECS)
def test_scores_in_chunks_are_the_scores(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where scores are too many to be kept, the loss goes chunk by chunk to the same gradients."""
    model = decoder(family)
    batch = collate_shared([encoded(1, 2, 3, 4, 5), encoded(1, 2, 3, 6, 7, 8), encoded(1, 2, 9)])
    wanted = with_gradients(model, nll_sum(model, batch))
    for limit in ("LARGEST_SCORES", "CHEAP_SCORES"):
        monkeypatch.setattr(head_loss, limit, 3 * 17 * 8)
    assert_e1(with_gradients(model, nll_sum(model, batch)), wanted)
    with torch.no_grad():
        torch.testing.assert_close(nll_sum(model, batch), wanted[0], **CLOSE)


def test_a_tied_table_used_in_two_passes_before_either_goes_back() -> None:
    """As in preference tuning: two forward passes, one backward; no gradient is lost or counted twice."""
    model = decoder("gpt2")
    one, two = (collate_shared([encoded(*ids), encoded(1, 2, 9)]) for ids in ((1, 2, 3, 4), (1, 2, 5, 6, 7)))
    separate = [a + b for a, b in zip(*(with_gradients(model, nll_sum(model, x)) for x in (one, two)), strict=True)]
    together = with_gradients(model, nll_sum(model, one) + nll_sum(model, two))
    torch.testing.assert_close(together, separate, **CLOSE)


def logged(layout: str, epochs: int = 2) -> list[float]:
    """The losses of 20 steps in float32."""
    from instil.settings.options import TrainOptions
    from instil.train.loop import train

    generator = torch.Generator().manual_seed(5)
    rows = [
        encoded(1, 2, 3, 4, *torch.randint(0, 17, (length,), generator=generator).tolist())
        for length in (3, 9, 5, 11, 2, 7, 8, 4, 6, 10) * 4
    ]
    model = decoder("llama").float()
    loader = Loader(rows, 4, pad_id=0, layout=layout)  # type: ignore[arg-type]
    result = train(model, loader, TrainOptions(epochs=epochs, batch_size=4, learning_rate=1e-3))
    return [record.train_loss for record in result.records if record.train_loss is not None]


def test_twenty_steps_log_the_same_losses() -> None:
    shared, padded = logged("shared"), logged("padded")
    assert len(shared) == 20
    assert shared == pytest.approx(padded, rel=1e-4)
    assert shared[-1] < shared[0]


def test_batches_of_a_loader_share_unless_told_otherwise() -> None:
    rows = [encoded(1, 2, 3, 4), encoded(1, 2, 5, 6)]

    def layouts(**options: str) -> list[Batch]:
        return list(Loader(rows, 2, pad_id=0, **options).batches())  # type: ignore[arg-type]

    assert isinstance(layouts()[0].layout, Tree)
    assert not isinstance(layouts(layout="padded")[0].layout, Tree)


def test_bf16_is_close_and_keeps_weights_in_float32() -> None:
    """Not exact, and so named; products are narrow, and what is added up and updated is not."""
    from instil.model.fast.gemm import precision_for
    from instil.settings.options import TrainOptions
    from instil.train.loop import train

    losses = {}
    for precision in ("fp32", "bf16", "auto"):
        model = decoder("llama").float()
        rows = [encoded(1, 2, 3, 4, 5 + i % 7, 6) for i in range(24)]
        options = TrainOptions(epochs=2, batch_size=4, learning_rate=3e-3, precision=precision)  # type: ignore[arg-type]
        records = train(model, Loader(rows, 4, pad_id=0), options).records
        losses[precision] = [record.train_loss for record in records[1:]]
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]
    assert losses["auto"] == losses[precision_for("auto", "cpu")]


@pytest.mark.parametrize("part", ["blocks", "norm", "positions"])
def test_a_backward_that_ends_before_the_embedding_leaves_nothing_behind(part: str) -> None:
    model = decoder("gpt2")
    loss = nll_sum(model, collate_shared([encoded(1, 2, 3, 4), encoded(1, 2, 5, 6)]))
    table = [model.embed.weight]
    (wanted,) = torch.autograd.grad(loss, table, retain_graph=True)
    some = [parameter for name, parameter in model.named_parameters() if name.startswith(part)]
    torch.autograd.grad(loss, some, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, table)[0], wanted, **CLOSE)
