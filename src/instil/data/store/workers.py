"""Processes that encode a store's files, one file after another each.

They are programs of their own, spoken to over pipes: neither is anything of this process copied (its threads and locks
would be, by a fork), nor is the user's script run again (as `multiprocessing` does where it does not fork). A worker
whose parent is gone ends after the file it is at.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Any

import instil
from instil import errors
from instil.data.store.examples import ExampleStore
from instil.data.store.pairs import encoded_pairs
from instil.data.store.shards import batches_of, shard_path, write_shard
from instil.data.store.tokens import encoded_batches
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer

if TYPE_CHECKING:
    from instil.screen import Advance
    from instil.settings.options import Scored, TrainOn, Turns

FEWEST = 8192  # rows that are worth another process
TURN = 0.2  # seconds, in which somebody who waits sees that he need not


class Stopped(Exception):
    """Nobody wants the work any more."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be encoded, and how; ``scored`` is for pairs."""

    examples: Path
    tokens: Path
    template: Template
    tokenizer: Tokenizer
    train_on: TrainOn
    turns: Turns
    scored: Scored = "response"

    def encode(self, shard: int, examples: ExampleStore, advance: Advance) -> None:
        """Write one file."""

        def batches() -> Any:
            how = self.template, self.tokenizer, self.train_on, self.turns
            some = examples, batches_of(shard), *how
            made = encoded_pairs(*some, self.scored) if examples.paired else encoded_batches(*some)
            for batch, about in made:
                yield batch, about
                advance(steps=batch.num_rows)

        write_shard(shard_path(self.tokens, shard), batches())


def encode_shards(
    job: Job, shards: Sequence[int], rows: int, advance: Advance, stop: threading.Event | None = None
) -> None:
    """Write these files of a store, in several processes where that is worth it.

    Raises:
        UserError: a row cannot be encoded, or a file not be written.
        InstilError: a process ended before its work was done.
        Stopped: ``stop`` was set, and the processes are ended.
    """
    count = min(several(rows), len(shards))
    packed = _packed(job) if count > 1 else None
    stop = stop or threading.Event()
    if packed is not None:
        _in_processes(packed, shards, count, advance, stop)
        return

    def advance_unless_stopped(note: str = "", steps: int = 1) -> None:
        if stop.is_set():
            raise Stopped
        advance(note, steps)

    examples = ExampleStore(job.examples)
    for shard in shards:
        job.encode(shard, examples, advance_unless_stopped)


def several(rows: int) -> int:
    """How many processes are worth it for so many rows; fewer than two are none."""
    return min(processors(), rows // FEWEST)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _packed(job: Job) -> bytes | None:
    """A job for another process; None where it holds what cannot be sent."""
    try:
        return pickle.dumps(job) if sys.executable else None
    except (pickle.PicklingError, TypeError, AttributeError):
        return None


def _in_processes(job: bytes, shards: Sequence[int], count: int, advance: Advance, stop: threading.Event) -> None:
    home = str(Path(instil.__file__).parents[1])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "instil.data.store.workers"]
    todo: SimpleQueue[int] = SimpleQueue()
    for shard in shards:
        todo.put(shard)
    said: SimpleQueue[dict[str, Any]] = SimpleQueue()
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) for _ in range(count)
    ]
    threads = [threading.Thread(target=_drive, args=(one, job, todo, said), daemon=True) for one in processes]
    try:
        for thread in threads:
            thread.start()
        left = count
        while left:
            if stop.is_set():
                raise Stopped
            try:
                message = said.get(timeout=TURN)
            except Empty:
                continue
            if "rows" in message:
                advance(steps=message["rows"])
            elif "error" in message:
                raise getattr(errors, message["kind"], errors.InstilError)(message["error"])
            else:
                left -= 1
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for thread in threads:
            thread.join()
        for process in processes:
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):  # what could not be written any more
                    if pipe is not None:
                        pipe.close()


def _drive(
    process: subprocess.Popen[bytes], job: bytes, todo: SimpleQueue[int], said: SimpleQueue[dict[str, Any]]
) -> None:
    """Give a process one file after another, and pass on what it says."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(len(job).to_bytes(8, "little") + job)
        while True:
            try:
                shard = todo.get_nowait()
            except Empty:
                process.stdin.close()
                said.put({})
                return
            process.stdin.write(b"%d\n" % shard)
            process.stdin.flush()
            while (message := json.loads(process.stdout.readline() or b'{"gone": 1}')) != {"done": shard}:
                if "gone" in message:
                    raise BrokenPipeError
                said.put(message)
                if "error" in message:
                    return
    except Exception:  # whatever it is, nobody is to wait for this process
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        said.put(
            {
                "kind": "InstilError",
                "error": f"a process that encodes rows ended by itself (status {process.poll()}); the same command "
                "goes on after the files that are complete",
            }
        )


def serve(commands: IO[bytes], answers: IO[bytes]) -> None:
    """Encode the files that are asked for, until there are no more questions."""

    def say(**message: object) -> None:
        answers.write(json.dumps(message).encode() + b"\n")
        answers.flush()

    job: Job = pickle.loads(commands.read(int.from_bytes(commands.read(8), "little")))  # our parent's
    examples = ExampleStore(job.examples)
    gc.disable()  # rows hold no circles, and looking for some takes a sixth of the time
    for line in commands:
        try:
            job.encode(int(line), examples, lambda note="", steps=1: say(rows=steps))
            gc.collect()
            say(done=int(line))
        except errors.InstilError as error:
            say(error=str(error), kind=type(error).__name__)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:  # the parent is gone
        os._exit(1)
