"""20, 24, 25: a clock that is put back, a home that cannot be written to, a screen that nobody holds any more."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instil.recipes.run.run import run
from instil.runs.status import read_status
from instil.screen import Screen
from instil.settings.resolve import resolve
from tests.conftest import rows
from tests.faults.test_signals import SETTINGS
from tests.recipes.test_resume import USUAL, left_by


def test_a_run_goes_on_without_a_screen_and_without_a_home(tiny_folder: Path, data_file: Path) -> None:
    """As with ``instil train ... 2>&1 | head -2``, by a user whose home is nowhere."""
    out = data_file.parent / "run"
    command = [sys.executable, "-m", "instil.cli", "train", data_file, "-m", tiny_folder, "-o", out, *SETTINGS]
    homeless = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "INSTIL_", "MPL"))}
    homeless["HOME"] = "/proc/nowhere"
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=homeless
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stderr.readline()
        process.stderr.close()
        process.stdout.close()
        process.wait(timeout=300)
    status = read_status(out)
    assert status is not None, first
    assert (status.state, status.why, status.done) == ("finished", "", 9)
    assert (out / "report.html").is_file()
    assert process.returncode in (0, 1)  # the result could not be printed, which is all that is lost


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("stream", [Gone(), None], ids=["gone", "none"])
def test_what_nobody_sees_ends_nothing(stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    screen = Screen()
    screen.say("one")
    with screen.bar("work", 3) as advance:
        advance("note")
        screen.warn("two")
    screen.head("three")


def test_a_screen_says_what_it_says_where_standard_error_is(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().say("one")
    assert capsys.readouterr().err == "one\n"


def test_a_clock_that_is_put_back_changes_nothing(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saves go by a clock that is never put back, and what is newest by the number of its step."""
    real, jumps = time.time, 0

    def back() -> float:
        nonlocal jumps
        jumps += 1
        return real() - 3600 * jumps

    def tuned(out: Path, *, resume: bool = False) -> None:
        settings = resolve(values=USUAL | {"save_every": "1s"})
        run(rows(30), tiny_folder, out, settings, answers=False, resume=resume, screen=Screen(quiet=True))

    tuned(tmp_path / "whole")
    monkeypatch.setattr(time, "time", back)
    tuned(tmp_path / "run")
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [one["seconds"] for one in steps] == sorted(one["seconds"] for one in steps)
    status = read_status(tmp_path / "run")
    assert status is not None
    assert status.state == "finished"
