"""The loggers that there are, with their real libraries where these are installed."""

from __future__ import annotations

import os
import sqlite3
import time
from importlib import metadata
from pathlib import Path

import pytest

from instil.runs.loggers.libraries import LOGGERS, MLflow, Trackio, _without
from instil.runs.loggers.logger import About, Aside

FACTS = {"train.seed": 1, "train.clip": 0.0, "lora.dora": False, "model": "tiny"}


def told(name: str, folder: Path, steps: range, after: int | None = None, *, online: bool = False) -> str:
    """What went wrong when a logger was told of some steps, on a thread of its own as it always is."""
    about = About("mine", "0123456789abcdef", folder / "logs", "colours", online, FACTS, after)
    aside = Aside(name, LOGGERS[name]())
    aside.ask(lambda logger: logger.begin(about))
    for step in steps:
        aside.ask(lambda logger, step=step: logger.log(step, {"train/loss": 1 / step}))  # type: ignore[misc]
    aside.close(lambda logger: logger.end(finished=True))
    assert aside.ended(time.monotonic() + 300)
    return aside.problem


def there(name: str) -> None:
    """Skip where a library is not installed."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")


def test_tensorboard_reads_the_losses_and_passes_over_those_of_a_training_that_was_taken_up(tmp_path: Path) -> None:
    there("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert told("tensorboard", tmp_path, range(1, 6)) == ""
    assert told("tensorboard", tmp_path, range(4, 7), after=3) == ""
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    events.Reload()
    found = events.Scalars("train/loss")
    assert [(one.step, one.value) for one in found] == [(step, pytest.approx(1 / step)) for step in range(1, 7)]
    assert "settings/text_summary" in events.Tags()["tensors"]


def test_mlflow_has_one_run_of_a_training_that_was_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://elsewhere.example")  # which is not asked
    assert told("mlflow", tmp_path, range(1, 6)) == ""
    assert told("mlflow", tmp_path, range(4, 7), after=3) == ""
    with sqlite3.connect(tmp_path / "logs" / "mlflow.db") as base:
        assert base.execute("select name, status from runs").fetchall() == [("mine", "FINISHED")]
        assert base.execute("select name from experiments where name != 'Default'").fetchall() == [("colours",)]
        steps = base.execute("select step from metrics where key = 'train/loss'").fetchall()
        assert sorted(step for (step,) in steps) == [1, 2, 3, 4, 4, 5, 5, 6]
        assert dict(base.execute("select key, value from params"))["train.seed"] == "1"
        assert base.execute("select value from tags where key = ?", [MLflow.KEY]).fetchall() == [("0123456789abcdef",)]


def test_wandb_writes_offline_runs(tmp_path: Path) -> None:
    there("wandb")
    assert told("wandb", tmp_path, range(1, 4)) == ""
    (run,) = (tmp_path / "logs" / "wandb").glob("offline-run-*-0123456789abcdef/*.wandb")
    assert run.stat().st_size


def test_wandb_online_without_a_key_fails_and_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    assert "no API key; set WANDB_API_KEY, or call wandb login" in told("wandb", tmp_path, range(1, 2), online=True)


def test_trackio_writes_to_its_own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there("trackio")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/elsewhere")  # which is not asked
    assert told("trackio", tmp_path, range(1, 4)) == ""


def test_what_sends_runs_elsewhere_is_put_aside_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/elsewhere")
    monkeypatch.delenv("TRACKIO_SERVER_URL", raising=False)
    with _without(Trackio.ELSEWHERE):
        assert "TRACKIO_SPACE_ID" not in os.environ
    assert os.environ["TRACKIO_SPACE_ID"] == "somebody/elsewhere"
    assert "TRACKIO_SERVER_URL" not in os.environ
