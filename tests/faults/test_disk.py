"""15: a disk that is full, a quota, an error: what was kept stays, and a run ends by it only if its result is lost."""

from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from instil import files
from instil.errors import InstilError, StoppedEarly, UserError
from instil.recipes.run import training
from instil.recipes.run.run import Run, run
from instil.runs.best import checkpoint_bytes, saved_bytes
from instil.runs.folder import RunFolder
from instil.runs.kept import Kept
from instil.runs.observers import MetricsFile
from instil.runs.status import at_work, read_status
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.tasks.prepare import load, prepare
from instil.train.metrics import StepRecord
from tests.conftest import rows
from tests.faults.test_signals import SETTINGS
from tests.recipes.test_going_on import Told
from tests.recipes.test_resume import USUAL, left_by

PATIENT = {"patience": 9, "eval_every": 1, "learning_rate": 1e-3}


def tuned(model: Path, out: Path, *, resume: bool = False, **how: Any) -> Run:
    settings = resolve(values=USUAL | how)
    return run(rows(30), model, out, settings, answers=False, resume=resume, screen=Screen())


def said(capfd: pytest.CaptureFixture[str]) -> str:
    return " ".join("".join(capfd.readouterr()).split())


def test_a_limit_of_what_may_be_written_ends_no_training(tiny_folder: Path, data_file: Path) -> None:
    """A real one, of the system: the model fits, and its checkpoints, which are three times as large, do not."""
    size = sum(one.stat().st_size for one in tiny_folder.glob("*.safetensors"))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size, 2 * size))

    out = data_file.parent / "run"
    command = [sys.executable, "-m", "instil.cli", "train", data_file, "-m", tiny_folder, "-o", out, *SETTINGS]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, check=False, preexec_fn=limit
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the checkpoint cannot be written: File too large") == 5
    status = read_status(out)
    assert status is not None
    assert (status.state, status.done) == ("finished", 9)
    assert (out / "model" / "model.safetensors").is_file()
    assert list((out / "checkpoints").iterdir()) == []


def full(patch: pytest.MonkeyPatch, code: int, times: int) -> None:
    """The model can be written only after so many tries."""
    export, tried = training.export_folder, 0

    def exports(*given: Any) -> Any:
        nonlocal tried
        tried += 1
        if tried <= times:
            raise OSError(code, "the disk says no", str(given[3] / "model.safetensors"))
        return export(*given)

    patch.setattr(training, "export_folder", exports)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_older_checkpoints_make_room_for_the_model(
    code: int, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    full(monkeypatch, code, 1)
    tuned(tiny_folder, tmp_path / "run")
    assert "the disk says no; older checkpoints are removed, and it is tried again" in said(capfd)


@pytest.mark.parametrize("how", [{}, PATIENT], ids=["last", "best"])
def test_a_result_that_cannot_be_saved_can_be_rescued(
    how: dict[str, Any], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how: no step is taken again, and the end is the same."""
    out = tmp_path / "run"
    tuned(tiny_folder, tmp_path / "whole", **how)
    with monkeypatch.context() as patch, pytest.raises(StoppedEarly) as no:
        full(patch, errno.EIO, 9)
        tuned(tiny_folder, out, **how)
    assert str(no.value) == (
        f"{out / 'model' / 'model.safetensors'}: the disk says no. The training is kept as it was after step 9 of 9: "
        "--resume goes on from there"
    )
    status = read_status(out)
    assert status is not None
    assert (status.state, status.why) == ("stopped", str(no.value))
    assert (out / "checkpoints" / "best.safetensors").exists() == bool(how)
    with monkeypatch.context() as patch:
        patch.setattr("instil.train.training._step", lambda *_: pytest.fail("a step is taken again"))
        tuned(tiny_folder, out, resume=True, **how)
    assert left_by(out) == left_by(tmp_path / "whole")


def test_a_result_that_cannot_be_saved_and_of_which_nothing_is_kept_has_failed(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        monkeypatch.context() as patch,
        pytest.raises(InstilError, match="no checkpoint, so --resume begins the training") as no,
    ):
        full(patch, errno.ENOSPC, 9)
        tuned(tiny_folder, tmp_path / "run", save_every="0")
    assert not isinstance(no.value, StoppedEarly)
    status = read_status(tmp_path / "run")
    assert status is not None
    assert status.state == "failed"


@pytest.mark.parametrize(
    "name",
    [
        "responses/base.json",
        "responses/tuned.json",
        "split.json",
        "keep/base.jsonl",
        "report.json",
        "scores/base.likelihood.jsonl",
        "scores/tuned.offline.jsonl",
    ],
)
def test_a_run_that_has_no_room_for_a_file_is_stopped_and_goes_on_where_there_is_some(
    name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file it is, before training and after."""
    out, write, settings = tmp_path / "run", files.write_whole, resolve(values=USUAL)

    def writes(path: Path, content: Any, **how: Any) -> None:
        if Path(path) == out / name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content, **how)

    def go(*, resume: bool = False) -> None:
        run(rows(30), tiny_folder, out, settings, resume=resume, screen=Screen())

    with monkeypatch.context() as patch, pytest.raises(StoppedEarly) as no:
        patch.setattr(files, "write_whole", writes)
        go()
    assert str(no.value) == f"{out / name}: No space left on device; make room there, and --resume goes on"
    status = read_status(out)
    assert status is not None
    assert (status.state, status.why) == ("stopped", str(no.value))
    go(resume=True)
    run(rows(30), tiny_folder, tmp_path / "whole", settings, screen=Screen())
    assert left_by(out) == left_by(tmp_path / "whole")


def test_a_disk_that_is_full_when_training_begins_stops_a_run_too(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step is lost, so it has not failed."""
    out = tmp_path / "run"

    def opened(path: Path, **how: Any) -> MetricsFile:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch, pytest.raises(StoppedEarly) as no:
        patch.setattr(training, "MetricsFile", opened)
        tuned(tiny_folder, out)
    assert str(no.value) == f"{out / 'metrics.jsonl'}: No space left on device; make room there, and --resume goes on"
    tuned(tiny_folder, out, resume=True)
    tuned(tiny_folder, tmp_path / "whole")
    assert left_by(out) == left_by(tmp_path / "whole")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_where_room_is_wanted_is_said_though_the_error_names_no_file(code: int, tmp_path: Path) -> None:
    """As that of a write to a file that is open."""
    with pytest.raises(StoppedEarly) as no, at_work(tmp_path / "run", Screen(quiet=True)):
        raise OSError(code, "no room")
    assert str(no.value) == f"{tmp_path / 'run'}: no room; make room there, and --resume goes on"


def test_a_best_model_that_cannot_be_kept_is_told_of_and_training_goes_on(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from instil.runs import best

    write, written = best.write_whole, 0

    def writes(path: Path, content: Any) -> None:
        nonlocal written
        written += 1
        if 2 <= written <= 4:
            Path(f"{path}.unfinished").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(best, "write_whole", writes)
    found = tuned(tiny_folder, tmp_path / "run", **PATIENT)
    assert "the best model cannot be kept: No space left on device; training goes on" in said(capfd)
    losses = [json.loads(line)["val_loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses == sorted(losses, reverse=True)  # each was the best
    assert (found.steps, found.validation_loss) == (9, losses[-1])


def test_lines_that_cannot_be_written_are_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none of them in two pieces, with something between."""
    told: list[str] = []
    records = [StepRecord(step, step / 9, 0, 1.0, None, 0.0, 0.0, 0.0) for step in range(5)]
    path = tmp_path / "metrics.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsFile(path, warn=told.append) as file:
        file.on_step(records[0])
        whole = path.stat().st_size
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (whole + 20, hard))
            file.on_step(records[1])
            file.on_step(records[2])
            assert path.stat().st_size == whole
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        file.on_step(records[3])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]
    assert told == [f"{path}: cannot be written: File too large; training goes on and tries again"]


def test_a_journal_that_cannot_be_written_is_told_of_once(tmp_path: Path) -> None:
    """Not even the close of its file, which tries once more to write what it holds, ends the run."""
    told = Told()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Kept(tmp_path / "kept.journal", told) as journal:
        journal.keep("one", 1)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "kept.journal").stat().st_size + 20, hard))
            journal.keep("two", "x" * 100)
            journal.keep("three", 3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told.lines == ["  [Errno 27] File too large: what is made from here on is not kept for --resume"]
    with Kept(tmp_path / "kept.journal", told) as journal:
        assert [journal.kept(key) for key in ("one", "two", "three")] == [1, None, None]


def test_a_journal_that_cannot_be_opened_ends_no_run(tmp_path: Path) -> None:
    told, path = Told(), tmp_path / "kept.journal"
    path.mkdir()
    with Kept(path, told) as journal:
        journal.keep("one", 1)
        assert journal.kept("one") is None
    assert told.lines == [f"  {path}: cannot be written: Is a directory; what is made is not kept for --resume"]


@pytest.mark.parametrize(
    ("how", "parts"),
    [({}, 9), ({"patience": 2}, 12), ({"save_every": "0"}, 0), ({"method": "lora", "rank": 2}, None)],
    ids=["full", "patience", "none", "lora"],
)
def test_room_is_looked_for_before_training_and_counts_checkpoints(
    how: dict[str, Any], parts: int | None, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(rows(30), tiny_folder, resolve(values=how))
    decoder = load(prepared)
    model = 4 * decoder.parameter_count
    wanted = checkpoint_bytes(decoder, prepared.settings)
    if parts is None:
        assert 0 < wanted < model
    else:
        assert wanted == parts * model
    folder, result = RunFolder(tmp_path / "run"), saved_bytes(decoder, prepared.settings)
    usage = type("Usage", (), {"free": result + wanted})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    folder.check_room(result, wanted)
    usage.free -= 1
    with pytest.raises(
        UserError, match=r"the run needs .* GB on disk.* free at .*; make room, or choose another"
    ) as no:
        folder.check_room(result, wanted)
    assert ("train.save_every=0" in str(no.value)) == bool(wanted)
