"""18: signals. A step is finished and saved, a second one stops at once, and one line says how to go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import instil
from instil.data import tokenizer_files
from instil.data.tokenizers import load_tokenizer
from instil.errors import StoppedEarly
from instil.recipes.run.run import Run, run
from instil.runs.status import read_status
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.stopping import SIGNALS, Stop, Stopped
from instil.train import training
from tests.conftest import rows
from tests.recipes.test_resume import USUAL, left_by

# Sends itself signals from within a function, and does what the command line says.
SENDS = """
import importlib, os, sys
module, name, at, *numbers = sys.argv.pop(1).split()
module, taken = importlib.import_module(module), 0
before = getattr(module, name)
def sends(*given, **more):
    global taken
    taken += 1
    if taken == int(at):
        for number in numbers:
            os.kill(os.getpid(), int(number))
    return before(*given, **more)
setattr(module, name, sends)
from instil.cli import main
main()
"""
IN_STEP_4 = "instil.train.training _step 4"
SECTIONS = {"max_new_tokens": "generate", "max_length": "data"}
SETTINGS = [f"--set={SECTIONS.get(key, 'train')}.{key}={value}" for key, value in USUAL.items()]


def sent(where: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SENDS, where, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout == ""
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_taken_after_the_step_which_is_saved(number: int, tiny_folder: Path, data_file: Path) -> None:
    out = data_file.parent / "run"
    done = sent(
        f"{IN_STEP_4} {int(number)}", "train", data_file, "-m", tiny_folder, "-o", out, *SETTINGS, "--overwrite"
    )
    assert done.returncode == 128 + number
    assert "stops after this step, and saves it; once more: at once" in done.stderr
    again = f"instil train {data_file} -m {tiny_folder} -o {out} {' '.join(SETTINGS)} --resume"
    assert last_line(done) == f"instil: stopped after step 4 of 9, which is saved. To go on: {again}"
    status = read_status(out)
    assert status is not None
    assert (status.state, status.done, status.planned) == ("stopped", 4, 9)
    assert status.why == f"{signal.Signals(number).name}; after step 4 of 9, which is saved"
    assert sorted(one.name for one in (out / "checkpoints").glob("step-*")) == ["step-000000002", "step-000000004"]
    assert (out / "metrics.jsonl").read_text().count("\n") == 5


def test_a_second_one_stops_at_once_and_what_was_kept_is_whole(tiny_folder: Path, data_file: Path) -> None:
    out = data_file.parent / "run"
    done = sent(f"{IN_STEP_4} 2 15", "train", data_file, "-m", tiny_folder, "-o", out, *SETTINGS)
    assert done.returncode == 143
    assert last_line(done).startswith(
        "instil: stopped; what the run folder holds so far is kept. To go on: instil train"
    )
    assert [one.name for one in (out / "checkpoints").glob("step-*")] == ["step-000000002"]
    assert (out / "metrics.jsonl").read_text().count("\n") == 4


SENDS_AS_IT_FAILS = """
import os, sys
from instil import cli
said = cli.visible
def sends(text):
    os.kill(os.getpid(), 2)
    os.kill(os.getpid(), 15)
    return said(text)
cli.visible = sends
cli.main()
"""


def test_one_that_comes_while_a_tokenizer_is_read_is_no_damage_of_it(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def comes(*_: object) -> None:
        raise Stopped(2)

    monkeypatch.setattr(tokenizer_files, "check_ids", comes)
    with pytest.raises(Stopped):
        load_tokenizer(tiny_folder)


def test_one_that_comes_while_it_says_why_it_ends_changes_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "runs" / "one"  # with nothing beside it that may have been meant
    empty.mkdir(parents=True)
    command = [sys.executable, "-c", SENDS_AS_IT_FAILS, "watch", str(empty)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert last_line(done) == f"instil: {empty}: no run.toml in it, so it is not a run folder"


def test_one_that_comes_while_files_are_taken_up_again_stops_at_once(
    tiny_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    """Between two states of a file of lines, neither of which is a closed one."""
    out = data_file.parent / "run"
    where = data_file, "-m", tiny_folder, "-o", out, *SETTINGS
    assert sent(f"{IN_STEP_4} 15", "train", *where).returncode == 143
    done = sent("instil.runs.observers write_whole 1 2", "train", *where, "--resume")
    assert done.returncode == 130
    assert last_line(done).startswith(
        "instil: stopped; what the run folder holds so far is kept. To go on: instil train "
    )
    assert sent(f"{IN_STEP_4} 0", "train", *where, "--resume").returncode == 0


@pytest.mark.parametrize(
    ("where", "said", "kept"),
    [
        ("instil.recipes.run.run prepare 1", "stopped before anything was written; the same command begins again", []),
        ("instil.recipes.run.crew answer 1", "is kept. To go on: instil run ", ["run.toml"]),
        ("instil.recipes.run.crew answer 2", "is kept. To go on: instil run ", ["responses/base.json", "model"]),
    ],
    ids=["preparing", "before", "after"],
)
def test_outside_of_training_it_leaves_at_once(
    where: str, said: str, kept: list[str], tiny_folder: Path, data_file: Path
) -> None:
    out = data_file.parent / "run"
    done = sent(f"{where} 15", "run", data_file, "-m", tiny_folder, "-o", out, *SETTINGS)
    assert done.returncode == 143
    assert said in last_line(done)
    assert out.exists() == bool(kept)
    assert all((out / name).exists() for name in kept)
    if kept:
        status = read_status(out)
        assert status is not None
        assert (status.state, status.why) == ("stopped", "SIGTERM")


def signal_in_step(patch: pytest.MonkeyPatch, at: int, number: int = signal.SIGTERM) -> None:
    step, taken = training._step, 0

    def sends(*given: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == at:
            os.kill(os.getpid(), number)
        return step(*given)

    patch.setattr(training, "_step", sends)


def tuned(model: Path, out: Path, *, resume: bool = False, **how: Any) -> Run:
    settings = resolve(values=USUAL | how)
    return run(rows(30), model, out, settings, answers=False, resume=resume, screen=Screen(quiet=True))


@pytest.mark.parametrize(
    "how",
    [
        {"save_every": "0"},  # what is asked for once is saved all the same
        {"patience": 3, "eval_every": 1, "learning_rate": 0.05, "schedule": "constant", "save_every": "10m"},
    ],
    ids=["never saved", "patience"],
)
@pytest.mark.slow
def test_it_goes_on_to_the_same_end_with_the_best_model_of_before(
    how: dict[str, Any], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(tiny_folder, tmp_path / "whole", **how)
    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        signal_in_step(patch, 4)
        tuned(tiny_folder, tmp_path / "run", **how)
    assert (stopped.value.number, stopped.value.kept) == (signal.SIGTERM, "after step 4 of 9, which is saved")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000000004"
    if "patience" in how:
        assert (checkpoint / "best.safetensors").is_file()
        assert (checkpoint.parent / "best.safetensors").is_file()
    with monkeypatch.context() as patch:
        signal_in_step(patch, 99)
        tuned(tiny_folder, tmp_path / "run", resume=True, **how)
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


def test_the_handlers_of_a_program_that_trains_are_its_own(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own handler has the signal after the step is saved, and is there again afterwards."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    own = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        signal_in_step(monkeypatch, 2)
        how: dict[str, Any] = {"model": tiny_folder, "out": tmp_path / "run", "max_steps": 4, "max_new_tokens": 2}
        with pytest.raises(StoppedEarly, match="stopped after step 2 of 4, which is saved; the same call with resume"):
            instil.finetune(rows(30), **how)
        assert came == [signal.SIGTERM]
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == own
        assert instil.finetune(rows(30), resume=True, **how).steps == 4
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_ends_a_library_call_as_it_does_others(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal_in_step(monkeypatch, 2, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            instil.finetune(rows(30), model=tiny_folder, out=tmp_path / "run", max_steps=4, max_new_tokens=2)
    finally:
        signal.signal(signal.SIGINT, before)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["why"]) == ("stopped", "SIGINT; after step 2 of 4, which is saved")


def test_no_handler_is_set_in_another_thread_or_over_one_that_ignores() -> None:
    # A shell that starts this in the background has it ignore SIGINT.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _no_handler_is_set()
    finally:
        signal.signal(signal.SIGINT, ignored)


def _no_handler_is_set() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[object] = []

    def other() -> None:
        with Stop(quiet=True):
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == before
    held = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop(quiet=True) as stop:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) == stop._came
    finally:
        signal.signal(signal.SIGHUP, held)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_run_in_another_thread_goes_on_whatever_the_main_one_does(tiny_folder: Path, tmp_path: Path) -> None:
    made: list[Run] = []
    thread = threading.Thread(
        target=lambda: made.append(tuned(tiny_folder, tmp_path / "run", max_steps=2, eval_every=0))
    )
    thread.start()
    thread.join()
    assert made[0].steps == 2


def test_a_second_run_does_not_clear_the_folder_of_one_that_trains(tiny_folder: Path, data_file: Path) -> None:
    """19, as a user meets it: exit 3 naming process and host, and the first one ends as if nothing had happened."""
    out = data_file.parent / "run"
    endless = [sys.executable, "-m", "instil.cli", "train", data_file, "-m", tiny_folder, "-o", out]
    endless += ["-s", "train.epochs=100000", "-s", "train.eval_every=0"]
    with subprocess.Popen(list(map(str, endless)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        try:
            assert first.stderr is not None
            assert any("step    5/" in line for line in first.stderr)
            for more in ("--overwrite", "--resume"):
                second = subprocess.run(
                    list(map(str, [*endless, more])), capture_output=True, text=True, timeout=120, check=False
                )
                assert second.returncode == 3
                said = second.stderr.strip().splitlines()[-1]
                assert said.startswith(f"instil: {out}: process {first.pid} on {os.uname().nodename} is at work there;")
            first.send_signal(signal.SIGTERM)
            _, rest = first.communicate(timeout=120)
        finally:
            first.kill()
    assert first.returncode == 143
    assert "which is saved. To go on: instil train" in rest
    written = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in written] == list(range(len(written)))
