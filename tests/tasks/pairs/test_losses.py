"""Preference losses as functions: their values and slopes by hand, and what is told beside them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import instil
from instil.cli.options import chosen_settings
from instil.data.loader import Loader
from instil.errors import SettingsError
from instil.settings.losses import LOSSES, PreferenceLoss
from instil.settings.options import DpoOptions
from instil.settings.resolve import idle, resolve
from instil.tasks.pairs.batches import PairCollator, collate_pairs
from instil.tasks.pairs.encoding import scored_within, with_others
from instil.tasks.pairs.losses import (
    Answers,
    Preference,
    answers_of,
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    reference_log_probs,
    simpo_loss,
)
from instil.train.losses import log_probs
from instil.train.metrics import read_metrics
from instil.train.objective import look
from tests.parity.test_pair_layouts import pair
from tests.tasks.pairs.test_preferences import pairs
from tests.train.test_training import decoder

CHOSEN, REJECTED, OLD_CHOSEN, OLD_REJECTED = -3.0, -4.5, -3.5, -4.2


def answers() -> Answers:
    return Answers(*(torch.tensor([one], dtype=torch.float64) for one in (CHOSEN, REJECTED, OLD_CHOSEN, OLD_REJECTED)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values_by_hand() -> None:
    margin = (CHOSEN - OLD_CHOSEN) - (REJECTED - OLD_REJECTED)
    assert margin == pytest.approx(0.8)
    assert dpo_loss(answers(), DpoOptions(beta=0.5)).item() == pytest.approx(-math.log(sigmoid(0.4)))
    smoothed = -0.9 * math.log(sigmoid(0.4)) - 0.1 * math.log(sigmoid(-0.4))
    assert dpo_loss(answers(), DpoOptions(beta=0.5, label_smoothing=0.1)).item() == pytest.approx(smoothed)
    assert ipo_loss(answers(), DpoOptions(beta=0.25)).item() == pytest.approx((0.8 - 2.0) ** 2)
    assert simpo_loss(answers(), DpoOptions(beta=2.0, gamma=0.5)).item() == pytest.approx(
        -math.log(sigmoid(2 * 1.5 - 0.5))
    )
    odds = [math.log(math.exp(x) / (1 - math.exp(x))) for x in (CHOSEN, REJECTED)]
    assert orpo_loss(answers(), DpoOptions(beta=0.3)).item() == pytest.approx(
        -0.3 * math.log(sigmoid(odds[0] - odds[1]))
    )
    moved = replace(answers(), distance=torch.tensor(0.2, dtype=torch.float64))
    options = DpoOptions(beta=0.5, desirable=1.5, undesirable=0.5)
    wanted = (1.5 * (1 - sigmoid(0.5 * (0.5 - 0.2))) + 0.5 * (1 - sigmoid(0.5 * (0.2 + 0.3)))) / 2
    assert kto_loss(moved, options).item() == pytest.approx(wanted)


@pytest.mark.parametrize("chosen", [-1e-9, -0.3, -0.7, -80.0, -2000.0])
def test_odds_have_no_end(chosen: float) -> None:
    """Answers that are nearly certain or hopeless have a loss and a slope that are numbers."""
    value = torch.tensor([chosen], dtype=torch.float64, requires_grad=True)
    fixed = torch.tensor([-1.0], dtype=torch.float64)
    loss = orpo_loss(Answers(value, fixed, fixed, fixed), DpoOptions(beta=1.0))
    loss.sum().backward()
    assert math.isfinite(loss.item())
    assert value.grad is not None
    assert math.isfinite(value.grad.item())


def test_metrics_say_how_far_the_model_has_moved() -> None:
    rows = [pair((1, 2, n), (3, 4), (3, 7, n), n) for n in range(3)]
    model = decoder("llama")
    reference = reference_log_probs(model, collate_pairs(rows))
    batch = collate_pairs([replace(one, reference=found) for one, found in zip(rows, reference, strict=True)])
    objective = Preference(DpoOptions(beta=0.5))
    loss, before = look(objective, model, [batch])
    assert loss.mean == pytest.approx(math.log(2), rel=1e-8)  # the reference is kept in float32
    assert (before["margin"], before["kl"]) == pytest.approx((0.0, 0.0), abs=1e-6)
    with torch.no_grad():
        model.embed.weight.add_(
            0.05 * torch.randn(model.embed.weight.shape, generator=torch.Generator().manual_seed(1))
        )
    _, after = look(objective, model, [batch])
    assert after["kl"] > 0
    assert after["margin"] == pytest.approx(after["chosen_reward"] - after["rejected_reward"])
    moved = [
        sum(new) - sum(old)
        for (new, _), (old, _) in zip(reference_log_probs(model, collate_pairs(rows)), reference, strict=True)
    ]
    assert after["chosen_reward"] == pytest.approx(0.5 * sum(moved) / 3, rel=1e-5)
    _, unscaled = look(Preference(DpoOptions(beta=0.5, scored="book")), model, [batch])
    assert unscaled["margin"] == pytest.approx(2 * after["margin"])


def test_the_answers_of_others_stand_after_the_own_prompt() -> None:
    first, second = with_others([pair((1, 2), (3, 4), (5,)), pair((6,), (7,), (8, 9, 10), 1)])
    assert first.other is not None
    assert second.other is not None
    assert (first.other.chosen.ids, first.other.rejected.ids) == ((1, 2, 7), (1, 2, 8, 9, 10))
    assert (second.other.chosen.ids, second.other.rejected.ids) == ((6, 3, 4), (6, 5))
    assert scored_within(first.other, 99) == (1, 3)
    assert first.other.row == 0


def test_a_loader_knows_the_ids_of_the_answers_of_others() -> None:
    """Of an untied embedding only the rows of these ids are there while it is trained."""
    rows = with_others([pair((1, 2), (3, 4), (5,), 0), pair((1, 2, 6), (7,), (8, 9), 1)])[:1]  # the second is left out
    loader = Loader(rows, 1, pad_id=0, collator=PairCollator)
    read = {id_ for batch in loader.batches() for id_ in (*batch.ids_N.tolist(), *batch.others.ids_N.tolist())}
    assert read <= set(loader.ids())
    assert {3, 4, 5, 7, 8, 9} <= set(loader.ids())


@pytest.mark.parametrize("moved", [-10.0, 0.0])
def test_distance_and_answers_are_measured_alike(moved: float) -> None:
    """KTO's z is a mean over tokens where answers are, and never below nought (as where the reference is likelier)."""
    model = decoder("llama")
    rows = [pair((1, 2, n), (3, 4, 6, n), (3, 7, n), n) for n in range(3)]
    batch = collate_pairs(with_others(rows))  # a reference of zeros: ratios are the log-probabilities
    assert batch.others is not None
    others = replace(batch.others, reference_M=torch.full_like(batch.others.reference_M, moved))
    batch = replace(batch, reference_M=torch.full_like(batch.reference_M, moved), others=others)
    options = DpoOptions(loss="kto", beta=0.3, reduction="mean")
    with torch.no_grad():
        ratio = answers_of(others, log_probs(model, others), mean=True)
        z = torch.cat([ratio.chosen_ratio_P, ratio.rejected_ratio_P]).mean()
        assert (z > 0) == (moved < 0)
        own = answers_of(batch, log_probs(model, batch), mean=True)
        wanted = kto_loss(replace(own, distance=z if z > 0 else torch.zeros_like(z)), options).mean()
    assert look(Preference(options), model, [batch])[0].mean == pytest.approx(float(wanted), rel=1e-9)


def hinge(answers: Answers, options: DpoOptions) -> torch.Tensor:
    """SLiC-HF's calibration loss (arXiv 2305.10425, eq. 2), which the package does not have."""
    return (options.beta - (answers.chosen_P - answers.rejected_P)).clamp_min(0)


def test_a_loss_is_a_line_and_a_function(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the package has never heard of is refused, and with its line in the table it is trained with."""
    chosen: dict[str, Any] = {"objective": "dpo", "loss": "hinge", "max_steps": 3, "learning_rate": 1e-2}
    with pytest.raises(SettingsError, match=r"dpo\.loss='hinge': should be 'dpo', 'ipo', 'simpo', 'orpo' or 'kto'"):
        resolve(values=chosen)
    line = PreferenceLoss(hinge, "a hinge", of="mean", reference=False, own=("gamma",), defaults={"beta": 40.0})
    monkeypatch.setitem(LOSSES, "hinge", line)
    settings = chosen_settings(["train.max_steps=3", "train.learning_rate=0.01"], None, methods=["hinge"])
    assert settings == resolve(values=chosen)
    assert settings.dpo.beta == 40.0
    assert idle(resolve(values={**chosen, "gamma": 2.0})) == []
    (said,) = idle(resolve(values={"objective": "dpo", "gamma": 2.0}))
    assert said.startswith("dpo.gamma (for simpo and hinge) has no effect with dpo.loss=dpo")
    run = instil.finetune(pairs(20), model=tiny_folder, out=tmp_path / "run", **chosen)
    steps = [one for one in read_metrics(run.path / "metrics.jsonl") if one.step]
    for record in steps:  # far from the hinge, the loss is what is left to it
        told = record.metrics
        assert told is not None
        assert record.train_loss == pytest.approx(40.0 - told["chosen_logp"] + told["rejected_logp"], rel=1e-5)
        assert "kl" not in told
    first, last = steps[0].train_loss, steps[-1].train_loss
    assert first is not None
    assert last is not None
    assert last < first
