"""Loggers are told of a training, and whatever they do, it ends as it would have ended without them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from instil import machine
from instil.errors import SettingsError
from instil.recipes.run.run import run
from instil.runs.folder import RunFolder
from instil.runs.loggers import libraries, observer
from instil.runs.loggers.libraries import LOGGERS, need_loggers
from instil.runs.loggers.logger import About, Aside, Logger
from instil.runs.loggers.observer import values_of
from instil.screen import Screen
from instil.settings.log import LogOptions
from instil.settings.resolve import resolve
from instil.train.metrics import StepRecord
from tests.conftest import rows
from tests.kills.left import left_by

USUAL: dict[str, Any] = {
    "max_steps": 3, "eval_every": 1, "max_new_tokens": 3, "max_length": 64, "order": "book", "log.to": ["tensorboard"],
}  # fmt: skip


class Kept:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.about: list[About] = []
        self.values: dict[int, Mapping[str, float]] = {}
        self.ends: list[bool] = []

    def begin(self, about: About) -> None:
        self.about.append(about)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.values[step] = values

    def end(self, *, finished: bool) -> None:
        self.ends.append(finished)


class Raises(Kept):
    """Breaks, at the beginning or later."""

    def __init__(self, at: str, error: BaseException) -> None:
        super().__init__()
        self.at, self.error = at, error

    def begin(self, about: About) -> None:
        self.fail("begin")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.fail("log")

    def end(self, *, finished: bool) -> None:
        self.fail("end")

    def fail(self, here: str) -> None:
        if here == self.at:
            raise self.error


class Hangs(Raises):
    """Never comes back, like a login that nobody answers."""

    def __init__(self, at: str) -> None:
        super().__init__(at, RuntimeError())
        self.released = threading.Event()

    def fail(self, here: str) -> None:
        if here == self.at:
            self.released.wait()


class Said(Screen):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str, style: str = "") -> None:
        self.lines.append(text)

    @property
    def of_loggers(self) -> list[str]:
        return [line for line in self.lines if "log.to" in line]


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Callable[[Logger], None]:
    """Puts a logger in TensorBoard's place, and shortens the waiting for one that hangs; others may take their time."""

    def place(logger: Logger) -> None:
        monkeypatch.setitem(LOGGERS, "tensorboard", lambda: logger)
        monkeypatch.setattr(libraries, "find_spec", lambda name: object())
        wait = 0.2 if isinstance(logger, Hangs) else 60.0
        monkeypatch.setattr(observer, "WAIT", wait)
        monkeypatch.setattr(observer, "BROKEN_OFF", wait)
        monkeypatch.setattr(machine, "_left_behind", [])

    return place


def tuned(folder: Path, out: Path, screen: Screen | None = None, **how: Any) -> Path:
    settings = resolve(values={**USUAL, **how})
    return run(rows(20), folder, out, settings, answers=False, screen=screen or Screen(quiet=True)).path


def made(run: Path) -> dict[str, Any]:
    """What a training leaves, but for who is told of it."""
    found = left_by(run)
    del found["run.toml"]["settings"]["log"]
    return found


@pytest.fixture(scope="module")
def without(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a training leaves that nobody else is told of."""
    return made(tuned(tiny_folder, tmp_path_factory.mktemp("without") / "run", **{"log.to": []}))


def test_a_logger_is_told_of_every_step(tiny_folder: Path, tmp_path: Path, put: Callable[[Logger], None]) -> None:
    kept = Kept()
    put(kept)
    tuned(tiny_folder, tmp_path / "mine", Said(), **{"log.project": "colours"})
    (about,) = kept.about
    assert (about.name, about.project, about.online, about.after) == ("mine", "colours", False, None)
    assert about.folder == tmp_path / "mine" / "logs"
    assert about.facts["train.max_steps"] == 3
    assert about.facts["model"] == str(tiny_folder)
    lines = [json.loads(line) for line in (tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()]
    assert list(kept.values) == [line["step"] for line in lines] == [0, 1, 2, 3]
    for line, values in zip(lines, kept.values.values(), strict=True):
        assert values.get("train/loss") == line["train_loss"]
        assert values["validation/loss"] == line["val_loss"]
    assert kept.ends == [True]


@pytest.mark.parametrize("at", ["begin", "log", "end"])
def test_a_logger_that_raises_is_named_once_and_changes_nothing(
    at: str, tiny_folder: Path, tmp_path: Path, put: Callable[[Logger], None], without: dict[str, Any]
) -> None:
    error = SystemExit("no login") if at == "begin" else ConnectionError("no network")
    put(Raises(at, error))
    screen = Said()
    assert made(tuned(tiny_folder, tmp_path / "run", screen)) == without
    (said,) = screen.of_loggers
    assert said == f"  log.to: tensorboard is switched off for this run: {type(error).__name__}: {error}"


@pytest.mark.parametrize("at", ["begin", "log", "end"])
def test_a_logger_that_hangs_changes_nothing(
    at: str, tiny_folder: Path, tmp_path: Path, put: Callable[[Logger], None], without: dict[str, Any]
) -> None:
    hangs, screen = Hangs(at), Said()
    put(hangs)
    try:
        assert made(tuned(tiny_folder, tmp_path / "run", screen)) == without
        (said,) = screen.of_loggers
        assert "tensorboard has not ended and is left behind" in said
        assert machine._left_behind == ["tensorboard"]
    finally:
        hangs.released.set()


def test_a_slow_logger_holds_nothing_up_and_what_is_left_out_is_counted() -> None:
    hangs = Hangs("log")
    aside = Aside("slow", hangs, room=3)
    try:
        for step in range(10):
            aside.ask(lambda logger, step=step: logger.log(step, {}))  # type: ignore[misc]
        assert 6 <= aside.left_out <= 7  # three wait, and one may be with it already
    finally:
        hangs.released.set()
        aside.close(lambda logger: logger.end(finished=True))
        assert aside.ended(time.monotonic() + 60)


def test_a_training_that_is_broken_off_tells_its_loggers(
    tiny_folder: Path, tmp_path: Path, put: Callable[[Logger], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept()
    put(kept)
    steps = 0

    def dies(record: StepRecord) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2:
            raise KeyboardInterrupt
        return values_of(record)

    monkeypatch.setattr(observer, "values_of", dies)
    with pytest.raises(KeyboardInterrupt):
        tuned(tiny_folder, tmp_path / "run")
    assert kept.ends == [False]


def test_who_goes_on_is_the_same_run_and_says_after_what(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.write_settings({"created": "2026-11-30T10:00:00+00:00", "data": "x", "settings": {}, "hashes": {}})
    one, two = (observer.about_of(LogOptions(to=("wandb",)), folder) for _ in range(2))
    assert one.key == two.key
    folder.write_settings({"created": "2026-11-30T11:00:00+00:00", "data": "x", "settings": {}, "hashes": {}})
    assert observer.about_of(LogOptions(to=("wandb",)), folder).key != one.key


def test_only_finite_numbers_are_told() -> None:
    record = StepRecord(2, 0.5, 30, float("nan"), None, 1e-4, 0.1, 100.0, metrics={"margin": 0.25})
    assert dict(values_of(record)) == {
        "train/learning_rate": 1e-4,
        "train/tokens_per_second": 100.0,
        "train/epoch": 0.5,
        "train/tokens_seen": 30.0,
        "train/margin": 0.25,
    }


def test_a_missing_library_is_refused_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda name: None if name == "mlflow" else object())
    with pytest.raises(SettingsError, match=r"log.to=wandb,mlflow needs mlflow: pip install 'instil\[mlflow\]'"):
        need_loggers(["wandb", "mlflow"])
    need_loggers(["wandb"])


def test_an_unknown_logger_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"log.to='comet'.*'tensorboard', 'wandb', 'trackio' or 'mlflow'"):
        resolve(values={"log.to": ["comet"]})
    assert resolve(assignments=["log.to=wandb, mlflow,wandb"]).log.to == ("wandb", "mlflow")


LIBRARY = """
import atexit, threading, time

class _Hangs:
    def __getattr__(self, name):
        return lambda *args, **more: time.sleep(600)

def init(**how):
    print("hello from a library")
    atexit.register(time.sleep, 600)
    threading.Thread(target=time.sleep, args=(600,)).start()  # which Python would wait for
    time.sleep(600)
"""


def test_the_process_ends_though_a_library_does_not(tiny_folder: Path, data_file: Path, tmp_path: Path) -> None:
    """A stand-in for trackio that never comes back and leaves threads and clean-up that never end."""
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries" / "trackio.py").write_text(LIBRARY)
    code = (
        "import sys; from instil.runs.loggers import observer; observer.WAIT = 0.5; "
        "from instil.cli import main; sys.argv[0] = 'instil'; main()"
    )
    path = os.pathsep.join([str(tmp_path / "libraries"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", code, "train", str(data_file), "-m", str(tiny_folder), "-o", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--json", "-s", "train.max_steps=1", "-s", "log.to=trackio"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "trackio has not ended and is left behind" in done.stderr
    assert json.loads(done.stdout)["steps"] == 1  # and nothing else stands there
