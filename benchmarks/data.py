"""Rows to ids, and ids to the first step: how fast, in how much memory, and whether the cost is linear.

``python -m benchmarks.data`` makes synthetic rows of these sizes, puts them into a store in an empty folder, prepares a
training of it twice (the second time everything is there), and prints a table. Each size is measured in a process of
its own. ``--file`` measures the way from a JSON file to the first step as well.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import hardware

SIZES = (10_000, 100_000)
COMPARED = 3_000  # rows by which the ways to encode are compared
ROUNDS = 3
AT_ONCE = 1024


def examples(count: int) -> Iterator[Any]:
    """Rows of the length of those that people bring, no two alike: three of the starter set in one."""
    from instil.data.sources import read_source
    from instil.records import Example

    given = read_source("starter").examples
    for number in range(count):
        one, two, three = (given[(number * step + number // len(given)) % len(given)] for step in (1, 7, 31))
        yield Example(
            f"{one.instruction} {two.instruction} Say {number} first.",
            f"{number}: {one.output}\n{two.output}\n{three.output}",
            one.input,
            row=number,
        )


def encoding(model: str) -> dict[str, float]:
    """Rows a second of each way to encode, in one process; the best of several rounds."""
    from instil.data.encoding import encode, encode_many
    from instil.data.templates import template_named
    from instil.data.tokenizers import load_tokenizer
    from instil.model.find import find_model

    tokenizer, template, rows = load_tokenizer(find_model(model)), template_named("alpaca"), list(examples(COMPARED))
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


def one_size(count: int, model: str) -> dict[str, Any]:
    """Build and open a store of so many rows, in this process."""
    from instil.data.permutation import Feistel, shuffled
    from instil.data.sources import Source
    from instil.data.store.build import key_of, store_home, stored_examples, stored_tokens
    from instil.data.store.shards import size_of
    from instil.data.templates import template_named
    from instil.data.tokenizers import load_tokenizer
    from instil.model.find import find_model
    from instil.screen import Screen
    from instil.settings.resolve import resolve
    from instil.tasks.answers import Answers
    from instil.tasks.prepare import prepare

    screen, key = Screen(), key_of(rows="benchmark", count=count)
    tokenizer = load_tokenizer(find_model(model))
    marks = [time.perf_counter()]
    store = stored_examples(key, lambda: examples(count), lambda: {"sha256": key}, screen, count)
    marks.append(time.perf_counter())
    with _Watched() as workers:
        stored_tokens(store, template_named("alpaca"), tokenizer, "response", screen)
    marks.append(time.perf_counter())

    class Stored(Answers):
        def read(self, data: Any) -> Source:
            return Source("benchmark", store, key)

    settings = resolve(values={"eval_batches": 10})
    prepared = prepare("benchmark", model, settings, Stored(settings), screen)
    loader = prepared.training
    next(loader.steps())
    marks.append(time.perf_counter())
    order = shuffled(count, 1)
    if isinstance(order, Feistel):
        for first in range(0, count, 1 << 16):
            order.at(np.arange(first, min(first + (1 << 16), count), dtype=np.uint64))
    marks.append(time.perf_counter())
    storing, encoded, ready, ordered = np.diff(marks).tolist()
    return {
        "rows": count,
        "store_s": storing,
        "encode_s": encoded,
        "rows_per_s": count / encoded,
        "us_per_row": 1e6 * (storing + encoded) / count,
        "first_batch_s": ready,
        "order_s": ordered,
        "own_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "workers_mb": workers.most,
        "disk_mb": size_of(store_home()) / 1024**2,
    }


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
            held = 0.0
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
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
        file.write_text(json.dumps([row.as_json() for row in examples(count)]), encoding="utf-8")
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


def measured(*arguments: str) -> dict[str, Any]:
    """What a process of its own says, in an empty folder for stores."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "benchmarks.data", *arguments]
        said = subprocess.run(command, env={**os.environ, "INSTIL_HOME": home}, stdout=subprocess.PIPE, check=True)
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
        " | ".join(f"{row[name]:,}" if isinstance(row[name], int) else f"{row[name]:,.2f}" for name in names)
        for row in rows
    ]
    return "\n".join(f"| {line} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table for each kind of measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="rows of the stores")
    parser.add_argument("--file", type=int, nargs="*", default=(), help="rows of the JSON files")
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer is taken")
    parser.add_argument("--one", choices=["encoding", "size", "file"], help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.one:
        (count,) = asked.sizes
        one = {"encoding": lambda: encoding(asked.model)} | {
            "size": lambda: one_size(count, asked.model),
            "file": lambda: from_file(count, asked.model),
        }
        print(json.dumps(one[asked.one]()))
        return
    told = hardware()
    print(f"{told['cpu']}, {told['cores']} cores, {told['memory_gb']} GB, Python {told['python']}, {asked.model}\n")
    print(markdown([measured("--one", "encoding", "--sizes", "0", "--model", asked.model)]))
    for kind, counts in (("size", asked.sizes), ("file", asked.file)):
        found = [measured("--one", kind, "--sizes", str(count), "--model", asked.model) for count in counts]
        if found:
            print(f"\n{markdown(found)}")


if __name__ == "__main__":
    main()
