"""Early stopping: it stops when it said it would, and what remains is the best model, not the last."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import instil
from instil.errors import SettingsError, TrainingDiverged
from instil.model.decoder import Decoder
from instil.model.load import load_decoder
from instil.recipes.run.run import run
from instil.runs.folder import RunFolder
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.tasks.prepare import load, prepare
from instil.tasks.task import loader_for
from instil.train import training
from instil.train.evaluation import Evaluation, HeldOut
from instil.train.losses import held_out_loss
from instil.train.metrics import read_metrics
from tests.conftest import rows


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_best_model_remains(tiny_folder: Path, tmp_path: Path, method: str) -> None:
    rate = {"full": 0.08, "lora": 0.05}[method]  # beyond that adapters are merged with rounding that is told of
    how = {"method": method, "learning_rate": rate, "epochs": 30, "eval_every": 2, "patience": 2}
    more = {"schedule": "constant", "max_new_tokens": 2}
    run = instil.finetune(rows(40), model=tiny_folder, out=tmp_path / "run", **how, **more)
    records = [one for one in read_metrics(run.path / "metrics.jsonl") if one.val_loss is not None]
    losses = [one.val_loss for one in records if one.step]
    best = min(losses)
    assert run.validation_loss == best
    assert losses[-1] != best  # it went on for two validations, and then no further
    assert losses.index(best) == len(losses) - 3
    assert run.steps == records[-1].step < 150
    prepared = prepare(rows(40), run.path / "model", resolve(values=how | more))
    held_out = loader_for(prepared, "validation")
    assert held_out is not None
    found = held_out_loss(load(prepared), [batch for step in held_out.steps() for batch in step])
    assert found.mean == pytest.approx(best, rel=1e-4)
    assert not list((run.path / "checkpoints").iterdir())


def test_without_patience_the_last_model_remains(tiny_folder: Path, tmp_path: Path) -> None:
    run = instil.finetune(rows(30), model=tiny_folder, out=tmp_path / "run", max_steps=3, max_new_tokens=2)
    records = read_metrics(run.path / "metrics.jsonl")
    assert run.validation_loss == records[-1].val_loss
    assert run.steps == 3


@pytest.mark.slow
def test_what_gets_better_is_not_stopped_and_ends_as_it_would_without(tiny_folder: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 6, "eval_every": 2, "learning_rate": 1e-3, "max_new_tokens": 2}
    models = []
    for patience in (0, 3):
        run = instil.finetune(rows(30), model=tiny_folder, out=tmp_path / str(patience), patience=patience, **settings)
        assert run.steps == 6
        models.append(load_decoder(RunFolder(run.path).model))
        assert json.loads((run.path / "report.json").read_text())["steps"] == 6
    assert torch.equal(models[0].embed.weight, models[1].embed.weight)


def test_without_a_validation_to_look_at_patience_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    how = {"evaluation": "book", "eval_every": 0, "patience": 2}
    with pytest.raises(SettingsError, match="patience looks at the validation loss"):
        instil.finetune(rows(20), model=tiny_folder, out=tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()


def test_the_model_as_it_ends_is_looked_at_too(tiny_folder: Path, tmp_path: Path) -> None:
    run = instil.finetune(
        rows(40), model=tiny_folder, out=tmp_path / "run", evaluation="book", eval_every=5, eval_batches=5, patience=3,
        max_steps=9, learning_rate=1e-3, max_new_tokens=2,
    )  # fmt: skip
    evaluated = [one.val_loss for one in read_metrics(run.path / "metrics.jsonl") if one.val_loss is not None]
    assert run.validation_loss is not None
    assert run.validation_loss < min(evaluated)  # step 9 is better than step 6, the last with a record


def test_nothing_is_left_behind_when_training_fails(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="Nothing was saved"):
        instil.finetune(
            rows(40), model=tiny_folder, out=tmp_path / "run", learning_rate=1e9, warmup=0.5, patience=9, eval_every=9,
            max_steps=12,
        )  # fmt: skip
    left = {one.name for one in (tmp_path / "run" / "checkpoints").iterdir()}
    assert left <= {
        "kept.journal",
        ".kept.journal.lock",
    }  # for --resume


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("when", ["loss", "validation", "end"])
def test_the_best_model_remains_where_training_diverges(
    tiny_folder: Path, tmp_path: Path, method: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a step's loss, at a validation, or after the last update, which nothing but the end looks at."""
    how = {"method": method, "learning_rate": 1e-3, "eval_every": 2, "patience": 9, "max_steps": 5, "max_new_tokens": 2}
    spoiled = 4 if when == "validation" else 5
    before, done = training._step, 0

    def spoils(decoder: Decoder, *rest: object) -> object:
        nonlocal done
        done += 1
        trained = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
        if when == "loss" and done == spoiled:
            trained[-1].data.fill_(float("nan"))
        found = before(decoder, *rest)  # type: ignore[arg-type]
        if when != "loss" and done == spoiled:
            trained[-1].data.fill_(float("nan"))
        return found

    look = HeldOut.__call__

    def blind(self: HeldOut, decoder: Decoder) -> Evaluation:
        return look(self, decoder) if done < spoiled else Evaluation(99.0)

    monkeypatch.setattr(training, "_step", spoils)
    if when == "end":
        monkeypatch.setattr(HeldOut, "__call__", blind)
        monkeypatch.setattr(HeldOut, "due", lambda self, step, ends_epoch: step in (2, 4))
    run = instil.finetune(rows(40), model=tiny_folder, out=tmp_path / "run", **how)
    facts = json.loads((run.path / "report.json").read_text())
    kept = 2 if when == "validation" else 4
    assert facts["best_step"] == kept
    assert facts["diverged"].startswith(f"step {spoiled}: the ")
    assert f"The model of step {kept} is kept. Lower train.learning_rate" in facts["diverged"]
    assert "diverged at step" in (run.path / "report.html").read_text()
    losses = {one.step: one.val_loss for one in read_metrics(run.path / "metrics.jsonl")}
    assert run.validation_loss == losses[kept]
    assert all(torch.isfinite(parameter).all() for parameter in load_decoder(run.path / "model").parameters())
    assert not list((run.path / "checkpoints").iterdir())


def test_a_model_that_learnt_nothing_is_not_kept_where_training_diverges(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([10.5, 12.0, math.nan])
    monkeypatch.setattr(HeldOut, "__call__", lambda self, decoder: Evaluation(next(losses)))
    how = {"eval_every": 1, "patience": 9, "max_steps": 6, "max_new_tokens": 2}
    with pytest.raises(
        TrainingDiverged, match=r"learnt nothing: .* 12\.000, above 10\.500 before training; it was not"
    ):
        instil.finetune(rows(40), model=tiny_folder, out=tmp_path / "run", **how)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(("patience", "rate", "warned"), [(0, 5.0, True), (2, 5.0, True), (0, 1e-3, False)])
def test_a_loss_that_ends_above_its_beginning_is_told(
    tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], patience: int, rate: float, warned: bool
) -> None:
    how = {"learning_rate": rate, "eval_every": 1, "patience": patience, "max_steps": 4, "max_new_tokens": 2}
    prepared_rows, settings = rows(40), resolve(values=how)
    run(prepared_rows, tiny_folder, tmp_path / "run", settings=settings, screen=Screen())
    said = " ".join("".join(capfd.readouterr()).split())
    assert ("before training; lower train.learning_rate" in said) == warned
