"""Rows to ids, and ids to the first step: how fast, in how much memory, and whether the cost is linear.

``python -m benchmarks.data`` makes synthetic rows of these sizes and kinds (`benchmarks.rows`), puts them into a store
in an empty folder, encodes them, looks for leaks, and prepares a training; then it opens what is there for another one.
Each of these is a process of its own, whose resident memory is told beside what it held before (``base_mb``: Python,
torch and this package, no model). ``--file`` measures the way from a JSON file to the first step as well, and
``--pairs`` that of preference pairs to the first batch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import hardware
from benchmarks.rows import KINDS, joined

SIZES = (10_000, 100_000)
COMPARED = 3_000  # rows by which the ways to encode are compared
ROUNDS = 3
AT_ONCE = 1024


def encoding(model: str) -> dict[str, float]:
    """Rows a second of each way to encode, in one process; the best of several rounds."""
    from instil.data.encoding import encode, encode_many
    from instil.data.templates import template_named
    from instil.data.tokenizers import load_tokenizer
    from instil.model.find import find_model

    tokenizer, template, rows = load_tokenizer(find_model(model)), template_named("alpaca"), list(joined(COMPARED))
    found: dict[str, list[float]] = {"encode": [], "encode_many": []}
    for _ in range(ROUNDS):
        started = time.perf_counter()
        one_by_one = [encode(row, template, tokenizer) for row in rows]
        found["encode"].append(time.perf_counter() - started)
        started = time.perf_counter()
        parts = [rows[first : first + AT_ONCE] for first in range(0, COMPARED, AT_ONCE)]
        together = [made for part in parts for made in encode_many(part, template, tokenizer)]
        found["encode_many"].append(time.perf_counter() - started)
        assert one_by_one == together
    tokens = sum(len(row.ids) for row in one_by_one) / COMPARED
    return {"tokens_a_row": tokens, **{name: COMPARED / min(seconds) for name, seconds in found.items()}}


def prepared_store(count: int, kind: str, model: str) -> dict[str, Any]:
    """Build a store of so many rows and encode it, in this process and those that it starts."""
    from instil.data.permutation import Feistel, shuffled
    from instil.data.store.build import store_home, stored_tokens
    from instil.data.store.shards import size_of
    from instil.data.templates import template_named
    from instil.data.tokenizers import load_tokenizer
    from instil.model.find import find_model
    from instil.screen import Screen

    base, tokenizer, marks = _resident(), load_tokenizer(find_model(model)), [time.perf_counter()]
    store = _store(count, kind)
    marks.append(time.perf_counter())
    with _Watched() as workers:
        stored_tokens(store, template_named("alpaca"), tokenizer, "response", Screen())
    marks.append(time.perf_counter())
    order = shuffled(count, 1)
    if isinstance(order, Feistel):
        for first in range(0, count, 1 << 16):
            order.at(np.arange(first, min(first + (1 << 16), count), dtype=np.uint64))
    marks.append(time.perf_counter())
    storing, encoded, ordered = np.diff(marks).tolist()
    return {
        "store_s": storing,
        "encode_s": encoded,
        "rows_per_s": count / encoded,
        "order_s": ordered,
        "base_mb": base,
        "own_mb": _peak(),
        "workers_mb": workers.most,
        "disk_mb": size_of(store_home()) / 1024**2,
    }


def gate(count: int, kind: str, model: str) -> dict[str, Any]:
    """Look for leaks in such a store, with the settings that are usual; nothing is kept of it."""
    from instil.data.leaks import looked_for
    from instil.data.splits import split_in_order
    from instil.data.store.results import Results  # what else a preparation imports
    from instil.settings.options import DataOptions

    del model, Results
    store, base = _store(count, kind), _resident()
    wall, own = time.perf_counter(), time.process_time()
    _, leaks = looked_for(split_in_order(store), DataOptions().leak_threshold)
    wall, own = time.perf_counter() - wall, time.process_time() - own
    counts = leaks.as_json()["counts"]
    return {
        "gate_s": wall,
        "gate_cpu_s": own,
        "us_per_row": 1e6 * own / count,
        "base_mb": base,
        "more_mb": max(0.0, _peak() - base),  # the peak is counted a little later than what is held
        "held_out": counts["held_out"],
        "alike": counts["alike"],
    }


def opened(count: int, kind: str, model: str) -> dict[str, Any]:
    """Prepare a training of such a store, up to its first batch; without the model, which takes what it takes."""
    from instil.data.sources import Source
    from instil.screen import Screen
    from instil.settings.resolve import resolve
    from instil.tasks.answers import Answers
    from instil.tasks.prepare import prepare

    base, started = _resident(), time.perf_counter()
    store = _store(count, kind)

    class Stored(Answers):
        def read(self, data: Any) -> Source:
            return Source("benchmark", store, store.folder.name)

    settings = resolve(values={"eval_batches": 10})
    prepared = prepare("benchmark", model, settings, Stored(settings), Screen())
    next(prepared.training.steps())
    return {"first_batch_s": time.perf_counter() - started, "base_mb": base, "own_mb": _peak()}


STAGES = {"store": prepared_store, "gate": gate, "first": opened, "again": opened}


def one_size(count: int, kind: str, model: str) -> dict[str, dict[str, Any]]:
    """All stages of a size, each in a process of its own, in one folder for stores that is empty at first."""
    found = {}
    with tempfile.TemporaryDirectory() as home:
        for stage in STAGES:
            told = measured("--one", stage, "--sizes", str(count), "--rows", kind, "--model", model, home=home)
            found[stage] = {"rows": count, "kind": kind, **told}
    return found


def _store(count: int, kind: str) -> Any:
    from instil.data.store.build import key_of, stored_examples
    from instil.screen import Screen

    key = key_of(rows="benchmark", count=count, kind=kind)
    return stored_examples(key, lambda: KINDS[kind](count), lambda: {"sha256": key}, Screen(), count)


def _resident() -> float:
    """MB that this process holds now; with torch, without which nothing is trained."""
    import torch  # noqa: F401

    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024**2


def _peak() -> float:
    """MB that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class _Watched(threading.Thread):
    """Looks at how much memory this process's children hold together, in MB, at most."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._done = 0.0, threading.Event()

    def __enter__(self) -> _Watched:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        while not self._done.wait(0.2):
            held, begun = 0.0, list[list[str]]()
            with suppress(OSError):  # a thread that has ended meanwhile
                begun = [one.read_text().split() for one in Path("/proc/self/task").glob("*/children")]
            for child in itertools.chain.from_iterable(begun):
                with suppress(OSError, IndexError):
                    pages = int(Path(f"/proc/{child}/statm").read_text().split()[1])
                    held += pages * resource.getpagesize() / 1024**2
            self.most = max(self.most, held)


def from_file(count: int, model: str) -> dict[str, Any]:
    """From a JSON file to the first optimizer step, with nothing there and once more.

    Prepared: looked at; ready: the model is loaded, and the first batch made; step: the first is done.
    """
    from instil.screen import Screen
    from instil.settings.resolve import resolve
    from instil.tasks.prepare import load, prepare
    from instil.train.loop import train

    settings = resolve(values={"max_steps": 1})
    found: dict[str, Any] = {"rows": count}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        file.write_text(json.dumps([row.as_json() for row in joined(count)]), encoding="utf-8")
        for when in ("first", "again"):
            started = time.perf_counter()
            prepared = prepare(file, model, settings, screen=Screen())
            found[f"{when}_prepared_s"] = time.perf_counter() - started
            decoder, loader = load(prepared), prepared.training
            loader.step(0)
            found[f"{when}_ready_s"] = time.perf_counter() - started
            options = settings.train.model_copy(update={"eval_every": 0})
            train(decoder, _First(loader), options)
            found[f"{when}_step_s"] = time.perf_counter() - started
    found["own_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def from_pairs(count: int, model: str) -> dict[str, Any]:
    """From a JSONL file of preference pairs to the first batch, leaks and doctor included, and once more.

    The seconds of processors are this process's and those of the processes that it started.
    """
    from instil.screen import Screen
    from instil.settings.resolve import resolve
    from instil.tasks.prepare import prepare

    settings = resolve(values={"objective": "dpo", "eval_batches": 10})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        with file.open("w", encoding="utf-8") as lines:
            for row in joined(count):
                other = " ".join(reversed(row.output.split()))
                sides = {"chosen": row.output, "rejected": f"{other} or so"}
                lines.write(json.dumps({**row.as_json(), **sides}) + "\n")
        found: dict[str, Any] = {"rows": count, "base_mb": _resident()}
        for when in ("first", "again"):
            started, cpu = time.perf_counter(), sum(os.times()[:4])
            with _Watched() as workers:
                prepared = prepare(file, model, settings, screen=Screen())
            found[f"{when}_prepared_s"] = time.perf_counter() - started
            found[f"{when}_cpu_s"] = sum(os.times()[:4]) - cpu
            next(prepared.training.steps())
            found[f"{when}_batch_s"] = time.perf_counter() - started
            found[f"{when}_mb"], found[f"{when}_peak_mb"] = _resident(), _peak()
            found["workers_mb"] = max(workers.most, found.get("workers_mb", 0.0))
            del prepared
    return found


class _First:
    """The first step of a loader, and no other."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return 1

    def steps(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """That step."""
        del epoch, start
        yield self._loader.step(0)


ALONE: dict[str, Callable[[int, str], dict[str, Any]]] = {
    "encoding": lambda _, model: encoding(model),
    "file": from_file,
    "pairs": from_pairs,
}


def measured(*arguments: str, home: str = "") -> dict[str, Any]:
    """What a process of its own says, with a folder for stores, which is empty unless it is named."""
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-m", "benchmarks.data", *arguments]
        environment = {**os.environ, "INSTIL_HOME": home or empty}
        said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table of what was measured.

    >>> print(markdown([{"rows": 10_000, "seconds": 1.25}]))
    | rows | seconds |
    | ---: | ---: |
    | 10,000 | 1.25 |
    """
    names = list(rows[0])
    lines = [" | ".join(names), " | ".join("---:" for _ in names)]
    lines += [
        " | ".join(f"{row[name]:,.2f}" if isinstance(row[name], float) else _shown(row[name]) for name in names)
        for row in rows
    ]
    return "\n".join(f"| {line} |" for line in lines)


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table for each kind of measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="rows of the stores")
    parser.add_argument("--file", type=int, nargs="*", default=(), help="rows of the JSON files")
    parser.add_argument("--pairs", type=int, nargs="*", default=(), help="pairs of the JSONL files")
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer is taken")
    parser.add_argument(
        "--rows", nargs="*", default=("varied",), choices=list(KINDS), help="kinds of rows in the stores"
    )
    parser.add_argument("--one", choices=[*ALONE, *STAGES], help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.one:
        (count,) = asked.sizes
        if asked.one in STAGES:
            print(json.dumps(STAGES[asked.one](count, asked.rows[0], asked.model)))
        else:
            print(json.dumps(ALONE[asked.one](count, asked.model)))
        return
    told = hardware()
    print(f"{told['cpu']}, {told['cores']} cores, {told['memory_gb']} GB, Python {told['python']}, {asked.model}\n")
    print(markdown([measured("--one", "encoding", "--sizes", "0", "--model", asked.model)]))
    sizes = [one_size(count, kind, asked.model) for kind in asked.rows for count in asked.sizes]
    for stage in STAGES if sizes else ():
        print(f"\n{stage}:\n{markdown([one[stage] for one in sizes])}")
    files = [measured("--one", "file", "--sizes", str(count), "--model", asked.model) for count in asked.file]
    if files:
        print(f"\nfrom a file:\n{markdown(files)}")
    pairs = [measured("--one", "pairs", "--sizes", str(count), "--model", asked.model) for count in asked.pairs]
    if pairs:
        print(f"\npairs from a file:\n{markdown(pairs)}")


if __name__ == "__main__":
    main()
