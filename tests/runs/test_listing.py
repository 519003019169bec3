"""The list of runs: which there are, how far each is, what came of it, and what changes while one trains."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from instil.runs import watching
from instil.runs.folder import RunFolder
from instil.runs.listing import POINTS, QUIET, RunSummary, curve_of, find_runs, new_records, summary_of
from instil.runs.watching import RunWatch, Summaries
from instil.train.metrics import StepRecord

SETTINGS = {
    "data": "/home/somebody/rows.json",
    "model": "smollm2-135m",
    "settings": {"train": {"epochs": 2, "max_steps": 0, "method": "lora", "objective": "sft"}},
    "hashes": {},
}


def line(step: int, *, train: float | None = None, val: float | None = None, epoch: float | None = None) -> str:
    record = StepRecord(step, step / 10 if epoch is None else epoch, 100 * step, train, val, 1e-4, 0.1, 1000.0)
    return json.dumps(record.as_json()) + "\n"


def begun(path: Path, steps: int = 4) -> RunFolder:
    """A run in training: ten steps are an epoch."""
    path.mkdir(parents=True)
    run = RunFolder(path)
    run.write_settings(SETTINGS)
    lines = [line(0, val=3.0), *(line(step, train=3 - step / 10) for step in range(1, steps + 1))]
    run.metrics.write_text("".join(lines))
    return run


def test_runs_are_found_below_a_folder_and_no_link_is_followed(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for name in ("one", "sweep/two", "a/b/three", "a/b/c/too-deep", ".hidden/four"):
        begun(root / name)
    begun(root / "one" / "model" / "within")
    begun(tmp_path / "outside")
    (root / "link").symlink_to(tmp_path / "outside")
    assert set(find_runs(root)) == {"one", "sweep/two", "a/b/three"}
    assert list(find_runs(root / "one")) == ["one"]
    assert find_runs(root / "nowhere") == {}


def test_a_finished_run_says_what_came_of_it(plain_run: Path) -> None:
    said = summary_of("mine", plain_run)
    assert (said.state, said.step, said.steps, said.report, said.problem) == ("finished", 2, 2, True, "")
    assert said.data == "rows.jsonl"
    offline = said.scores[0]
    assert offline.judge == "agreement with the reference"
    assert offline.before is not None
    assert offline.after is not None
    assert offline.outcome == "not distinguishable"
    assert offline.sentence.startswith("after is not distinguishable from before")
    json.dumps(said.as_json(), allow_nan=False)


def test_a_run_in_training_says_how_far_it_is(tmp_path: Path) -> None:
    run = begun(tmp_path / "one")
    said = summary_of("one", run.path)
    assert said == RunSummary(
        "one", "running", "smollm2-135m", "rows.json", "lora", "sft", step=4, steps=20, train_loss=2.6, val_loss=3.0
    )
    for file in run.path.iterdir():
        os.utime(file, (time.time() - QUIET - 5,) * 2)
    assert summary_of("one", run.path).state == "stopped"


def test_a_damaged_run_is_listed_with_what_is_wrong(copied_run: Path) -> None:
    (copied_run / "run.toml").write_text("data = [")
    (copied_run / "scores" / "tuned.offline.jsonl").write_text("{}\n")
    with (copied_run / "metrics.jsonl").open("a") as metrics:
        metrics.write(line(3, train=float("nan")) + "not JSON\n")
    said = summary_of("mine", copied_run)
    assert "run.toml: not valid TOML" in said.problem
    assert "tuned.offline.jsonl: damaged: line 1" in said.problem
    assert str(copied_run) not in said.problem
    assert (said.state, said.step) == ("finished", 3)
    assert said.train_loss is not None
    json.dumps(said.as_json(), allow_nan=False)


def test_a_report_that_is_a_link_out_of_the_run_is_none(tmp_path: Path) -> None:
    run = begun(tmp_path / "one")
    (tmp_path / "secret.html").write_text("secret")
    run.report.symlink_to(tmp_path / "secret.html")
    assert not summary_of("one", run.path).report
    run.metrics.unlink()
    run.metrics.symlink_to(tmp_path / "secret.html")
    assert new_records(run.metrics, 0) == ([], 0)


def test_a_curve_of_many_steps_is_drawn_with_few_points(tmp_path: Path) -> None:
    records = [StepRecord(step, 0.0, 0, 4.0 + step % 2, 1.0 * step, 0.0, 0.0, 0.0) for step in range(5001)]
    curve = curve_of(records)
    assert 0 < len(curve.train) <= POINTS
    assert len(curve.val) <= POINTS + 1
    assert curve.train[-1][0] == curve.val[-1][0] == 5000
    assert all(loss == pytest.approx(4.5, abs=0.1) for _, loss in curve.train)


def test_what_is_half_written_is_left_for_the_next_time(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    whole, half = line(1, train=2.0), line(2, train=1.5)
    file.write_text(whole + half[:40])
    records, end = new_records(file, 0)
    assert ([record.step for record in records], end) == ([1], len(whole))
    file.write_text(whole + half)
    records, end = new_records(file, end)
    assert ([record.step for record in records], end) == ([2], len(whole + half))


def test_changes_are_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_AGAIN", 0.0)
    run = begun(tmp_path / "one")
    watch = RunWatch(lambda: find_runs(tmp_path))
    assert watch.changes() == []
    with run.metrics.open("a") as metrics:
        metrics.write(line(5, train=2.5) + line(6, train=2.4, val=2.3) + line(7)[:10])
        metrics.flush()
        (change,) = watch.changes()
        assert change.as_json() == {
            "kind": "metrics", "name": "one", "step": 6, "train": [(5, 2.5), (6, 2.4)], "val": [(6, 2.3)]
        }  # fmt: skip
        assert watch.changes() == []
        metrics.write(line(7)[10:])
    assert [change.step for change in watch.changes()] == [7]
    begun(tmp_path / "two")
    kinds = [change.as_json() for change in watch.changes()]
    assert [(kind["kind"], kind.get("run", {}).get("name")) for kind in kinds] == [("run", "two"), ("metrics", None)]
    run.write_json("report.json", {})
    (change,) = watch.changes()
    assert change.summary is not None
    assert change.summary.state == "finished"
    shutil.rmtree(run.path)
    assert [change.as_json() for change in watch.changes()] == [{"kind": "gone", "name": "one"}]


def test_a_run_that_was_begun_anew_is_told_from_its_beginning(tmp_path: Path) -> None:
    run = begun(tmp_path / "one", steps=9)
    watch = RunWatch(lambda: find_runs(tmp_path))
    run.metrics.write_text(line(0, val=4.0))
    again, metrics = watch.changes()
    assert again.summary is not None
    assert again.summary.step == 0
    assert metrics.curve is not None
    assert metrics.curve.val == [(0, 4.0)]


def test_a_summary_is_made_once_for_what_its_files_are(tmp_path: Path) -> None:
    run, summaries = begun(tmp_path / "one"), Summaries()
    first = summaries.of("one", run.path)
    assert summaries.of("one", run.path) is first
    with run.metrics.open("a") as metrics:
        metrics.write(line(5, train=2.5))
    assert summaries.of("one", run.path).step == 5


def test_a_folder_that_is_another_users_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(tmp_path / "mine")
    (tmp_path / "theirs").mkdir()
    stat = Path.stat

    def refuses(self: Path, **how: bool) -> os.stat_result:
        if self.parent.name == "theirs":
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **how)

    monkeypatch.setattr(Path, "stat", refuses)
    assert list(find_runs(tmp_path)) == ["mine"]
    assert find_runs(tmp_path / "theirs") == {}
