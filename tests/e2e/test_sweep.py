"""Sweep and probe as a user gives them: killed and taken up again, results on stdout, the right exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import instil

HEAD = "[settings]\ntrain.eval_every = 0\ngenerate.max_new_tokens = 2\n"
SHORT = '[[run]]\nname = "short"\nsettings.train.max_steps = 2\n'
LONG = '[[run]]\nname = "long"\nsettings.train.epochs = 100000\n'
OTHER = '[[run]]\nname = "other"\nsettings.train.max_steps = 3\n'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "options", "code"),
    [
        (signal.SIGKILL, (), -9),
        pytest.param(signal.SIGKILL, ("--processes",), -9, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, (), 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, ("--processes",), 143, marks=pytest.mark.slow),
    ],
)
def test_killed_it_goes_on_with_the_next_run(
    number: signal.Signals, options: tuple[str, ...], code: int, tiny_folder: Path, data_file: Path
) -> None:
    """Killed in the middle of its second run; the first is not touched again, the second is done anew."""
    folder = data_file.parent
    file, out = folder / "some.toml", folder / "out"
    file.write_text(HEAD + SHORT + LONG + OTHER)
    arguments = ("sweep", file, "--data", data_file, "-m", tiny_folder, "-o", out, *options)
    with subprocess.Popen(
        [sys.executable, "-m", "instil.cli", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        metrics = out / "long" / "metrics.jsonl"
        end = time.monotonic() + 120
        while not (metrics.is_file() and metrics.read_text().count("\n") > 3):
            assert process.poll() is None and time.monotonic() < end, process.stderr and process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        said, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in told
    assert said == ""
    still = metrics.read_text()
    time.sleep(1.0)
    assert metrics.read_text() == still, "nobody goes on writing"
    stored = json.loads((out / "sweep.json").read_text())
    assert [run["status"] for run in stored["runs"]] == ["done", "waiting", "waiting"]
    first = (out / "short" / "report.html").stat().st_mtime_ns

    file.write_text(HEAD + SHORT + LONG.replace("epochs = 100000", "max_steps = 4") + OTHER)
    done = instil(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    stored = json.loads(done.stdout)
    assert [(run["status"], run["steps"]) for run in stored["runs"]] == [("kept", 2), ("done", 4), ("done", 3)]
    assert (out / "short" / "report.html").stat().st_mtime_ns == first
    assert all(run["before_from"] == str(out / "short") for run in stored["runs"][1:])


@pytest.mark.slow
def test_table_and_exit_code_where_a_run_fails(tiny_folder: Path, data_file: Path) -> None:
    file = data_file.parent / "some.toml"
    file.write_text(HEAD + SHORT + '[[run]]\nname = "wild"\nsettings.train.learning_rate = 1e30\n')
    done = instil("sweep", file, "--data", data_file, "-m", tiny_folder, cwd=data_file.parent)
    assert done.returncode == 1
    assert "short" in done.stdout and "failed: step" in done.stdout
    assert "runs/some/sweep.html" in done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("instil: 1 of 2 runs failed. wild: step ")
    assert "Traceback" not in done.stderr
    other = ("--data", data_file, "-m", tiny_folder, "-s", "train.epochs=9")
    done = instil("sweep", file, *other, cwd=data_file.parent)
    assert done.returncode == 3
    assert "train.epochs is 4, now 9" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sweep", "none.toml"), "none.toml: cannot be read"),
        (("sweep", "bad.toml"), "unknown key 'settngs' at the top of the file; did you mean settings?"),
        (("probe", "--rates", "1e-4,x"), "--rates 1e-4,x: wanted numbers with commas between"),
        (("probe", "--rates", ","), "--rates ,: no number in it"),
        (("probe", "--set", "train.epoch=1"), "did you mean train.epochs?"),
    ],
)
def test_what_cannot_be_used(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[settngs]\ntrain.epochs = 1\n")
    done = instil(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["bad.toml"]


@pytest.mark.slow
def test_probe_prints_a_table_and_a_setting(tiny_folder: Path, data_file: Path) -> None:
    arguments = ("probe", data_file, "-m", tiny_folder, "--rates", "1e-3,3e-3,1e30", "--steps", "2")
    done = instil(*arguments, "-o", data_file.parent / "out")
    assert done.returncode == 0, done.stderr
    assert "--set train.learning_rate=0.003" in done.stdout
    assert "diverged" in done.stdout
    assert "left" in done.stderr
    assert (data_file.parent / "out" / "probe.png").is_file()
    found = json.loads(instil(*arguments, "--json").stdout)
    assert found["learning_rate"] == 0.003
    assert [one["steps"] for one in found["tried"]] == [2, 2, 2, 4, 4]
