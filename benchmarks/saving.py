"""What a checkpoint costs: seconds and bytes of a save, and its share of training that is saved every ten minutes.

``python -m benchmarks.saving`` trains ``smollm2-135m`` for two steps on ``starter``, in full and with adapters, and
saves the state that is there then several times, hashed and synced as a run saves it. What making the state takes (the
loss of the next step, by which a run that goes on proves itself) is told beside it. Prints a table in Markdown, and
JSON with ``--json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import hardware
from instil.model.decoder import Decoder
from instil.runs.checkpoints import Checkpoints
from instil.runs.saving import SHARE
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.tasks.prepare import load, prepare
from instil.tasks.tune import tune
from instil.train.metrics import StepRecord
from instil.train.observer import Observer, Pause
from instil.train.state import TrainState

METHODS = ("full", "lora")
EVERY = 600  # seconds: train.save_every=10m
STEPS = 2


class Saves(Observer):
    """Saves the state after the last step so many times, and keeps the seconds."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self._checkpoints, self._rounds = Checkpoints(folder), rounds
        self.seconds: list[float] = []
        self.making = self.step = 0.0
        self.bytes = 0
        self._asked = 0.0

    def on_train_begin(self, decoder: Decoder, steps: int) -> None:
        self._asked = time.perf_counter()

    def on_step(self, record: StepRecord) -> None:
        self.step = record.seconds / max(record.step, 1)

    def wants_state(self, pause: Pause) -> bool:
        self._asked = time.perf_counter()
        return pause.ends

    def on_state(self, state: TrainState) -> None:
        self.making = time.perf_counter() - self._asked
        for _ in range(self._rounds):
            started = time.perf_counter()
            path = self._checkpoints.save(state)
            self.seconds.append(time.perf_counter() - started)
            self.bytes = sum(file.stat().st_size for file in path.iterdir())


def measured(method: str, model: str, data: str, folder: Path, rounds: int) -> dict[str, Any]:
    """A training of two steps, and what saving it takes."""
    values = {"method": method, "max_steps": STEPS, "eval_batches": 1, "eval_every": 0}
    prepared = prepare(data, model, resolve(values=values), screen=Screen(quiet=True))
    saves = Saves(folder, rounds)
    tune(prepared, load(prepared), [saves])
    median = statistics.median(saves.seconds)
    cost = median + saves.making
    return {
        "method": method,
        "megabytes": saves.bytes / 1e6,
        "seconds": median,
        "longest": max(saves.seconds),
        "next_loss": saves.making,
        "step": saves.step,
        "share": cost / (max(EVERY, cost / SHARE) + cost),  # it waits longer where saves take long
    }


def table(found: list[dict[str, Any]]) -> str:
    """The same in Markdown."""
    lines = [
        "| what is trained | MB | seconds a save (longest) | loss of the next step, s | a step, s | share with 10m |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in found:
        save = f"{one['seconds']:.2f} ({one['longest']:.2f})"
        cells = f"{one['megabytes']:,.0f} | {save} | {one['next_loss']:.2f} | {one['step']:.2f} | {one['share']:.2%}"
        lines.append(f"| {one['method']} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Measure both methods."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saving", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="starter")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk that is meant")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="saving-", dir=chosen.folder))
    try:
        found = [measured(one, chosen.model, chosen.data, place / one, chosen.rounds) for one in METHODS]
    finally:
        shutil.rmtree(place)
    print(json.dumps({"machine": hardware(), "saving": found}) if chosen.json else table(found))


if __name__ == "__main__":
    main()
