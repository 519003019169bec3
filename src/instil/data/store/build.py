"""Stores built once: under a lock, from where an earlier build ended, and named by what shapes them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from instil.data.store.examples import ExampleStore, write_examples
from instil.data.store.shards import (
    BATCH,
    FORMAT,
    batches_of,
    is_complete,
    read_manifest,
    shard_of,
    shard_path,
    size_of,
    write_manifest,
)
from instil.data.store.tokens import TokenStore, write_columns
from instil.data.store.workers import TURN, Job, Stopped, encode_shards, several
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer
from instil.downloads import cache_folder
from instil.errors import DataError
from instil.records import Example, Pair
from instil.screen import Screen
from instil.settings.options import Scored, TrainOn, Turns

GIB = 1024**3


def store_home() -> Path:
    """Where stores are kept: ``$INSTIL_HOME/store``."""
    return cache_folder() / "store"


def key_of(**what: object) -> str:
    """The name of all that shapes a store.

    >>> key_of(rows="a", train_on="all") == key_of(train_on="all", rows="a") != key_of(rows="a", train_on="response")
    True
    """
    return hashlib.sha256(json.dumps({"format": FORMAT, **what}, sort_keys=True).encode()).hexdigest()[:24]


def stored_examples(
    key: str,
    examples: Callable[[], Iterator[Example] | Iterator[Pair]],
    about: Callable[[], Mapping[str, object]],
    screen: Screen,
    expected: int = 0,
) -> ExampleStore:
    """The examples of a store, which is built if it is not there.

    Args:
        key: a hash of where they come from and of how they are read.
        examples: opens them, or the pairs; only asked for if they are not in a complete store.
        about: what else is to be known of them, asked for after the last one: kept in the manifest.
        screen: where progress is shown.
        expected: how many there are, if that is known.

    Raises:
        DataError: the store cannot be written; and what the examples raise.
    """
    folder = store_home() / f"rows-{key}"
    with _building(folder, screen) as needed:
        if needed:
            with screen.bar("storing rows", expected) as advance:
                rows = write_examples(folder, examples(), advance)
            write_manifest(folder, rows, **about())
    return ExampleStore(folder)


def stored_tokens(
    examples: ExampleStore,
    template: Template,
    tokenizer: Tokenizer,
    train_on: TrainOn,
    screen: Screen,
    turns: Turns = "all",
    stop: threading.Event | None = None,
    scored: Scored = "response",
) -> TokenStore:
    """The ids of a store's examples, encoded by several processes if they are not there.

    Of pairs those with the chosen answers; the others lie in the same folder (`instil.data.store.pairs.EncodedPairs`),
    and ``scored`` says what of both is scored.

    Raises:
        UserError: a row cannot be encoded, or the store not be written.
        Stopped: ``stop`` was set before that was done.
    """
    folder = store_home() / f"tokens-{tokens_key(examples, template, tokenizer, train_on, turns, scored)}"
    rows = len(examples)
    with _building(folder, screen, stop) as needed:
        if needed:
            count = shard_of(max(rows - 1, 0) // BATCH) + 1
            missing = [shard for shard in range(count) if not shard_path(folder, shard).is_file()]
            job = Job(examples.folder, folder, template, tokenizer, train_on, turns, scored)
            with screen.bar("encoding rows", rows) as advance:
                there = sum(len(batches_of(shard)) * BATCH for shard in range(count) if shard not in set(missing))
                advance(steps=min(there, rows))
                encode_shards(job, missing, rows, advance, stop)
            for left in folder.glob("*.unfinished"):
                left.unlink(missing_ok=True)
            write_manifest(folder, rows, ids=write_columns(folder, rows))
    return TokenStore(folder)


@contextmanager
def tokens_ahead(
    examples: ExampleStore,
    template: Template,
    tokenizer: Tokenizer,
    train_on: TrainOn,
    screen: Screen,
    turns: Turns = "all",
    scored: Scored = "response",
) -> Iterator[Callable[[], TokenStore]]:
    """What gives `stored_tokens`, which other processes may begin with at once, beside whatever is done in between.

    It waits for them, and raises what `stored_tokens` raises. What nobody asked for in the end is given up.
    """
    found: Future[TokenStore] = Future()
    stop = threading.Event()

    def encode() -> None:
        try:
            found.set_result(stored_tokens(examples, template, tokenizer, train_on, screen, turns, stop, scored))
        except BaseException as error:
            found.set_exception(error)

    if several(len(examples)) < 2:  # then it would be this process that encodes, which has other things to do

        def now() -> TokenStore:
            if not found.done():
                encode()
            return found.result()

        yield now
        return
    thread = threading.Thread(target=encode, daemon=True)
    thread.start()
    try:
        yield found.result
    finally:
        stop.set()
        thread.join()


def tokens_key(
    examples: ExampleStore,
    template: Template,
    tokenizer: Tokenizer,
    train_on: TrainOn,
    turns: Turns = "all",
    scored: Scored = "response",
) -> str:
    """The name of what the ids of these examples are shaped by."""
    of_pairs = {"scored": scored} if examples.paired else {}
    return key_of(
        rows=examples.folder.name,
        template=template.hash,
        tokenizer=tokenizer.hash,
        train_on=train_on,
        turns=turns,
        **of_pairs,
    )


def size_line(*folders: Path) -> str:
    """Where stores lie, how large they are, and how to be rid of them."""
    size = size_of(*folders)
    shown = f"{size / GIB:.1f} GB" if size >= GIB else f"{size / 1024**2:.0f} MB"
    them = " ".join(map(str, folders))
    return f"rows and their ids are kept for the next time ({shown}); to be rid of them: rm -r {them}"


@contextmanager
def _building(folder: Path, screen: Screen, stop: threading.Event | None = None) -> Iterator[bool]:
    """Whether a store is still to be built; of several processes one builds, and the others wait for it.

    A folder of another version, or a damaged one, makes way.

    Raises:
        Stopped: ``stop`` was set while another process was waited for.
    """
    from filelock import FileLock, Timeout

    if is_complete(folder):
        yield False
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: the folder cannot be made: {error.strerror or error}; INSTIL_HOME names another place to keep "
            "rows in"
        ) from error
    lock = FileLock(folder / "build.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        screen.say(f"  another process is putting the same rows into {folder}; waiting for it")
        while not lock.is_locked:
            if stop is not None and stop.is_set():
                raise Stopped from None
            with suppress(Timeout):
                lock.acquire(timeout=TURN)
    try:
        yield not is_complete(folder)
    finally:
        lock.release()


def manifest_of(examples: ExampleStore) -> dict[str, Any]:
    """What was written of the examples when they were stored."""
    return read_manifest(examples.folder)
