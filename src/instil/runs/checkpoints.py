"""Checkpoints of a training on disk: complete or not there, whatever happens while they are written.

A checkpoint is a folder ``step-000000120``. It is written beside, as ``step-000000120.unfinished``: each file and the
folder are synced, last of all a manifest with the hash of every file, and only then does the folder take its name. The
one before is removed when that is on disk, too. So at every instant there is a complete one, if ever there was one.

Nothing in a checkpoint is executed when it is read: numbers are safetensors, the rest is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from instil.errors import InstilError, ModelError, parsing_problem
from instil.files import json_text, record_of, sha256_of, unfinished_of
from instil.model.files.safetensors import SafetensorsFile, safetensors_pieces
from instil.runs.identity import STEP
from instil.train.metrics import StepRecord
from instil.train.parallel.shards import PATTERN, Shards
from instil.train.state import Progress, TrainState

FORMAT = 1
TENSORS, BEST, PROGRESS, MANIFEST = "state.safetensors", "best.safetensors", "state.json", "manifest.json"
PREFIX, REMOVED, UNFINISHED = STEP, ".removed", unfinished_of(Path("step")).suffix
LARGEST_MANIFEST = 1 << 20
SPARE = 64 << 20  # bytes that a save leaves free


class CheckpointError(InstilError):
    """A checkpoint cannot be written; those that are there are as they were."""


class Disk:
    """All that a save does to a disk. (Tests put one in its place that fails.)"""

    def make(self, folder: Path) -> None:
        """Make a folder, and those that it lies in."""
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, file: FileIO, piece: bytes | memoryview) -> None:
        """Append to an open file."""
        left = memoryview(piece)
        while left:  # one call writes 2 GB at most
            left = left[file.write(left) :]

    def sync(self, file: FileIO) -> None:
        """Wait until a file's content cannot be lost."""
        os.fsync(file.fileno())

    def sync_folder(self, folder: Path) -> None:
        """Wait until the names in a folder cannot be lost; where folders cannot be opened (Windows) nothing is done."""
        if os.name == "nt":
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Give a folder another name, which must be free."""
        old.rename(new)

    def remove(self, folder: Path) -> None:
        """Remove a folder with all that is in it."""
        shutil.rmtree(folder)

    def free(self, folder: Path) -> int:
        """Bytes that can still be written there."""
        return shutil.disk_usage(folder).free


@dataclass(frozen=True, slots=True)
class Found:
    """The newest complete checkpoint, and what is wrong with those after it, one sentence each.

    ``state`` is None where there is none; its tensors are read from the file when they are looked at. ``versions`` are
    those that it was computed with.
    """

    state: TrainState | None
    damaged: tuple[str, ...] = ()
    versions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie.
        identity: what makes the run this one, such as hashes of model and data; checkpoints of another are not used.
        former: what it was before it was extended; checkpoints of these are used, too.
        versions: what it is computed with: libraries, processor, threads.
        keep: how many complete ones stay, at least 1.
        disk: what writes them.
    """

    folder: Path
    identity: Mapping[str, str] = field(default_factory=dict)
    former: Sequence[Mapping[str, str]] = ()
    versions: Mapping[str, Any] = field(default_factory=dict)
    keep: int = 2
    disk: Disk = field(default_factory=Disk)

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep is {self.keep}; wanted at least 1")

    def save(self, state: TrainState, first: Sequence[Callable[[], None]] = ()) -> Path:
        """Write a state down; returns its folder, which lies there whole when this returns.

        Args:
            state: what is saved.
            first: called before: what else must not be lost once there is a checkpoint.

        Raises:
            CheckpointError: there is no room, or it cannot be written; what was there before is as it was.
        """
        target = self._place(state)
        try:
            for call in first:
                call()
            self.disk.make(self.folder)
            self._sweep()
            self._check_room(state)
            unfinished = unfinished_of(target)
            try:
                self._write(unfinished, state)
                if target.exists():  # damaged: a training that goes on has passed it over
                    self.disk.rename(target, _removed(target))
                self.disk.rename(unfinished, target)
                self.disk.sync_folder(self.folder)
            except OSError:
                with suppress(OSError):
                    self.disk.remove(unfinished)
                raise
        except OSError as error:
            raise CheckpointError(
                f"{target}: the checkpoint cannot be written: {error.strerror or error}; those before it are kept"
            ) from error
        with suppress(OSError):  # the new one is there, and the next save tries again
            self._prune(target)
        return target

    def newest(self) -> Found:
        """The newest complete checkpoint of this run; every byte of it is compared with its hash."""
        damaged: list[str] = []
        for found in self._all():
            if not isinstance(found, str):
                state, versions = found
                return Found(state, tuple(damaged), versions)
            damaged.append(found)
        return Found(None, tuple(damaged))

    def tensors(self, step: int) -> Mapping[str, Tensor]:
        """Those of a checkpoint that was found to be whole."""
        return _tensors(self.folder / f"{PREFIX}{step:09}")

    def states(self) -> Iterator[TrainState]:
        """All that are complete, the newest first."""
        return (found[0] for found in self._all() if not isinstance(found, str))

    def _all(self) -> Iterator[tuple[TrainState, Mapping[str, Any]] | str]:
        """Checkpoints with what they were computed with, the newest first; or what is wrong with one."""
        for folder in reversed(self.complete()):
            try:
                yield self._read(folder)
            except (OSError, ValueError, TypeError, LookupError, ModelError, RecursionError) as error:
                yield f"{folder}: {_reason(error)}"

    def complete(self) -> list[Path]:
        """Checkpoints that were finished, by their names, the newest last; whether they are intact is not looked at."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            number = path.name.removeprefix(PREFIX)
            if path.name.startswith(PREFIX) and number.isascii() and number.isdecimal() and path.is_dir():
                found.append((int(number), path))
        return [path for _, path in sorted(found)]

    def drop_older(self) -> bool:
        """Make room: leave the newest that is whole; returns whether there were others.

        Raises:
            OSError: they cannot be removed.
        """
        found = self.newest().state
        others = [] if found is None else [one for one in self.complete() if one != self._place(found)]
        for path in others:
            self.disk.remove(path)
        return bool(others)

    def drop_after(self, done: int) -> None:
        """Remove those of more steps: training has gone back to where it was before them.

        Raises:
            OSError: they cannot be removed.
        """
        for path in self.complete():
            if int(path.name.removeprefix(PREFIX)) > done:
                self.disk.rename(path, _removed(path))
        self._sweep()

    def _place(self, state: TrainState) -> Path:
        return self.folder / f"{PREFIX}{state.progress.done:09}"

    def clear(self, keep: int = 0) -> None:
        """Remove all of them but so many of the newest, and what is left of others: the run is finished.

        Raises:
            OSError: they cannot be removed.
        """
        complete = self.complete()
        for path in complete[: len(complete) - keep]:
            self.disk.remove(path)
        self._sweep()

    def _sweep(self) -> None:
        """Remove what a process that died in the middle has left."""
        for path in sorted(self.folder.glob(f"{PREFIX}*")) if self.folder.is_dir() else ():
            if path.suffix in (REMOVED, UNFINISHED) and path.is_dir():
                self.disk.remove(path)

    def _check_room(self, state: TrainState) -> None:
        needed = sum(one.nbytes for tensors in (state.tensors, state.best) for one in tensors.values())
        free = self.disk.free(self.folder)
        if needed + SPARE > free:
            raise CheckpointError(
                f"{self.folder}: a checkpoint needs {needed / 1e9:.2f} GB beside those that are there, and "
                f"{free / 1e9:.2f} GB are free; make room, or set train.save_every=0"
            )

    def _write(self, folder: Path, state: TrainState) -> None:
        progress = {"progress": asdict(state.progress), "records": [one.as_json() for one in state.records]}
        files: dict[str, Iterable[bytes | memoryview]] = {PROGRESS: [json.dumps(progress).encode()]}
        if state.best:
            files[BEST] = safetensors_pieces(state.best.items())
        self.disk.make(folder)
        written = {path.name: _about(path) for path in self._write_parts(folder, state)}
        if not written:
            files = {TENSORS: safetensors_pieces(state.tensors.items()), **files}
        written |= {name: self._write_file(folder / name, pieces) for name, pieces in files.items()}
        about = {"format": FORMAT, "step": state.progress.done, "identity": dict(self.identity)}
        body = {**about, "versions": dict(self.versions), "files": written}
        self._write_file(folder / MANIFEST, [json_text({**body, "sha256": _hash_of(body)}).encode()])
        self.disk.sync_folder(folder)

    def _write_parts(self, folder: Path, state: TrainState) -> Iterable[Path]:
        """The files of tensors that others have parts of."""
        del folder, state
        return ()

    def _write_file(self, path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
        hashed, size = hashlib.sha256(), 0
        with path.open("wb", buffering=0) as file:
            for piece in pieces:
                self.disk.write(file, piece)
                hashed.update(piece)
                size += len(piece)
            self.disk.sync(file)
        return {"bytes": size, "sha256": hashed.hexdigest()}

    def _prune(self, newest: Path) -> None:
        """Leave the newest and those before it, as many as are kept; those with a higher number were passed over."""
        complete = self.complete()
        at = complete.index(newest)
        kept = complete[max(0, at + 1 - self.keep) : at + 1]
        for path in complete:
            if path not in kept:
                self.disk.rename(path, _removed(path))
        self._sweep()

    def _read(self, folder: Path) -> tuple[TrainState, Mapping[str, Any]]:
        """The state in a checkpoint, and the versions that it was computed with.

        Raises:
            OSError, ValueError, TypeError, LookupError, ModelError, RecursionError: it is damaged, or another run's.
        """
        if folder.is_symlink():
            raise ValueError("it is a link")
        body = _manifest(folder)
        if body["format"] != FORMAT:
            raise ValueError(f"it has format {body['format']}, and {FORMAT} is read here; another version wrote it")
        if body["identity"] not in [dict(one) for one in (self.identity, *self.former)]:
            found, own = body["identity"], self.identity
            apart = [key for key in dict.fromkeys([*own, *found]) if own.get(key) != found.get(key)]
            raise ValueError(
                "it is another run's: "
                + "; ".join(f"{key} is {found.get(key, 'unknown')}, here {own.get(key, 'unknown')}" for key in apart)
            )
        for name, about in body["files"].items():
            _check_file(folder / name, about)
        told = json.loads((folder / PROGRESS).read_bytes())
        progress = record_of(Progress, told["progress"])
        records = tuple(record_of(StepRecord, one) for one in told["records"])
        best = _Tensors(folder / BEST) if BEST in body["files"] else {}
        return TrainState(progress, records, _tensors(folder), best), dict(body.get("versions", {}))


def _tensors(folder: Path) -> Mapping[str, Tensor]:
    """Those in a checkpoint, in one file or in parts."""
    return _Tensors(folder / TENSORS) if (folder / TENSORS).exists() else Shards(folder)


class _Tensors(Mapping[str, Tensor]):
    """The tensors of a file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._file = SafetensorsFile(path)
        self._names = sorted(self._file.names())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _removed(path: Path) -> Path:
    return path.with_name(path.name + REMOVED)


def _hash_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _manifest(folder: Path) -> dict[str, Any]:
    """What a manifest says, which is compared with its own hash."""
    path = folder / MANIFEST
    if not path.exists():
        raise ValueError(f"{MANIFEST} is missing")
    if path.is_symlink() or path.stat().st_size > LARGEST_MANIFEST:
        raise ValueError(f"{MANIFEST} is a link or too large to be one")
    try:
        body = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{MANIFEST} is damaged: {parsing_problem(error)}") from error
    if not isinstance(body, dict) or body.pop("sha256", None) != _hash_of(body):
        raise ValueError(f"{MANIFEST} is damaged: it is not what its own hash says")
    parts = {name for name in body["files"] if PurePath(name).match(PATTERN)}
    names = {PROGRESS, *(parts or {TENSORS})}
    if not names <= body["files"].keys() <= names | {BEST}:
        raise ValueError(f"{MANIFEST} names other files than those of a checkpoint")
    return body


def _check_file(path: Path, about: Mapping[str, Any]) -> None:
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{path.name} is missing")
    if (size := path.stat().st_size) != about["bytes"]:
        raise ValueError(f"{path.name} is damaged: it has {size:,} bytes, and had {about['bytes']:,}")
    if _about(path) != about:
        raise ValueError(f"{path.name} is damaged: its bytes are not those that were written")


def _about(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"it cannot be read: {error.strerror or error}"
    return str(error) if isinstance(error, ValueError | ModelError) else "it is no checkpoint"
