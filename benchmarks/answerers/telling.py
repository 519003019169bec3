"""What an answerer is given, and what it tells: lines of JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders.track import MARK, peak_bytes


@dataclass(frozen=True)
class Questions:
    """What every answerer is given.

    ``stop_ids`` is empty where all answers are to have ``max_new_tokens``.
    """

    model: str
    folder: Path
    prompts: list[list[int]]
    max_new_tokens: int
    stop_ids: list[int]
    extra: dict[str, str]

    @staticmethod
    def read(path: Path, count: int) -> Questions:
        """The job of a file, with the first so many prompts."""
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored["prompts"] = stored["prompts"][:count]
        return Questions(**{**stored, "folder": Path(stored["folder"])})


class Tell:
    """Tells on the machine's monotonic clock."""

    def __init__(self) -> None:
        self._out = sys.stdout
        sys.stdout = sys.stderr  # what libraries print is no report

    def loaded(self) -> None:
        """The model is ready."""
        self._say({"event": "loaded", "at": time.monotonic()})

    def first(self) -> None:
        """The first token of the first prompt is there."""
        self._say({"event": "first", "at": time.monotonic()})

    def answered(self, work: Callable[[], Sequence[Sequence[int]]]) -> None:
        """Answer all prompts, and be timed; ids without end tokens."""
        started = time.monotonic()
        said = work()
        self._say({"event": "answered", "seconds": time.monotonic() - started, "ids": [list(ids) for ids in said]})

    def end(self, **facts: Any) -> None:
        """All is done."""
        self._say({"event": "end", "peak_bytes": peak_bytes(), **facts})

    def _say(self, what: dict[str, Any]) -> None:
        self._out.write(MARK + json.dumps(what) + "\n")
        self._out.flush()


def arguments() -> tuple[Questions, str, Tell]:
    """Job, variant and teller from the command line: ``JOB.json COUNT VARIANT``."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    path, count, variant = sys.argv[1:4]
    return Questions.read(Path(path), int(count)), variant, Tell()
