"""Who works in a run's folder and how a run ended: one small file, which is the lock as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from instil.errors import InstilError, RunFolderTaken, StoppedEarly, UserError
from instil.runs import status as module
from instil.runs.folder import RunFolder
from instil.runs.identity import clear_leftovers
from instil.runs.listing import summary_of
from instil.runs.processes import Process
from instil.runs.status import SILENT, STATUS, Status, Work, at_work, check_idle, read_status
from instil.screen import Screen
from instil.stopping import Stopped
from instil.train.metrics import StepRecord
from instil.train.observer import TrainResult

QUIET = Screen(quiet=True)
HOLDS = """
import sys, time
from pathlib import Path
from instil.runs.status import at_work
from instil.screen import Screen
with at_work(Path(sys.argv[1]), Screen(quiet=True)):
    print("holds", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is at work in a folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "holds\n"
            yield process
        finally:
            process.kill()


def written(folder: Path, **changed: object) -> Status:
    """A status as a process leaves it that did not end it."""
    own = Process.own()
    status = Status("running", "", own.pid, own.host, "2026-01-01T00:00:00+00:00", 3, 9, own.began, own.system)
    folder.mkdir(exist_ok=True)
    status = replace(status, **changed)  # type: ignore[arg-type]
    (folder / STATUS).write_text(json.dumps(asdict(status)))
    return status


def result(steps: int, planned: int, **more: str) -> TrainResult:
    return TrainResult((), steps, 0, 0.0, None, planned=planned, **more)  # type: ignore[arg-type]


def test_a_run_says_what_it_does_and_who_does_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with at_work(folder, QUIET) as work:
        own = Process.own()
        found = read_status(folder)
        assert found is not None
        assert (found.state, found.pid, found.host, found.done, found.planned) == (
            "running",
            own.pid,
            own.host,
            0,
            None,
        )
        work.on_train_begin(None, 9)  # type: ignore[arg-type]
        assert json.loads((folder / STATUS).read_text())["planned"] == 9
        work.on_train_end(None, result(9, 9))  # type: ignore[arg-type]
        work.finish()
    found = read_status(folder)
    assert found is not None
    assert (found.state, found.why, found.done, found.planned) == ("finished", "", 9, 9)
    assert [one.name for one in folder.iterdir()] == [STATUS]


def test_a_run_is_finished_only_if_all_steps_are_done(tmp_path: Path) -> None:
    with pytest.raises(InstilError, match="ended after 8 of 9 steps"), at_work(tmp_path, QUIET) as work:
        work.on_train_end(None, result(8, 9))  # type: ignore[arg-type]
    found = read_status(tmp_path)
    assert found is not None
    assert (found.state, found.why) == ("failed", "training ended after 8 of 9 steps; the run is not done")
    with at_work(tmp_path, QUIET) as work:
        work.on_train_end(None, result(8, 9, ended="the loss was not lower"))  # type: ignore[arg-type]
        work.finish()
    found = read_status(tmp_path)
    assert found is not None
    assert (found.state, found.why, found.done) == ("finished", "the loss was not lower", 8)
    written(tmp_path, state="finished")  # whoever wrote it
    found = read_status(tmp_path)
    assert found is not None
    assert (found.state, found.why) == ("stopped", "3 of 9 steps are done")


@pytest.mark.parametrize(
    ("error", "state", "why"),
    [
        (Stopped(15, "after step 3 of 9, which is saved"), "stopped", "SIGTERM; after step 3 of 9, which is saved"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
        (StoppedEarly("no judge"), "stopped", "no judge"),
        (UserError("no room"), "failed", "no room"),
        (ZeroDivisionError("division by zero"), "failed", "ZeroDivisionError: division by zero"),
        (OSError(5, "Input/output error", "run/split.json"), "failed", "run/split.json: Input/output error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_how_a_run_ended_is_written_down(error: BaseException, state: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), at_work(tmp_path, QUIET) as work:
        work.on_train_begin(None, 9)  # type: ignore[arg-type]
        raise error
    found = read_status(tmp_path)
    assert found is not None
    assert (found.state, found.why) == (state, why)
    if isinstance(error, Stopped):
        assert error.folder == tmp_path
    RunFolder(tmp_path).write_settings({"data": "rows.json", "settings": {}, "hashes": {}})
    said = summary_of("one", tmp_path)
    assert (said.state, said.why, said.pid, said.host) == (state, why, os.getpid(), Process.own().host)


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    with held_by_another(tmp_path / "run") as process:
        taken = f"process {process.pid} on {Process.own().host} is at work there; wait for it, stop it, or choose"
        for attempt in (check_idle, lambda folder: at_work(folder, QUIET).__enter__()):
            with pytest.raises(RunFolderTaken, match=taken) as no:
                attempt(tmp_path / "run")
            assert no.value.exit_code == 3
        process.kill()
        process.wait()
        found = read_status(tmp_path / "run")
        assert found is not None
        assert (found.state, found.pid) == ("stopped", process.pid)
        assert found.why == f"process {process.pid} on {Process.own().host} is gone and had not ended it"
        check_idle(tmp_path / "run")


def test_on_a_full_disk_it_is_written_in_its_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How a run ended for want of room, and signs of life of one that goes on."""

    def full(path: Path, value: object) -> None:
        del value
        raise OSError(28, "No space left on device", str(path))

    with pytest.raises(UserError, match="no room"), at_work(tmp_path, QUIET) as work:
        monkeypatch.setattr(module, "write_json", full)
        work.on_train_begin(None, 9)  # type: ignore[arg-type]
        os.utime(tmp_path / STATUS, (1.0, 1.0))
        monkeypatch.setattr(module, "BEAT", 0.01)
        threading.Thread(target=work._beat, daemon=True).start()
        until(lambda: (tmp_path / STATUS).stat().st_mtime > 1.0)
        raise UserError("no room")
    found = read_status(tmp_path)
    assert found is not None
    assert (found.state, found.why, found.planned) == ("failed", "no room", 9)


def test_what_is_no_small_file_is_no_status(tmp_path: Path) -> None:
    """A pipe would be waited for, and a device read for ever."""
    os.mkfifo(tmp_path / STATUS)
    assert read_status(tmp_path) is None
    (tmp_path / STATUS).unlink()
    (tmp_path / STATUS).symlink_to("/dev/zero")
    assert read_status(tmp_path) is None
    (tmp_path / STATUS).unlink()
    written(tmp_path)
    with (tmp_path / STATUS).open("a") as file:
        file.write(" " * module.LARGEST)
    assert read_status(tmp_path) is None


def test_who_only_looks_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that nobody works in, and that is held for a moment, is not refused."""
    tries = 0

    def held(handle: int) -> bool:
        nonlocal tries
        tries += 1
        return tries > 3

    written(tmp_path, state="finished", done=9)
    monkeypatch.setattr(module, "AGAIN", 0.0)
    monkeypatch.setattr(module, "PATIENCE", 600.0)
    monkeypatch.setattr(module, "_flock", held)
    check_idle(tmp_path)
    assert tries == 4
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    tries = 0
    with pytest.raises(RunFolderTaken, match=r": another process is at work there"):  # not the one that is long gone
        check_idle(tmp_path)


def test_one_process_does_not_work_there_twice(tmp_path: Path) -> None:
    with at_work(tmp_path, QUIET), pytest.raises(RunFolderTaken, match=f"process {os.getpid()} on"):
        check_idle(tmp_path)
    check_idle(tmp_path)


def test_a_stale_one_is_taken_over_with_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its process is gone, or another one has come to have its number."""
    own = Process.own()
    for stale in ({"began": f"{own.began}0"}, {"pid": 2**22 + 1}):
        status = written(tmp_path, **stale)
        with at_work(tmp_path, Screen()):
            pass
        said = " ".join("".join(capfd.readouterr()).split())
        assert f"process {status.pid} on {own.host} was at work in {tmp_path} and is gone; taken over" in said


def test_without_a_lock_of_the_system_the_number_and_its_beginning_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on network drives that have none."""
    monkeypatch.setattr(module, "_flock", lambda handle: None)
    written(tmp_path, pid=os.getppid(), began=f"{_began(os.getppid())}0")  # one of that number that is gone
    check_idle(tmp_path)
    parent = Process(os.getppid(), _began(os.getppid()), Process.own().host, Process.own().system)
    assert parent.is_alive()
    written(tmp_path, pid=parent.pid, began=parent.began)
    with pytest.raises(RunFolderTaken, match=f"process {parent.pid} on .* is at work there; wait"):
        check_idle(tmp_path)


def _began(pid: int) -> str:
    from instil.runs.processes import _began

    found = _began(pid)
    assert found is not None
    return found


def test_one_on_another_machine_is_refused_as_long_as_it_gives_signs_of_life(tmp_path: Path) -> None:
    written(tmp_path, host="other", system="another-boot pid:[1]", pid=77)
    with pytest.raises(RunFolderTaken, match=r"process 77 on other is at work there, and last gave a sign .* remove"):
        check_idle(tmp_path)
    assert module.read_status(tmp_path).state == "running"  # type: ignore[union-attr]
    silent = time.time() - SILENT - 5
    os.utime(tmp_path / STATUS, (silent, silent))
    check_idle(tmp_path)
    assert module.read_status(tmp_path).state == "stopped"  # type: ignore[union-attr]


def test_one_from_before_the_machine_was_started_again_is_gone(tmp_path: Path) -> None:
    written(tmp_path, system="another-boot pid:[1]")
    check_idle(tmp_path)


def test_another_container_of_this_machine_would_hold_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot = Process.own().system.partition(" ")[0]
    assert boot
    written(tmp_path, host="a-container", system=f"{boot} pid:[1]")
    check_idle(tmp_path)
    monkeypatch.setattr(module, "_flock", lambda handle: None)
    with pytest.raises(RunFolderTaken, match="last gave a sign of life"):
        check_idle(tmp_path)


def test_signs_of_life_are_given_and_a_folder_that_was_taken_over_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that slept wakes up, and finds another one at work."""
    monkeypatch.setattr(module, "BEAT", 0.01)
    with (
        pytest.raises(RunFolderTaken, match="process 77 on other has taken the folder over"),
        at_work(tmp_path, QUIET) as work,
    ):
        old = time.time() - 1000
        os.utime(tmp_path / STATUS, (old, old))
        work.status = replace(work.status, done=4)
        until(lambda: (tmp_path / STATUS).stat().st_mtime > old + 500)
        until(lambda: read_status(tmp_path).done == 4)  # type: ignore[union-attr]
        theirs = written(tmp_path / "other", host="other", pid=77, system="boot pid:[1]")
        while any(one.name == "instil-status" for one in threading.enumerate()):  # it may just be writing its own
            written(tmp_path / "other", host="other", pid=77, system="boot pid:[1]")
            (tmp_path / "other" / STATUS).replace(tmp_path / STATUS)
            time.sleep(0.05)
        work.on_step(StepRecord(5, 0.5, 0, 1.0, None, 0.0, 0.0, 0.0))
    assert json.loads((tmp_path / STATUS).read_text()) == asdict(theirs)


def until(true: object) -> None:
    end = time.monotonic() + 30
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"state": "dancing"}', '{"state": "running"}', "\x00" * 50]
)
def test_a_damaged_one_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / STATUS).write_text(content)
    assert read_status(tmp_path) is None
    check_idle(tmp_path)
    with at_work(tmp_path, QUIET) as work:
        assert isinstance(work, Work)


def test_a_full_disk_does_not_hide_why_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), at_work(tmp_path, QUIET):
        monkeypatch.setattr(module, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        raise ZeroDivisionError


def test_what_is_left_of_a_run_that_never_began_is_free(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), at_work(folder.path, QUIET):
        (folder.path / "scores").mkdir()
        (folder.path / ".instil-abc").mkdir()  # it died while it looked whether the folder can be written to
        raise ZeroDivisionError
    folder.check_free(overwrite=False)
    clear_leftovers(folder)
    assert [one.name for one in folder.path.iterdir()] == ["status.json"]
    (folder.path / "metrics.jsonl").write_text("")  # it died while it was made
    folder.check_free(overwrite=True)
    with pytest.raises(RunFolderTaken, match="not empty"):
        folder.check_free(overwrite=False)
