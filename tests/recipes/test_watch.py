"""A run that is watched from outside: what its files say of it, and when watching ends."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from instil.cli import app, live
from instil.errors import InstilError, UserError
from instil.recipes.watch import end, follow, lines, progress
from instil.runs import following
from instil.runs.folder import RunFolder
from instil.runs.following import Following, Picture
from instil.runs.listing import QUIET
from instil.runs.processes import _began
from tests.runs.test_listing import begun, line
from tests.runs.test_status import written

SAMPLES = [
    {
        "step": step,
        "row": row,
        "instruction": f"Name {row}.",
        "input": "x",
        "output": "y",
        "model_response": f"{step} {row}",
    }
    for step in (0, 4)
    for row in (7, 8)
]


def training(path: Path, steps: int = 4) -> RunFolder:
    run = begun(path, steps)
    run.samples.write_text("".join(json.dumps(one) + "\n" for one in SAMPLES))
    return run


def said(*words: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["watch", *map(str, words)], env={"NO_COLOR": "1"})
    if isinstance(done.exception, InstilError):
        return done.exception.exit_code, done.stdout, str(done.exception)
    return done.exit_code, done.stdout, done.stderr


def test_what_the_files_of_a_training_say(tmp_path: Path) -> None:
    run = training(tmp_path / "one")
    with run.metrics.open("a") as file:
        file.write(line(5, train=2.5, val=2.9))
    picture = follow(run.path).look()
    about = picture.about
    assert (picture.state, about.step, about.steps, about.train_loss, about.val_loss) == ("running", 5, 20, 2.5, 2.9)
    assert (picture.stage, picture.running) == ("training", True)
    assert picture.curve.val == [(0, 3.0), (5, 2.9)]
    assert [(one.step, one.asked, one.says, one.wanted) for one in picture.samples] == [
        (4, "Name 7. x", "4 7", "y"), (4, "Name 8. x", "4 8", "y"),
    ]  # fmt: skip


def test_speed_and_time_left_are_those_of_the_last_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "RECENT", 2)
    run = begun(tmp_path / "one", steps=0)
    seconds = [0.0, 10.0, 20.0, 21.0, 22.0]  # the first steps were slow
    written = [json.loads(line(step)) | {"seconds": at} for step, at in enumerate(seconds)]
    run.metrics.write_text("".join(json.dumps(one) + "\n" for one in written))
    picture = follow(run.path).look()
    assert (picture.tokens_per_second, picture.seconds_left) == (100.0, 16.0)
    assert progress(picture).endswith("100 tokens/s  0:16 left of training")


def test_only_what_is_new_is_read_and_a_run_that_goes_back_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training(tmp_path / "one")
    watch, starts = follow(run.path), []
    real = following.new_records
    monkeypatch.setattr(following, "new_records", lambda file, start: starts.append(start) or real(file, start))
    watch.look()
    before = run.metrics.stat().st_size
    with run.metrics.open("a") as file:
        file.write(line(5, train=2.0))
    assert watch.look().about.step == 5
    assert starts == [0, before]
    # Training goes on from a checkpoint of step 2, and is past where it was before anybody looks again.
    text = run.metrics.read_text().splitlines(keepends=True)
    again = [line(step, train=1.0) for step in range(3, 9)]
    run.metrics.write_text("".join([*text[:3], *again]))
    picture = watch.look()
    assert picture.about.step == 8
    assert [loss for _, loss in picture.curve.train] == pytest.approx([2.9, 2.8, *[1.0] * 6])
    run.metrics.write_text(line(0, val=4.0))  # begun anew
    assert watch.look().curve.train == []


def test_what_is_damaged_or_not_there_yet_is_passed_over(tmp_path: Path) -> None:
    run = training(tmp_path / "one")
    with run.samples.open("ab") as file:
        file.write(b'{"step": 9}\n{"step": 1e999, "model_response": ""}\n[1]\n\xff\n{"step"')
    with run.metrics.open("a") as file:
        file.write("{}\n" + line(5, train=float("nan")) + line(6)[:9])
    picture = follow(run.path).look()
    assert (picture.about.step, picture.about.train_loss) == (5, 2.6)
    assert [one.step for one in picture.samples] == [4, 4]
    json.dumps(picture.as_json(), allow_nan=False)
    run.metrics.unlink()
    run.samples.unlink()
    picture = follow(run.path).look()
    assert (picture.last, picture.samples, picture.stage) == (None, (), "before training")
    assert progress(picture) == "before training"


def test_after_the_last_step_a_run_still_answers(tmp_path: Path) -> None:
    run = begun(tmp_path / "one", steps=20)
    picture = follow(run.path).look()
    assert (picture.stage, picture.seconds_left) == ("after training", None)


def test_watching_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, looks = training(tmp_path / "one"), 0

    def goes_on(self: live.Stop, seconds: float) -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:
            with run.metrics.open("a") as file:
                file.write(line(5, train=2.0, val=2.2))
        if looks == 2:
            run.write_json("report.json", {})
        return False

    monkeypatch.setattr(live.Stop, "wait", goes_on)
    code, out, _ = said(run.path)
    assert code == 0
    told = out.splitlines()
    assert told[0] == "training"
    assert told[1].startswith("step 4/20  epoch 0.40  train 2.600  validation 3.000")
    assert told[2:4] == ["    asked: Name 7. x", "    says:  4 7"]
    assert told[4].startswith("step 5/20  epoch 0.50  train 2.000  validation 2.200")
    assert told[-1].startswith(f"{run.path}: finished")
    assert looks == 2


def test_a_stopped_run_is_told_at_once_and_how_it_goes_on(tmp_path: Path) -> None:
    run = training(tmp_path / "one")
    for file in run.path.iterdir():
        os.utime(file, (time.time() - QUIET - 5,) * 2)
    code, out, _ = said(run.path)
    assert code == 0
    assert out.splitlines()[-1] == f"{run.path}: stopped; the same command with --resume goes on"


def test_why_a_run_ended_is_told(tmp_path: Path) -> None:
    """Also of a process that was killed while somebody watched, which no file says."""
    run = training(tmp_path / "one")
    written(run.path, state="failed", why="step 5: the loss is nan")
    assert said(run.path)[1].splitlines()[-1] == (
        f"{run.path}: failed, step 5: the loss is nan; the same command with --resume goes on"
    )
    written(run.path, state="finished", why="the loss was not lower")
    assert said(run.path, "--once")[1].splitlines()[-1].startswith(f"{run.path}: finished, the loss was not lower")
    with subprocess.Popen(["sleep", "600"]) as process:
        written(run.path, pid=process.pid, began=_began(process.pid))
        watch = follow(run.path)
        assert (watch.look().state, watch.look().about.why) == ("running", "")
        process.kill()
    assert end(watch.look()) == (
        f"{run.path}: stopped, process {process.pid} on {platform.node()} is gone and had not ended it; "
        "the same command with --resume goes on"
    )


@pytest.mark.parametrize("how", ["removed", "moved", "emptied", "a file"])
def test_a_run_that_is_gone_is_told_so(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not how it goes on."""
    run = training(tmp_path / "one")

    def goes(self: live.Stop, seconds: float) -> bool:
        run.path.rename(tmp_path / "elsewhere")
        if how == "removed":
            shutil.rmtree(tmp_path / "elsewhere")
        if how == "emptied":
            run.path.mkdir()
        if how == "a file":
            run.path.touch()
        return False

    monkeypatch.setattr(live.Stop, "wait", goes)
    code, out, _ = said(run.path)
    assert code == 0
    assert out.splitlines()[-1] == f"{run.path}: it is gone; there is no run.toml any more"


def test_ctrl_c_leaves_the_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, before = training(tmp_path / "one"), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(live, "EVERY", 600.0)
    look = Following.look

    def interrupted(self: Following) -> Picture:
        os.kill(os.getpid(), signal.SIGINT)
        return look(self)

    monkeypatch.setattr(Following, "look", interrupted)
    code, out, _ = said(run.path)
    assert signal.getsignal(signal.SIGINT) == before
    assert code == 0
    assert out.splitlines()[-1].startswith(f"{run.path}: running")


def test_once_and_json(tmp_path: Path, plain_run: Path) -> None:
    run = training(tmp_path / "one")
    code, out, _ = said(run.path, "--once")
    assert code == 0
    assert "step 4/20" in out
    assert "says   4 7" in out
    assert "running" in out.splitlines()[0]
    code, out, _ = said(plain_run, "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["state"], told["stage"], told["step"], told["curve"]["train"][-1][0]) == ("finished", "", 2, 2)


@pytest.mark.parametrize("columns", [120, 80, 40])
@pytest.mark.parametrize("rows", [40, 24, 12, 8])
def test_a_picture_keeps_within_its_window(columns: int, rows: int, tmp_path: Path) -> None:
    from rich.console import Console

    run = training(tmp_path / "one", steps=15)
    console = Console(width=columns, height=rows, color_system=None, force_terminal=True)
    with console.capture() as shown:
        console.print(live.drawn(follow(run.path).look(), columns, rows, hint=True))
    drawn = shown.get().rstrip("\n").split("\n")
    assert len(drawn) <= rows
    assert all(len(one) <= columns for one in drawn)
    assert any(one.startswith("step 15/20") for one in drawn)


def test_what_is_no_run_is_refused_with_advice(tmp_path: Path) -> None:
    run = training(tmp_path / "runs" / "first")
    with pytest.raises(UserError, match=r"fist: there is no such folder; did you mean .*runs/first\?"):
        follow(tmp_path / "runs" / "fist")
    with pytest.raises(UserError, match=r"holds 1 run; name one, such as .*runs/first"):
        follow(tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no run.toml in it, so it is not a run folder"):
        follow(tmp_path / "empty")
    assert isinstance(follow(run.path), Following)


def test_lines_are_said_now_and_then_without_a_validation(tmp_path: Path) -> None:
    run = begun(tmp_path / "one", steps=2)
    watch = follow(run.path)

    def looks() -> list[Picture]:
        found = [watch.look()]
        for step in range(3, 15):
            with run.metrics.open("a") as file:
                file.write(line(step, train=2.0))
            found.append(watch.look())
        return found

    told = [one for one in lines(iter(looks())) if one.startswith("step")]
    assert [one.split()[1] for one in told] == ["2/20", "12/20"]
