"""Signals, divergence and refusals as a user meets them: one clear line, the right exit code, no traceback."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.processes import Command, instil


def test_a_signal_stops_a_run_with_one_line(tiny_folder: Path, data_file: Path) -> None:
    """Sent once the first epoch is done; what the folder holds until then stays, and the step is saved."""
    out = data_file.parent / "run"
    arguments = [
        "train",
        data_file,
        "-m",
        tiny_folder,
        "-o",
        out,
        "-s",
        "train.epochs=100000",
        "-s",
        "train.eval_every=0",
    ]
    with Command(*arguments) as process:
        before = []
        for line in process.stderr:
            before.append(line)
            if "step    5/" in line:  # the end of the first epoch
                break
        assert process.poll() is None, "".join(before)
        process.send_signal(signal.SIGTERM)
        said, rest = process.communicate(timeout=120)
    assert process.returncode == 143
    last = rest.strip().splitlines()[-1]
    assert last.startswith("instil: stopped after step ")
    assert f", which is saved. To go on: instil train {data_file} " in last
    assert last.endswith(" --resume")
    assert "Traceback" not in rest
    assert "Exception" not in rest
    assert said == ""
    assert len((out / "metrics.jsonl").read_text().splitlines()) >= 6
    assert not (out / "model").exists()


def test_divergence_on_the_last_step_is_exit_1(tiny_folder: Path, data_file: Path) -> None:
    out = data_file.parent / "run"
    arguments = (
        "-s",
        "train.max_steps=1",
        "-s",
        "train.learning_rate=1e30",
        "-s",
        "generate.max_new_tokens=2",
        "--json",
    )
    done = instil("run", data_file, "-m", tiny_folder, "-o", out, *arguments)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("instil: step 1: the validation loss is nan. Nothing was saved. Lower train.learning_rate")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (out / "model").exists()


def test_a_batch_larger_than_the_rows_is_exit_2(tiny_folder: Path, data_file: Path) -> None:
    arguments = ("-s", "train.drop_last=true", "-s", "train.batch_size=35")
    done = instil("run", data_file, "-m", tiny_folder, "-o", data_file.parent / "run", *arguments)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("instil: a batch of 35 rows is larger than the 34 rows")
    assert not (data_file.parent / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--input", "b"), "--input goes with --instruction"),
        (("--instruction", "a", "--out", "x.json"), "--out is for the rows of --data or --split"),
        (("--instruction", "a", "--split", "test"), "--instruction answers one row"),
        (("--instruction", "a", "--set", "train.epochs=2"), "only generate.* settings matter here"),
    ],
)
def test_options_of_respond_that_contradict_one_another(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = instil("respond", "any", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert not list(tmp_path.iterdir())
