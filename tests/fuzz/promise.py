"""What every target promises: a result, or one of the project's own errors."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from instil.errors import InstilError

Mutate = Callable[[bytes, int], bytes]  # libFuzzer's own mutation of bytes, to at most so many


@dataclass(frozen=True, slots=True)
class Target:
    """A door, and how to knock.

    Attributes:
        run: takes what came in; raises what the reader raises.
        seeds: good inputs to begin with.
        mutate: changes an input in ways that its form allows; None leaves it to libFuzzer.
        words: what the form is made of, for libFuzzer's own mutations.
        longest: bytes of an input.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    mutate: Callable[[bytes, Random, Mutate], bytes] | None = None
    words: tuple[bytes, ...] = ()
    longest: int = 20_000


def keep(target: Target, given: bytes) -> None:
    """Put an input through a target.

    Raises:
        BaseException: whatever is not the project's own error.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target.run(given)
        except InstilError as error:
            str(error).encode("utf-8", "replace")


_PLACE: list[Path] = []


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder, always the same, so that no message hangs on its name; in memory where there is such a place."""
    if not _PLACE:
        held = Path("/dev/shm")
        _PLACE.append(Path(tempfile.mkdtemp(prefix="instil-fuzz-", dir=held if os.access(held, os.W_OK) else None)))
    place = _PLACE[0] / "here"
    place.mkdir(parents=True, exist_ok=True)
    try:
        yield place
    finally:
        shutil.rmtree(_PLACE[0], ignore_errors=True)


@contextmanager
def file(name: str, content: bytes) -> Iterator[Path]:
    """A file with that content, in such a folder."""
    with folder() as place:
        (place / name).write_bytes(content)
        yield place / name
