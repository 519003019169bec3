"""A sweep whose runs were killed half way: which go on, and what is said of one that cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instil.recipes.run import run as job
from instil.recipes.sweep.file import Overrides
from instil.recipes.sweep.sweep import SweepResult, sweep
from instil.train import training
from tests.conftest import rows
from tests.kills.left import left_by
from tests.recipes.test_going_on import Killed, Told, dies
from tests.runs.test_status import held_by_another

pytestmark = pytest.mark.usefixtures("one_backend")


class Sweeping:
    """A sweep of two runs."""

    def __init__(self, model: Path, place: Path) -> None:
        self.model, self.place = model, place
        self.file, self.data = place / "some.toml", place / "rows.json"
        self.data.write_text(json.dumps(rows(40)))
        self.file.write_text(
            "[settings]\ntrain.max_steps = 6\ntrain.save_every = '2'\ngenerate.max_new_tokens = 3\n"
            "data.template = 'plain'\ndata.max_length = 128\n"
            "[[run]]\nname = 'first'\n[[run]]\nname = 'second'\nsettings.train.learning_rate = 1e-3\n"
        )
        self.screen = Told()

    def go(self, name: str, *settings: str, processes: bool = False) -> SweepResult:
        self.screen = Told()
        over = Overrides(str(self.data), str(self.model), self.place / name, assignments=settings)
        return sweep(self.file, over, processes=processes, screen=self.screen)

    def killed(self, number: int, name: str) -> None:
        """Begin it, and kill it in a step."""
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            dies(patch, training, "_step", number)
            self.go(name)


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_of_a_sweep_that_would_not_be_the_same_is_named(processes: bool, tinier: Path, tmp_path: Path) -> None:
    """With advice that a sweep knows: it has no --force."""
    sweeping, second = Sweeping(tinier, tmp_path), tmp_path / "out" / "second"
    sweeping.killed(6 + 4, "out")
    lines = (second / "metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[3]) | {"train_loss": 9.5}
    assert record["step"] == 3
    (second / "metrics.jsonl").write_text("\n".join([*lines[:3], json.dumps(record)]) + "\n")
    first, failed = sweeping.go("out", processes=processes).table.rows
    assert (first.status, failed.status) == ("kept", "failed")
    assert failed.reason.startswith("step 3 is not what it was before it was stopped: train_loss is ")
    assert failed.reason.endswith(f"would not end as it would have; remove {second} to have it made anew")


def test_a_run_of_a_sweep_that_another_works_on_is_not_to_be_removed(tinier: Path, tmp_path: Path) -> None:
    sweeping = Sweeping(tinier, tmp_path)
    sweeping.killed(6 + 4, "out")
    with held_by_another(tmp_path / "out" / "second") as process:
        failed = sweeping.go("out").table.rows[1]
    assert failed.status == "failed"
    assert f"process {process.pid} on " in failed.reason
    assert "remove" not in failed.reason


def test_a_half_done_run_of_a_sweep_goes_on(tinier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeping = Sweeping(tinier, tmp_path)
    sweeping.go("whole")
    sweeping.killed(6 + 4, "out")
    taken: list[int] = []
    step = training._step
    monkeypatch.setattr(training, "_step", lambda *given: taken.append(1) or step(*given))
    sweeping.go("out")
    assert len(taken) == 4  # of the second run, from step 2 on
    assert "first, not finished" not in sweeping.screen.text
    assert f"{tmp_path / 'out' / 'second'} holds this run, not finished; it goes on" in sweeping.screen.text
    for name in ("first", "second"):
        found, wanted = (left_by(tmp_path / place / name) for place in ("out", "whole"))
        for one in (found, wanted):
            one["report.json"]["before_from"] = Path(one["report.json"]["before_from"]).name
        assert found == wanted, name


@pytest.mark.parametrize("keep", ["false", "true"])
def test_a_run_that_was_killed_at_its_very_end_leaves_no_checkpoints(keep: str, tinier: Path, tmp_path: Path) -> None:
    """It is finished, so it is not gone on with, and is as it would be but for them."""
    sweeping, first = Sweeping(tinier, tmp_path), tmp_path / "out" / "first"
    how = f"train.keep_checkpoint={keep}"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        dies(patch, job, "forget_checkpoints", 1)
        sweeping.go("out", how)
    assert len(list((first / "checkpoints").glob("step-*"))) == 2
    assert [row.status for row in sweeping.go("out", how).table.rows] == ["kept", "done"]
    kept = [one.name for one in (first / "checkpoints").iterdir() if one.is_dir()]
    assert kept == (["step-000000006"] if keep == "true" else [])
    sweeping.go("whole", how)
    found, wanted = (
        {name: content for name, content in left_by(tmp_path / place / "first").items() if "/step-" not in name}
        for place in ("out", "whole")
    )
    assert found == wanted  # a checkpoint has times in it


def test_a_sweep_knows_its_runs_by_what_was_found_for_what_it_left_open(
    tinier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """train.precision=auto is bf16 or fp32 in the runs, and the finished one and the begun one are known as such."""
    sweeping, auto = Sweeping(tinier, tmp_path), "train.precision=auto"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        dies(patch, training, "_step", 6 + 4)
        sweeping.go("out", auto)
    taken: list[int] = []
    step = training._step
    monkeypatch.setattr(training, "_step", lambda *given: taken.append(1) or step(*given))
    assert [row.status for row in sweeping.go("out", auto).table.rows] == ["kept", "done"]
    assert len(taken) == 4  # of the second run, from step 2 on
    assert [row.status for row in sweeping.go("out", auto).table.rows] == ["kept", "kept"]
    assert len(taken) == 4
