"""A run that was killed goes on to the same end with the same command, or says why it cannot."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from instil.errors import RunFolderTaken, SettingsError
from instil.model.fast import gemm
from instil.recipes.run import run as job
from instil.recipes.run.run import Run, run
from instil.runs.checkpoints import TENSORS, Disk
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.train import training
from tests.conftest import rows
from tests.kills.left import left_by

pytestmark = pytest.mark.usefixtures("one_backend")

USUAL = {"max_steps": 9, "eval_every": 3, "max_new_tokens": 3, "save_every": "2", "max_length": 64}
PAIRS = [{**row, "chosen": row["output"], "rejected": "I do not know."} for row in rows(30)]
TRAININGS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"method": "lora", "lora": {"rank": 2}, "micro_batch": 3},
    "nf4": {"method": "lora", "lora": {"rank": 2, "base": "nf4"}},
    "patience": {"patience": 2, "eval_every": 1, "learning_rate": 0.05, "schedule": "constant"},
    "book": {"order": "book", "evaluation": "book", "layout": "padded"},
    "dpo": {"objective": "dpo", "method": "lora", "lora": {"rank": 2}},
}


SLOW = pytest.mark.slow


class Killed(BaseException):
    """The process is gone."""


def kill_in_step(patch: pytest.MonkeyPatch, number: int) -> None:
    """Die in the middle of a step, counted from 1."""
    step, taken = training._step, 0

    def dies(*given: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == number:
            raise Killed
        return step(*given)

    patch.setattr(training, "_step", dies)


def tuned(folder: Path, out: Path, data: Path | None = None, **how: Any) -> Run:
    options = {key: how.pop(key) for key in ("resume", "answers", "screen") if key in how}
    rows_or_file = data or (PAIRS if how.get("objective") == "dpo" else rows(30))
    settings = resolve(values=USUAL | how)
    return run(rows_or_file, folder, out, settings, **{"answers": False, "screen": Screen(quiet=True)} | options)


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """What runs leave that were never killed."""
    made: dict[str, dict[str, Any]] = {}

    def of(name: str, **more: Any) -> dict[str, Any]:
        if name not in made:
            out = tmp_path_factory.mktemp("whole") / "run"
            tuned(tiny_folder, out, **TRAININGS[name], **more)
            made[name] = left_by(out)
        return made[name]

    return of


@pytest.mark.parametrize("name", [name if name == "full" else pytest.param(name, marks=SLOW) for name in TRAININGS])
def test_a_killed_training_ends_as_one_that_was_not(
    name: str, tiny_folder: Path, tmp_path: Path, whole: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in_step(patch, 4)
        tuned(tiny_folder, out, **TRAININGS[name])
    assert [one.name for one in (out / "checkpoints").glob("step-*")] == ["step-000000002"]
    assert (out / "metrics.jsonl").read_text().count("\n") == 4
    with (out / "samples.jsonl").open("a") as file:
        file.write('{"step": 3, "row"')  # torn off
    with monkeypatch.context() as patch:
        kill_in_step(patch, 99)
        began = gemm.backend()
        patch.setattr(
            gemm, "_gain", lambda: 0.1 if began == "onednn" else 9.0
        )  # the next process would choose otherwise
        patch.delenv("INSTIL_GEMM", raising=False)
        gemm._before = ""
        gemm.backend.cache_clear()
        found = tuned(tiny_folder, out, resume=True, **TRAININGS[name])
        assert gemm.backend() != began  # what comes after that run multiplies as it likes
    gemm.use_again(began)  # as all of these runs
    assert found.steps == whole(name)["metrics.jsonl"][-1]["step"]
    assert left_by(out) == whole(name)
    assert not list((out / "checkpoints").iterdir())


def test_without_a_checkpoint_it_begins_anew_and_without_a_run_it_begins(
    tiny_folder: Path, tmp_path: Path, whole: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in_step(patch, 1)
        tuned(tiny_folder, out, resume=True)
    tuned(tiny_folder, out, resume=True)
    assert left_by(out) == whole("full")
    with pytest.raises(RunFolderTaken, match="is finished, so there is nothing to go on with"):
        tuned(tiny_folder, out, resume=True)


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_taken(
    tiny_folder: Path,
    tmp_path: Path,
    whole: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in_step(patch, 6)
        tuned(tiny_folder, out)
    with (out / "checkpoints" / "step-000000004" / TENSORS).open("r+b") as file:
        file.seek(5000)
        file.write(b"!")
    tuned(tiny_folder, out, resume=True, screen=Screen())
    said = " ".join("".join(capfd.readouterr()).split())
    assert "left aside:" in said
    assert "its bytes are not those that were written" in said
    assert "taken up at step 2 of 9: the loss of its next step is as it was" in said
    assert left_by(out) == whole("full")


def test_another_run_is_refused_with_the_difference(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in_step(patch, 4)
        tuned(tiny_folder, out)
    before = left_by(out)
    with pytest.raises(SettingsError, match=r"another run, .*train\.learning_rate is 0\.0001, now 0\.5\. Give it the"):
        tuned(tiny_folder, out, resume=True, learning_rate=0.5)
    with pytest.raises(SettingsError, match="another data"):
        run(rows(29), tiny_folder, out, resolve(values=USUAL), resume=True, answers=False, screen=Screen(quiet=True))
    with pytest.raises(SettingsError, match=r"data\.template is"):
        tuned(tiny_folder, out, resume=True, template="phi3")
    with pytest.raises(RunFolderTaken, match="was not finished; add --resume to go on"):
        tuned(tiny_folder, out)
    assert left_by(out) == before
    monkeypatch.setattr(training, "_step", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        tuned(tiny_folder, out, resume=True, save_every="0")  # how often it is saved may change


@SLOW
def test_a_run_with_answers_goes_on_before_and_after_training(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(tiny_folder, tmp_path / "whole", answers=True)
    for where in ("_answer_before", "after"):
        out = tmp_path / where

        def dies(self: object, *_: object) -> None:
            raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(job.HeldOutAnswers, where, dies)
            tuned(tiny_folder, out, answers=True)
        taken = 0 if where == "_answer_before" else 9
        with monkeypatch.context() as patch:
            kill_in_step(patch, 99 if not taken else 1)  # after training, no step is taken again
            tuned(tiny_folder, out, answers=True, resume=True)
        assert left_by(out) == left_by(tmp_path / "whole"), where


def test_a_full_disk_does_not_end_a_training(
    tiny_folder: Path,
    tmp_path: Path,
    whole: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Disk, "write", full)
    tuned(tiny_folder, tmp_path / "run", screen=Screen())
    assert "the checkpoint cannot be written: No space left on device" in " ".join("".join(capfd.readouterr()).split())
    assert left_by(tmp_path / "run") == whole("full")


def test_resume_and_overwrite_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from instil.cli import main

    monkeypatch.setattr(sys, "argv", ["instil", "train", "--out", str(tmp_path / "run"), "--resume", "--overwrite"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--overwrite replaces the run that --resume goes on with" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@SLOW
@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_process_that_is_killed_again_and_again(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    """SIGKILL at moments that nobody chose; the same command until it ends."""
    data, out = tmp_path / "rows.json", tmp_path / "run"
    data.write_text(json.dumps(rows(30)))
    config = tmp_path / "settings.toml"
    config.write_text(tomli_w.dumps(resolve(values=USUAL | TRAININGS[name]).model_dump()))
    command = [sys.executable, "-m", "instil.cli", "train", str(data), "--model", str(tiny_folder), "--out", str(out)]
    drawn, kills = random.Random(name), 0
    alike = {**os.environ, "INSTIL_GEMM": gemm.backend()}  # as the run that this one is compared with
    for _ in range(40):
        with subprocess.Popen(
            [*command, "--config", str(config), "--resume"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=alike,
        ) as process:
            begun = time.monotonic()
            written = out / "metrics.jsonl"
            before = written.stat().st_mtime if written.exists() else 0.0
            while process.poll() is None and kills < 5 and time.monotonic() - begun < 60:
                time.sleep(0.01)
                if written.exists() and written.stat().st_mtime > before:  # it trains
                    time.sleep(drawn.random() * 0.4)
                    process.kill()
                    kills += 1
                    break
            said = process.communicate(timeout=120)[1].decode()
        if process.returncode == 0:
            break
        assert process.returncode == -9, said
    assert process.returncode == 0
    assert kills >= 2
    tuned(tiny_folder, tmp_path / "whole", data, **TRAININGS[name])  # of the same file, which run.toml names
    assert left_by(out) == left_by(tmp_path / "whole")
