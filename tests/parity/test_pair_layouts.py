"""Pairs: the forked layout, the padded one, and row by row; losses and gradients in float64 for every family (E1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instil.data import tree
from instil.data.loader import Loader
from instil.layouts import Tree
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.lora import add_lora
from instil.records import Encoded, EncodedPair
from instil.settings.options import DpoOptions
from instil.tasks.pairs.batches import PairCollator, collate_pairs
from instil.tasks.pairs.encoding import with_others
from instil.tasks.pairs.losses import Preference, answers_of
from instil.train import head_loss
from instil.train.losses import log_probs
from instil.train.objective import look
from instil.train.optimizer import AdamWInBackward
from tests.closeness import assert_e1
from tests.train.test_training import SPECS, decoder

CLOSE = {"rtol": 1e-11, "atol": 1e-12}
IDS = st.lists(st.integers(0, 16), min_size=1, max_size=5)
LOSSES = ["dpo", "ipo", "simpo", "orpo", "kto"]


@pytest.fixture(autouse=True, scope="module")
def every_beginning() -> Iterator[None]:
    """What these few tokens have in common is set together, which would not be worth it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "WORTH", 1)
        yield


def pair(prompt: Any, chosen: Any, rejected: Any, row: int = 0) -> EncodedPair:
    """A pair whose answers are scored and trained on."""
    first = len(prompt)
    rows = [
        Encoded((*prompt, *answer), (False,) * first + (True,) * len(answer), first, row)
        for answer in (chosen, rejected)
    ]
    return EncodedPair(*rows, *(range(first, len(one.ids)) for one in rows))  # type: ignore[arg-type]


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[EncodedPair], int | None]:
    """Pairs whose prompts begin alike or not, and whose answers do or are equal; and a limit or none."""
    common = draw(st.lists(st.integers(0, 16), max_size=4))
    pairs = []
    for row in range(draw(st.integers(1, 4))):
        begun = draw(st.lists(st.integers(0, 16), max_size=3))
        answers = [(*begun, *draw(IDS)) for _ in range(2)]
        pairs.append(pair((*common, *draw(IDS)), *answers, row))
    longest = max(len(one.chosen.ids[: one.chosen.prompt_length]) for one in pairs)
    return pairs, draw(st.none() | st.integers(longest, longest + 4))


def one_by_one(model: Decoder, pairs: list[EncodedPair], limit: int | None) -> Tensor:
    """Sums of log-probabilities of each row's answer, [2 P], from all scores of the row alone."""
    sums = []
    for one in pairs:
        for row in (one.chosen, one.rejected):
            count = min(len(row.ids) - 1, limit or len(row.ids))
            scores_TV = torch.log_softmax(model.logits(model(batch_of_ids(torch.tensor([row.ids[:count]])))), -1)
            places = range(row.prompt_length - 1, count)
            sums.append(sum(scores_TV[at, row.ids[at + 1]] for at in places))
    return torch.stack(sums)  # type: ignore[arg-type]


def gradients(model: Decoder, value: Tensor) -> list[Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(value, trained, allow_unused=True)
    return [
        torch.zeros_like(p) if grad is None else grad.detach().clone() for p, grad in zip(trained, found, strict=True)
    ]


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", SPECS)
@settings(max_examples=15, deadline=None)
@given(batches())
def test_three_ways_to_one_loss(family: str, adapted: bool, given_pairs: Any) -> None:
    pairs, limit = given_pairs
    model = decoder(family)
    if adapted:
        add_lora(model, rank=2, targets=("all", "head"))
        for name, parameter in model.named_parameters():
            if "lora_b" in name:  # zero at first, which would hide mistakes
                torch.nn.init.normal_(parameter, std=0.1)
    factors = torch.arange(1.0, 2 * len(pairs) + 1, dtype=torch.float64)
    wanted = one_by_one(model, pairs, limit)
    wanted_gradients = gradients(model, (wanted * factors).sum())
    for layout in ("shared", "padded"):
        batch = collate_pairs(pairs, 0, limit, layout)  # type: ignore[arg-type]
        answers = answers_of(batch, log_probs(model, batch))
        found = torch.stack([answers.chosen_P, answers.rejected_P], 1).flatten()
        torch.testing.assert_close(found, wanted, **CLOSE)
        assert_e1(gradients(model, (found * factors).sum()), wanted_gradients)
        with torch.inference_mode():
            torch.testing.assert_close(log_probs(model, batch), log_probs(model, batch.to("cpu")), **CLOSE)


def test_the_forked_layout_in_small() -> None:
    first, second = pair((1, 2, 3), (4, 5, 6), (4, 7)), pair((1, 2, 8), (9, 3), (9, 9), 1)
    batch = collate_pairs([first, second])
    assert batch.layout == Tree((-1, 0, 0, 1, 1, 2, 2), (2, 1, 1, 2, 1, 1, 1), rows=4)
    assert batch.ids_N.tolist() == [1, 2, 3, 8, 4, 5, 4, 9, 9]
    assert batch.positions_N.tolist() == [0, 1, 2, 2, 3, 4, 3, 3, 3]
    assert batch.real_tokens == collate_pairs([first, second], layout="padded").real_tokens
    assert (batch.pairs, batch.trained_tokens) == (2, 5)
    assert len(batch.ids_N) < len(collate_pairs([first, second], layout="padded").ids_N)


@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_are_one_big_batch(loss: str) -> None:
    """E1: with a likelihood term, whose count is another, and with KTO's distance, which is of the whole step."""
    from instil.train.step import take_step as _step
    from tests.train.test_training import Kept

    rows = [pair((1, 2, n), (3, 4 + n, 5)[: 2 + n % 2], (3, 7, n, 1)[: 1 + n], n) for n in range(1, 4)]
    rows = with_others(rows) if loss == "kto" else rows
    objective = Preference(DpoOptions(loss=loss, beta=0.4, nll=0.3))  # type: ignore[arg-type]
    model = decoder("llama")
    found = []
    for micro in (3, 1, 2):
        (step,) = Loader(rows, 3, pad_id=0, shuffle=False, micro_batch=micro, collator=PairCollator).steps()
        updates: AdamWInBackward = Kept(model.parameters(), weight_decay=0.0)
        summed, _, metrics = _step(model, step, updates, objective, "fp32")
        updates.close()
        found.append((summed.mean, metrics, [updates.gradients[p] for p in model.parameters()]))  # type: ignore[attr-defined]
    for mean, metrics, grads in found[1:]:
        assert mean == pytest.approx(found[0][0], rel=1e-12)
        assert metrics == pytest.approx(found[0][1], rel=1e-9)
        assert_e1(grads, found[0][2])


@pytest.mark.parametrize("adapted", [False, True])
def test_scores_in_pieces_are_scores_at_once(monkeypatch: pytest.MonkeyPatch, adapted: bool) -> None:
    rows = [pair((1, 2, 3), (4, 5, 6), (7, 8)), pair((1, 2), (9, 3, 3, 1), (9, 9), 1)]
    batch = collate_pairs(rows)
    model = decoder("gpt2")
    if adapted:
        add_lora(model, rank=2, targets=("all", "head"))
    found = []
    for most in (1 << 29, 1):  # one row at a time
        for limit in ("LARGEST_SCORES", "CHEAP_SCORES"):
            monkeypatch.setattr(head_loss, limit, most)
        values = log_probs(model, batch)
        with torch.inference_mode():
            torch.testing.assert_close(log_probs(model, batch), values.detach(), **CLOSE)
        found.append((values.detach(), gradients(model, (values**2).sum())))
    torch.testing.assert_close(found[0], found[1], **CLOSE)


def test_a_loader_counts_what_it_makes() -> None:
    rows = [pair((1, 2, n), (3,) * (1 + n % 3), (3, 7, n), n) for n in range(9)]
    for layout in ("shared", "padded"):
        loader = Loader(rows, 4, pad_id=0, layout=layout, micro_batch=3, max_length=4, collator=PairCollator)  # type: ignore[arg-type]
        made = [[len(batch.ids_N) for batch in step] for step in loader.steps()]
        assert made == loader.sizes()
    assert loader.ids() == sorted({0, 1, 2, 3, 7, *range(9)})
    assert sorted(row for step in loader.steps() for batch in step for row in batch.examples) == list(range(9))


def test_answers_of_other_rows_count_a_third() -> None:
    """They are only looked at: no backward, which is two thirds of a step."""
    rows = with_others([pair((1, 2, n), (3,) * (1 + n % 3), (3, 7, n), n) for n in range(6)])
    for layout in ("shared", "padded"):
        collate = PairCollator(0, 5, layout)  # type: ignore[arg-type]
        batch = collate(rows)
        others = [side for row in rows if row.other for side in (row.other.chosen, row.other.rejected)]
        looked_at = sum(min(len(side.ids) - 1, 5) for side in others)
        assert looked_at > 10
        assert collate.positions(rows) == batch.layout.tokens + looked_at // 3


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(ValueError, match="something to score"):
        collate_pairs([pair((1, 2, 3, 4), (5,), (6,))], max_length=3)
    with pytest.raises(ValueError, match="at least one pair"):
        collate_pairs([])


def test_evaluation_is_a_mean_over_pairs() -> None:
    rows = [pair((1, 2, n), (3, 4)[: 1 + n % 2], (3, 7, n), n) for n in range(5)]
    model = decoder("qwen3")
    objective = Preference(DpoOptions(loss="simpo", beta=2.0))
    whole, one = look(objective, model, [collate_pairs(rows)])
    parts, other = look(objective, model, [collate_pairs(rows[:2]), collate_pairs(rows[2:])])
    assert whole.tokens == parts.tokens == 5
    assert whole.mean == pytest.approx(parts.mean, rel=1e-12)
    assert one == pytest.approx(other, rel=1e-12)
