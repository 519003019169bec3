"""``instil run --budget``: a first verdict in the time there is, what it leaves out, and the way to the whole."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from instil.errors import SettingsError
from instil.recipes.plan.timing import TimedAnswers, TimedSteps
from instil.recipes.plan.work import Pace, Work
from instil.recipes.run import first as module
from instil.recipes.run.first import END, SPARED, first_verdict, seconds_of
from instil.runs.folder import RunFolder
from instil.screen import Screen
from instil.settings.resolve import resolve
from tests.conftest import rows
from tests.processes import instil as command

QUIET = Screen(quiet=True)
CHOSEN = ["data.template=plain", "generate.max_new_tokens=40", "keep.measure=false", "train.epochs=4"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows(300)))
    return path


def slow(patch: pytest.MonkeyPatch, step: float, token: float) -> None:
    """A machine on which a step and a token of an answer take so long."""
    work = Work(1, 100)
    timed = TimedSteps([(work, step)] * 3, 0, measured=True)
    patch.setattr(module, "time_steps", lambda *args, **how: timed)
    patch.setattr(module, "time_answers", lambda *args: TimedAnswers(Pace(0.0, token), 0, 100))
    patch.setattr(module, "time_evaluation", lambda *args: Pace(0.0, 0.0))


def test_so_much_is_done_as_fits_and_the_rest_is_named(
    file: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, step=1.0, token=0.01)
    found = first_verdict(file, tiny_folder, tmp_path / "run", resolve(assignments=CHOSEN), 40.0, screen=QUIET)
    assert found is not None
    folder = RunFolder(tmp_path / "run-first")
    settings = folder.read_settings()["settings"]
    steps, answered = settings["train"]["max_steps"], settings["generate"]["max_rows"]
    left = (40.0 - END) * SPARED
    assert 0.5 * left - 2 <= steps <= 0.85 * left  # a half for steps, and what answers leave
    assert 8 <= answered < 30
    assert settings["data"]["max_train_samples"] == min(255, round(steps * 255 / 32))
    held_out = folder.held_out_rows()
    assert held_out is not None and len(held_out) == answered
    assert f"{30 - answered} of 30 held-out rows" in found.left_out
    assert f"{4 * 32 - steps} of 128 steps" in found.left_out
    assert found.run.verdict in found.lines()[0]
    assert not (tmp_path / "run").exists()


def test_the_same_once_more_goes_on_to_the_whole(
    file: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, step=1.0, token=0.01)
    ask: dict[str, Any] = {"budget": 20.0, "screen": QUIET}
    out, chosen = tmp_path / "run", resolve(assignments=CHOSEN)
    assert first_verdict(file, tiny_folder, out, chosen, **ask) is not None
    assert first_verdict(file, tiny_folder, out, chosen, **ask) is None
    other = resolve(assignments=[*CHOSEN, "train.learning_rate=0.01"])
    assert first_verdict(file, tiny_folder, out, other, **ask) is not None  # a verdict on something else is none
    assert first_verdict(file, tiny_folder, out, other, again=True, **ask) is not None


def test_what_fits_whole_is_made_whole(
    file: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, step=0.001, token=1e-6)
    found = first_verdict(file, tiny_folder, tmp_path / "run", resolve(assignments=CHOSEN), 60.0, screen=QUIET)
    assert found is None
    assert not (tmp_path / "run-first").exists()


def test_what_does_not_fit_at_all_is_refused_with_what_it_takes(
    file: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, step=100.0, token=0.01)
    with pytest.raises(SettingsError, match="nothing fits into the time: 8 answers before and after one step take 2:"):
        first_verdict(file, tiny_folder, tmp_path / "run", resolve(assignments=CHOSEN), 30.0, screen=QUIET)
    assert not (tmp_path / "run-first").exists()


def test_looks_at_validation_rows_take_time_too(
    file: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    for a_pass in (0.0, 2.0):
        slow(monkeypatch, step=1.0, token=0.01)
        monkeypatch.setattr(module, "time_evaluation", lambda *args, pace=a_pass: Pace(pace, 0.0))
        out = tmp_path / f"run{a_pass}"
        first_verdict(file, tiny_folder, out, resolve(assignments=CHOSEN), 40.0, screen=QUIET)
        at = out.with_name(f"{out.name}-first")
        steps.append(RunFolder(at).read_settings()["settings"]["train"]["max_steps"])
    assert steps[1] <= steps[0] - 2


def test_time_that_is_gone_already_is_not_spent_again(
    file: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, step=1.0, token=0.01)
    chosen = resolve(assignments=CHOSEN)
    steps = []
    for gone in (0.0, 15.0):
        since = time.perf_counter() - gone
        out = tmp_path / f"run{gone}"
        first_verdict(file, tiny_folder, out, chosen, 40.0, since=since, screen=QUIET)
        at = out.with_name(f"{out.name}-first")
        steps.append(RunFolder(at).read_settings()["settings"]["train"]["max_steps"])
    assert steps[1] <= steps[0] - 4


@pytest.mark.parametrize("given", ["", "s", "-5s", "0", "x", "nan", "inf", "5d"])
def test_a_time_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(SettingsError, match="wanted a time"):
        seconds_of(given)


def test_the_command_gives_a_verdict_and_then_the_whole(file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """With real timing: the model is so small that all of it fits, so a first verdict is not needed."""
    how = [f"--set={one}" for one in (*CHOSEN, "train.epochs=1", "train.max_steps=3")]
    made = command("run", file, "-m", tiny_folder, "-o", tmp_path / "run", "--budget", "10m", *how)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "run" / "verdict.json").is_file()
    for words, said in ((["--budget", "x"], "wanted a time"), (["--budget", "9s", "--resume"], "leave --resume")):
        wrong = command("run", file, "-m", tiny_folder, "-o", tmp_path / "other", *words, *how)
        assert wrong.returncode == 2
        assert said in wrong.stderr
        assert not (tmp_path / "other").exists()


def test_the_command_shows_a_first_verdict(
    file: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from typer.testing import CliRunner

    from instil.cli import app

    slow(monkeypatch, step=1.0, token=0.01)
    how = [f"--set={one}" for one in CHOSEN]
    ask = ["run", str(file), "-m", str(tiny_folder), "-o", str(tmp_path / "run"), "--budget", "20s", *how]
    shown = CliRunner().invoke(app, ask)
    assert shown.exit_code == 0, shown.output
    assert "first verdict after" in shown.output and "left out: " in shown.output
    assert "the same command goes on to the whole run" in shown.output
