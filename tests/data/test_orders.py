"""Orders of rows and steps of a budget of tokens: every row leaves exactly once in an epoch, and a seed says when."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instil.data import budget, permutation
from instil.data.budget import TokenBudget
from instil.data.lengths import lengths_of
from instil.data.loader import Loader
from instil.data.permutation import BORDER, Feistel, drawn_by, shuffled
from instil.data.subset import Lazy, Subset, chosen
from instil.model.decoder import Decoder
from instil.records import Encoded
from instil.settings.options import TrainOptions
from instil.train.loop import train
from instil.train.losses import nll_sum
from instil.train.schedule import planned_steps
from tests.train.test_training import SPECS


def rows_of(lengths: list[int]) -> list[Encoded]:
    """Rows of so many positions, each a target, that begin alike."""
    return [
        Encoded((1, *(2 + (row + at) % 12 for at in range(length))), (False, *(True,) * length), row=row)
        for row, length in enumerate(lengths)
    ]


@settings(max_examples=60)
@given(count=st.integers(0, 400), seed=st.integers(0, 2**50))
def test_a_computed_order_is_a_permutation(count: int, seed: int) -> None:
    order = Feistel(count, seed)
    assert sorted(order) == list(range(count))
    assert order[:] == list(order) == [order[at] for at in range(count)]
    assert order[3:20:2] == list(order)[3:20:2]
    with pytest.raises(IndexError):
        order[count]


def test_a_computed_order_looks_drawn() -> None:
    """Neighbours are as far apart as those of numbers drawn, whatever the seed; the first and last move, too."""
    count = 100_000
    first, other = (np.array(Feistel(count, seed)[:]) for seed in (1, 2))
    at = np.arange(count)
    assert (first == other).sum() < 20
    assert (first == at).sum() < 20
    for one, two in (
        (first, other),
        (first, at),
        (first[1:], first[:-1]),
        (first % 7, at % 7),
        (first % 317, at % 317),
    ):
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.02
    assert abs(np.abs(np.diff(first)).mean() / count - 1 / 3) < 0.01


def test_few_rows_have_the_order_that_they_always_had() -> None:
    """Results of earlier runs hang on it: torch's, seeded by seed and epoch; from 2**20 rows on it is computed."""
    loader = Loader(rows_of([3] * 20), 4, pad_id=0, seed=7)
    generator = torch.Generator().manual_seed(7 * 1_000_003 + 2)
    assert loader.order(2) == torch.randperm(20, generator=generator).tolist()
    assert BORDER == 2**20
    assert isinstance(shuffled(BORDER, 1), Feistel)
    assert isinstance(shuffled(BORDER - 1, 1), list)
    assert (drawn_by(BORDER - 1), drawn_by(BORDER)) == ("randperm", "feistel-6")
    assert Feistel(BORDER, 123)[:5] == [412401, 817084, 293040, 82849, 392322]


class Endless(Lazy[Encoded]):
    """As many rows as you like, none of which is held."""

    def __init__(self, count: int) -> None:
        self.count, self.made = count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, at: int) -> Encoded:  # type: ignore[override]
        self.made += 1
        return Encoded((1, 2, at % 50), (False, True, True), row=at)


def test_the_order_of_millions_is_drawn_without_looking_at_them() -> None:
    rows = Endless(5_000_000)
    loader = Loader(rows, 8, pad_id=0, seed=3)
    steps = loader.steps(epoch=1, start=600_000)
    seen = [row for _ in range(3) for batch in next(steps) for row in batch.examples]
    assert seen == list(loader.order(1)[600_000 * 8 : 600_003 * 8])
    assert rows.made == 24
    assert len(loader.sizes()) == 2000


@settings(max_examples=150)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    tokens=st.integers(1, 100),
    window=st.integers(1, 30),
    seed=st.integers(0, 100),
    padded=st.booleans(),
    computed=st.booleans(),
    shuffle=st.booleans(),
)
def test_every_row_leaves_exactly_once(
    lengths: list[int], tokens: int, window: int, seed: int, padded: bool, computed: bool, shuffle: bool
) -> None:
    """Within the budget, or alone; the same number of steps in every epoch, other orders, and from any step on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "WINDOW", window)
        patch.setattr(budget, "STEPS_OF_A_WINDOW", 0)
        patch.setattr(permutation, "BORDER", 1 if computed else BORDER)
        made = TokenBudget(np.array(lengths, np.int32), tokens, seed, padded=padded, shuffle=shuffle)
        again = TokenBudget(np.array(lengths, np.int32), tokens, seed, padded=padded, shuffle=shuffle)
        shapes = []
        for epoch in range(3):
            steps = [made.rows(epoch, step).tolist() for step in range(len(made))]
            assert Counter(row for step in steps for row in step) == Counter(range(len(lengths)))
            for step in steps:
                cost = [lengths[row] for row in step]
                assert len(step) == 1 or (len(cost) * max(cost) if padded else sum(cost)) <= tokens
            assert [again.rows(epoch, step).tolist() for step in reversed(range(len(made)))] == steps[::-1]
            shapes.append(sorted(sorted(lengths[row] for row in step) for step in steps))
        assert shapes[0] == shapes[1] == shapes[2]
        assert sorted(made.over_long.tolist()) == [row for row, length in enumerate(lengths) if length > tokens]


def test_rows_of_like_length_stand_together_and_fill_their_steps() -> None:
    draw = np.random.default_rng(0)
    lengths = np.minimum(draw.geometric(1 / 120, 20_000) + 20, 1000).astype(np.int32)
    made = TokenBudget(lengths, 8192, 1, padded=True)
    steps = [lengths[made.rows(0, step)] for step in range(len(made))]
    computed = sum(len(step) * int(step.max()) for step in steps)
    assert lengths.sum() / computed > 0.97  # of what is computed is no padding
    assert np.mean([len(step) * int(step.max()) for step in steps]) > 0.93 * 8192
    first, second = ([made.rows(epoch, step).tolist() for step in range(len(made))] for epoch in (0, 1))
    assert {tuple(sorted(step)) for step in first} != {
        tuple(sorted(step)) for step in second
    }  # rows have others beside
    longest = [int(step.max()) for step in steps]
    assert abs(np.corrcoef(longest[1:], longest[:-1])[0, 1]) < 0.2  # the order of the steps is not that of lengths
    assert (
        lengths[made.heaviest_rows()].max() == lengths.max()
        or len(made.heaviest_rows()) * lengths[made.heaviest_rows()].max() >= lengths.max()
    )


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_losses_and_gradients_are_those_of_the_same_rows_batched_otherwise(layout: str, micro_batch: int) -> None:
    """E1 in float64: a step of a budget against its rows one by one."""
    torch.manual_seed(0)
    decoder = Decoder(SPECS["llama"]).double()
    loader = Loader(
        rows_of([3, 9, 4, 5, 15, 4, 3]),
        1,
        pad_id=0,
        batch_tokens=12,
        micro_batch=micro_batch,
        layout=layout,  # type: ignore[arg-type]
    )
    for step in range(len(loader)):
        found = []
        for batches in (loader.step(step), [loader.collate([loader.rows[at]]) for at in loader.rows_of(0, step)]):
            decoder.zero_grad()
            total = sum((nll_sum(decoder, batch) for batch in batches), torch.zeros((), dtype=torch.float64))
            count = sum(batch.trained_tokens for batch in batches)
            (total / count).backward()
            found.append(
                (float(total.detach()), count, [p.grad.clone() for p in decoder.parameters() if p.grad is not None])
            )
        (loss, count, gradients), (other, other_count, others) = found
        assert count == other_count
        assert loss == pytest.approx(other, rel=1e-12)
        for one, two in zip(gradients, others, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)


def test_training_takes_the_steps_of_its_budget() -> None:
    loader = Loader(rows_of([3, 9, 4, 5, 15, 4, 3] * 3), 1, pad_id=0, batch_tokens=12)
    options = TrainOptions(epochs=2, eval_every=0)
    result = train(Decoder(SPECS["llama"]), loader, options)
    assert result.steps == planned_steps(len(loader), options) == 2 * len(loader)
    assert result.tokens_seen == 2 * sum([3, 9, 4, 5, 15, 4, 3] * 3)
    heaviest = loader.longest()
    assert sum(batch.layout.tokens_of_rows for batch in heaviest) == 15


def test_views_of_rows() -> None:
    rows = Endless(10)
    part = Subset(rows, range(2, 8))
    assert [row.row for row in part] == [2, 3, 4, 5, 6, 7]
    assert [row.row for row in part[1:3]] == [3, 4]
    assert [row.row for row in part.subset(np.array([5, 0]))] == [7, 2]
    assert part[-1].row == 7
    assert isinstance(chosen(rows, range(3)), Subset)
    assert chosen(("a", "b", "c"), np.array([2, 0])) == ("c", "a")


@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=12), max_size=8),
    st.integers(1, 14),
)
def test_lengths_as_columns(masks: list[list[bool]], max_length: int) -> None:
    rows = [Encoded(tuple(range(len(mask))), tuple(mask), row=10 + at) for at, mask in enumerate(masks)]
    lengths = lengths_of(rows)
    assert lengths.has_target_R(max_length).tolist() == [any(row.trained[1 : max_length + 1]) for row in rows]
    assert lengths.trained_R(max_length).tolist() == [sum(row.trained[1 : max_length + 1]) for row in rows]
    assert lengths.cut_R(max_length).tolist() == [len(row.ids) - 1 > max_length for row in rows]
    assert lengths.row_R.tolist() == [row.row for row in rows]
