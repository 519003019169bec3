"""The list of runs, and the space that their checkpoints give back."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from instil.cli import app
from instil.errors import InstilError, RunFolderTaken, UserError
from instil.recipes import runs as recipe
from instil.recipes.runs import list_runs, prune
from instil.runs import status
from instil.runs.folder import RunFolder
from instil.runs.listing import QUIET as LONG_QUIET
from instil.runs.space import bytes_in, checkpoint_bytes, remove_checkpoints
from instil.runs.status import at_work
from tests.runs.test_listing import begun
from tests.runs.test_status import QUIET, held_by_another

FINISHED, RUNNING, STOPPED = "finished", "running", "stopped"


def with_checkpoints(path: Path, state: str, created: str = "") -> RunFolder:
    """A run in some state with two checkpoints, and what is left of a third."""
    run = begun(path)
    if created:
        run.write_settings({**run.read_settings(), "created": created})
    for name in ("step-000000002", "step-000000004", "step-000000006.unfinished"):
        (run.checkpoints / name).mkdir(parents=True)
        (run.checkpoints / name / "state.safetensors").write_bytes(b"x" * 1000)
    (run.checkpoints / "best.safetensors").write_bytes(b"x" * 500)
    if state == FINISHED:
        run.write_json("report.json", {})
    if state == STOPPED:
        for file in (run.path, *run.path.rglob("*")):
            os.utime(file, (time.time() - LONG_QUIET - 5,) * 2)
    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    with_checkpoints(folder / "old", FINISHED, "2026-11-01T10:00:00+00:00")
    with_checkpoints(folder / "new", FINISHED, "2026-11-29T10:00:00+00:00")
    with_checkpoints(folder / "halted", STOPPED, "2026-11-28T10:00:00+00:00")
    with_checkpoints(folder / "busy", RUNNING, "2026-11-27T10:00:00+00:00")
    return folder


def said(*words: str | Path, given: str = "", columns: int = 200) -> tuple[int, str, str]:
    done = CliRunner().invoke(
        app, ["runs", *map(str, words)], input=given, env={"COLUMNS": str(columns), "NO_COLOR": "1"}
    )
    if isinstance(done.exception, InstilError):
        return done.exception.exit_code, done.stdout, str(done.exception)
    return done.exit_code, done.stdout, done.stderr


def left(root: Path) -> set[str]:
    """Runs that have checkpoints."""
    return {path.name for path in root.iterdir() if checkpoint_bytes(RunFolder(path))}


def test_the_last_begun_comes_first(root: Path) -> None:
    found = list_runs(root)
    assert [(one.about.name, one.state) for one in found.runs] == [
        ("new", FINISHED), ("halted", STOPPED), ("busy", RUNNING), ("old", FINISHED),
    ]  # fmt: skip
    one = found.runs[0]
    assert one.checkpoints == 3500
    assert one.bytes == sum(file.stat().st_size for file in one.path.rglob("*") if file.is_file())
    assert 86_400 < one.age < 400 * 86_400
    code, out, _ = said(root)
    assert code == 0
    head, first, *_ = out.splitlines()
    assert head.split() == ["run", "state", "model", "data", "steps", "train", "loss", "val.", "loss", "age", "size"]
    assert first.split()[:5] == ["new", "finished", "smollm2-135m", "rows.json", "4/20"]
    assert "7.0 kB are checkpoints of finished runs; instil runs --prune removes them" in out


def test_a_finished_run_shows_its_scores(plain_run: Path) -> None:
    (one,) = list_runs(plain_run).runs
    scored = one.about.scores[0]
    assert scored.before is not None and scored.after is not None
    assert f"{scored.before.mean:.1f} > {scored.after.mean:.1f}" in said(plain_run)[1]
    assert json.loads(said(plain_run, "--json")[1])["runs"][0]["state"] == FINISHED


def test_as_json(root: Path) -> None:
    code, out, _ = said(root, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["root"] == str(root)
    busy = next(one for one in found["runs"] if one["name"] == "busy")
    assert (busy["state"], busy["step"], busy["train_loss"], busy["checkpoint_bytes"]) == (RUNNING, 4, 2.6, 3500)
    assert "freed_bytes" not in found


def test_a_folder_without_runs_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = "runs: no runs; instil run DATA --out runs/NAME makes one\n"
    assert said() == (0, wanted, "")
    assert json.loads(said("--json")[1]) == {"root": "runs", "runs": []}
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; wanted a folder of runs"):
        list_runs(tmp_path / "file")


@pytest.mark.parametrize("columns", [100, 60, 40, 24])
def test_a_narrow_terminal_has_fewer_columns_and_no_broken_lines(
    root: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instil.cli.tables.WIDE", columns)
    lines = said(root)[1].splitlines()[:5]
    assert all(len(line) <= columns for line in lines)
    assert [line.split()[0] for line in lines] == ["run", "new", "halted", "busy", "old"]
    assert [line.split()[1] for line in lines[1:]] == [FINISHED, STOPPED, RUNNING, FINISHED]
    assert ("model" in lines[0]) == (columns == 100)


def test_prune_asks_for_finished_and_stopped_runs_apart(root: Path) -> None:
    code, _, err = said(root, "--prune", given="y\nn\n")
    assert code == 0
    assert "Remove what checkpoints are left of 2 finished runs (7.0 kB)?" in err
    assert "Remove the checkpoints of 1 run that did not finish (3.5 kB)?" in err
    assert "freed 7.0 kB: checkpoints of 2 runs" in err
    assert left(root) == {"halted", "busy"}
    assert said(root, "--prune", given="y\n")[0] == 0
    assert left(root) == {"busy"}  # which trains
    assert "nothing was removed" in said(root, "--prune")[2]


def test_prune_without_an_answer_removes_nothing(root: Path) -> None:
    code, _, err = said(root, "--prune")
    assert code == 2
    assert "nobody answered; add --yes" in err
    assert left(root) == {"old", "new", "halted", "busy"}


def test_prune_with_yes_takes_the_finished_ones_and_the_stopped_ones_where_they_are_named(root: Path) -> None:
    code, out, _ = said(root, "--prune", "--yes", "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["freed_bytes"], told["freed"], told["problems"]) == (7000, {"new": 3500, "old": 3500}, {})
    assert left(root) == {"halted", "busy"}
    said(root, "--prune", "--yes", "--stopped")
    assert left(root) == {"busy"}


@pytest.mark.parametrize("words", [("--yes",), ("--prune", "--stopped")])
def test_options_that_do_not_go_together(words: tuple[str, ...], root: Path) -> None:
    assert said(root, *words)[0] == 2
    assert len(left(root)) == 4


def test_a_run_that_has_come_to_train_since_is_left_alone(root: Path) -> None:
    listed = list_runs(root).with_checkpoints(finished=False)
    (root / "halted" / "metrics.jsonl").touch()
    done = prune(listed)
    assert done.problems == {"halted": "it was stopped and is running now, so it is left alone"}
    assert "halted" in left(root)
    with pytest.raises(InstilError, match="the checkpoints of 1 run were not removed"):
        done.check()


def test_a_run_that_is_at_work_keeps_its_checkpoints(root: Path) -> None:
    """Whatever the list said of it: its lock is what counts."""
    listed = list_runs(root).with_checkpoints(finished=True)
    with held_by_another(root / "old"):
        done = prune(listed)
    wanted = "it was finished, and a process is at work there now, so it is left alone"
    assert (done.problems, done.freed) == ({"old": wanted}, {"new": 3500})
    assert checkpoint_bytes(RunFolder(root / "old")) == 3500


def test_no_run_begins_where_checkpoints_are_being_removed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "PATIENCE", 0.0)
    tried: list[str] = []

    def removes(run: RunFolder) -> int:
        with (
            pytest.raises(RunFolderTaken, match="another process is at work there; wait for it"),
            at_work(run.path, QUIET),
        ):
            pytest.fail("it began")
        tried.append(run.path.name)
        return remove_checkpoints(run)

    monkeypatch.setattr(recipe, "remove_checkpoints", removes)
    assert prune(list_runs(root).with_checkpoints(finished=False)).freed == {"halted": 3500}
    assert tried == ["halted"]
    with at_work(root / "halted", QUIET):
        pass


def test_other_files_and_what_links_lead_to_stay(root: Path, tmp_path: Path) -> None:
    run = RunFolder(root / "new")
    (run.checkpoints / "notes.txt").write_text("mine")
    assert remove_checkpoints(run) == 3500
    assert [file.name for file in run.checkpoints.iterdir()] == ["notes.txt"]
    elsewhere = root / "old" / "checkpoints"
    elsewhere.rename(tmp_path / "elsewhere")
    elsewhere.symlink_to(tmp_path / "elsewhere")
    assert checkpoint_bytes(RunFolder(root / "old")) == 0
    assert remove_checkpoints(RunFolder(root / "old")) == 0
    assert len(list((tmp_path / "elsewhere").iterdir())) == 4


def test_what_cannot_be_removed_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(run: RunFolder) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(recipe, "remove_checkpoints", refuses)
    code, _, err = said(root, "--prune", "--yes")
    assert (code, err) == (1, "the checkpoints of 2 runs were not removed")


def test_bytes_are_counted_once_and_not_behind_links(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    (folder / "below").mkdir(parents=True)
    (folder / "file").write_bytes(b"x" * 10)
    (folder / "below" / "again").hardlink_to(folder / "file")
    (tmp_path / "large").write_bytes(b"x" * 1000)
    (folder / "link").symlink_to(tmp_path / "large")
    assert bytes_in(folder) == 10
    assert bytes_in(tmp_path / "nowhere") == 0
