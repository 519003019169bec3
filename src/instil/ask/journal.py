"""The journal of verdicts, or of texts that a model wrote: a line each, on disk before the next is waited for.

No line is ever rewritten.

A line is found again by its key, the hash of everything that shaped the request: model, prompt, row, answer and
settings. So nothing is asked twice, and nothing that was changed is mistaken for what it was. Verdicts without a
score are written down, too, but are asked for anew the next time. A last line that was torn by a crash is cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from instil.errors import DataError, RunFolderTaken, StoppedEarly

START = b'{"key": "'  # of every line


def key_of(*parts: Any) -> str:
    """The SHA-256 of values as JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Journal:
    """Verdicts by their keys, kept in a file; without a file they are kept in memory only.

    Use it in a ``with`` block; one process at a time may hold the same file. With ``sync_every`` a line is with the
    system at once, so that no kill loses it, and on disk within about so many seconds, which is what a power failure
    may cost.

    Raises:
        RunFolderTaken: another process holds it.
        DataError: the file cannot be read or written.
    """

    def __init__(self, path: Path | None = None, *, sync_every: float = 0.0) -> None:
        self.path = path
        self._sync_every, self._synced = sync_every, 0.0
        self.damaged = 0  # lines that could not be read
        self._entries: dict[str, dict[str, Any]] = {}
        self._failures: Counter[str] = Counter()
        self._doubted: dict[str, dict[str, Any]] = {}
        self._file: Any = None
        self._lock = FileLock(path.with_name(f".{path.name}.lock")) if path else None

    def __enter__(self) -> Self:
        if self.path is None or self._lock is None:
            return self
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self._read(self.path)
            self._file = self.path.open("ab")
            _sync_folder(self.path.parent)  # else the name of a new file may be lost though its lines are not
        except Timeout as error:
            _check_folder(self.path)
            raise RunFolderTaken(f"{self.path}: another process is at work there; wait for it, or stop it") from error
        except OSError as error:
            self._lock.release()
            raise DataError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # what could not be written has been told
                if self._sync_every:
                    os.fsync(self._file.fileno())
            with suppress(OSError):
                self._file.close()
            self._file = None
        if self._lock is not None:
            self._lock.release()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: str) -> dict[str, Any] | None:
        """What was written down under a key, if it has an outcome that counts."""
        return self._entries.get(key)

    def failures(self, key: str) -> int:
        """How many lines under a key say that it ``failed``."""
        return self._failures[key]

    def doubt(self, key: str, entry: dict[str, Any]) -> int:
        """Keep an outcome that counts once `settle` is called; returns how many such there are."""
        self._doubted[key] = entry
        return len(self._doubted)

    def settle(self) -> None:
        """Write down what was doubted."""
        for key, entry in self._doubted.items():
            self.add(key, entry, counts=True)
        self._doubted.clear()

    def add(self, key: str, entry: dict[str, Any], *, counts: bool) -> None:
        """Write a line down, and to disk; ``counts`` is whether `find` shall find it."""
        self._know(key, entry, counts)
        if self._file is not None:
            line = json.dumps({"key": key, **entry, "counts": counts}, ensure_ascii=False)
            try:
                self._file.write(line.encode("utf-8", "replace") + b"\n")
                self._file.flush()
                if not self._sync_every or time.monotonic() - self._synced >= self._sync_every:
                    os.fsync(self._file.fileno())
                    self._synced = time.monotonic()
            except OSError as error:
                raise StoppedEarly(
                    f"{self.path}: cannot be written: {error.strerror or error}. What came before is kept in it; "
                    "make room, and the same command asks for the rest"
                ) from error

    def _know(self, key: str, entry: dict[str, Any], counts: bool) -> None:
        if counts:
            self._entries[key] = entry
        self._failures[key] += entry.get("failed") is True

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        raw = path.read_bytes()
        whole = self._take(path, raw)
        if whole < len(raw):  # torn
            self.damaged += 1
            with path.open("r+b") as file:
                file.truncate(whole)

    def _take(self, path: Path, raw: bytes) -> int:
        """Know the whole lines of a file; returns how many bytes they are.

        Raises:
            DataError: it is no journal.
        """
        whole = raw.rfind(b"\n") + 1
        lines = [line for line in raw[:whole].split(b"\n") if line]
        for line in lines:
            try:
                entry = json.loads(line)
                key, counts = entry.pop("key"), entry.pop("counts")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                self.damaged += 1
                continue
            if isinstance(key, str):
                self._know(key, entry, counts is True)
        if raw and not raw.startswith(START) and (not lines or self.damaged == len(lines)):
            raise DataError(f"{path} is no journal, so it is left alone; move it elsewhere")
        return whole


def _check_folder(path: Path) -> None:
    """Where no file can be made at all (``/proc``), the lock waits in vain as it does for another process.

    Raises:
        DataError: so it is.
    """
    try:
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written, no file can be made in its folder: {error.strerror or error}; choose another"
        ) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
