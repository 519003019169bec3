"""A mode, never a copy: a further task is a file of its own, and trains without a word of it in the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instil.recipes.run.run import run
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.train.metrics import read_metrics
from tests.tasks.toy import Texts

TEXTS = [{"text": f"The gardener number {n} waters {2 * n} crimson rhododendrons."} for n in range(40)]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_third_task_makes_a_whole_run(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    values = {"learning_rate": 5e-2, "epochs": 2, "max_new_tokens": 3, "eval_every": 5, "method": method}
    settings = resolve(values=values)
    task = Texts(settings)
    done = run(TEXTS, tiny_folder, tmp_path / "run", settings, task=task, screen=Screen())
    records = read_metrics(done.path / "metrics.jsonl")
    first, last = records[0], records[-1]
    assert first.val_loss is not None
    assert last.val_loss is not None
    assert last.val_loss < first.val_loss - 0.2
    assert last.metrics is not None
    assert 0 < last.metrics["rare"] < 1
    assert task.asked_for == ["ready", *(f"step {record.step}" for record in records)]
    told = capsys.readouterr().err
    assert "these are texts" in told
    assert "  rare 0." in told
    assert json.loads((done.path / "split.json").read_text())["train"] == list(range(34))
    assert set(done.scores) == {"base", "tuned", "echo"}
