"""What a run makes beside its training, kept as it is made, so that a run that goes on makes only the rest.

These are answers before and after, how likely the references are, and what a reference model thinks of preference
pairs: a line each in ``checkpoints/kept.journal``, found again by the hash of all that it depends on. Weights are part
of that, so nothing is taken for what another model would say. No kill loses a line that was written, a power failure
those of about the last second. When the run is finished, all of it lies in files of its own, and the journal goes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from instil.ask.journal import Journal, key_of
from instil.errors import DataError, StoppedEarly
from instil.files import record_of
from instil.model.decoder import Decoder
from instil.model.files.safetensors import Later, safetensors_pieces
from instil.records import Completion, Example, Verdict
from instil.runs.folder import RunFolder
from instil.screen import Screen

NAME = "kept.journal"
SYNCED = 1.0  # seconds


class Kept(Journal):
    """The journal of one run; in a ``with`` block. That it cannot be written is told of once, and ends no run.

    Args:
        path: the file; None keeps everything in memory only.
        screen: where it is told.
        about: what every key hangs on besides.
        others: files of processes that were more than there are now, whose lines are known as well.
    """

    def __init__(self, path: Path | None, screen: Screen, about: str = "", others: Sequence[Path] = ()) -> None:
        super().__init__(path, sync_every=SYNCED)
        self._screen, self._about, self._others = screen, about, others

    @staticmethod
    def of(folder: RunFolder, screen: Screen, rank: int = 0, world: int = 1) -> Kept:
        """That of a run. Of several processes that work on it each has one; what more of them have left is dealt."""
        more = [path for path in sorted(folder.checkpoints.glob(f"*.{NAME}")) if _taken_by(path, world) == rank]
        return Kept(folder.checkpoints / (NAME if not rank else f"{rank}.{NAME}"), screen, others=more)

    def __enter__(self) -> Self:
        try:
            super().__enter__()
        except DataError as error:
            self._screen.warn(f"  {error}; what is made is not kept for --resume")
        for path in self._others:
            with suppress(OSError, DataError):  # then it is made anew
                self._take(path, path.read_bytes())
        return self

    def keep(self, key: str, entry: Any) -> None:
        """Write something down that JSON can hold."""
        try:
            self.add(self._key(key), {"of": entry, "crc": _crc(entry)}, counts=True)
        except StoppedEarly as error:
            self._screen.warn(f"  {error.__cause__ or error!s}: what is made from here on is not kept for --resume")
            file, self._file = self._file, None
            with suppress(OSError):  # which tries once more to write what it holds
                file.close()
        self._entries.pop(self._key(key), None)  # nobody asks for what was made in this process

    def kept(self, key: str) -> Any:
        """What was written down; None where there is nothing, or it is damaged."""
        found = self.find(self._key(key))
        return found["of"] if found is not None and found.get("crc") == _crc(found.get("of")) else None

    def _key(self, key: str) -> str:
        return key_of(self._about, key) if self._about else key

    def _read(self, path: Path) -> None:
        try:
            super()._read(path)
        except DataError:  # such as zeros after a power failure
            self._screen.warn(f"  left aside: {path} is damaged; what it held is made anew")
            path.unlink()


class KeptAnswers:
    """The answers of one model in one form to some rows, and how likely their references are.

    Args:
        journal: where they are kept.
        about: the hash of all that shapes them but the row.
        examples: the rows.
    """

    def __init__(self, journal: Kept, about: str, examples: Sequence[Example]) -> None:
        self._journal, self.about = journal, about
        self._keys = [key_of("answer", about, example.row, example.as_json()) for example in examples]
        self._likely = [key_of("likelihood", about, example.row, example.as_json()) for example in examples]

    def answers(self) -> dict[int, Completion]:
        """Those that are there, by the places of their rows."""
        found = {at: self._journal.kept(key) for at, key in enumerate(self._keys)}
        return {at: Completion(**{**one, "ids": tuple(one["ids"])}) for at, one in found.items() if one is not None}

    def keep_answer(self, at: int, answer: Completion) -> None:
        """One more."""
        self._journal.keep(self._keys[at], asdict(answer))

    def likelihoods(self) -> dict[int, Verdict]:
        """Those that are there, by the places of their rows."""
        found = {at: self._journal.kept(key) for at, key in enumerate(self._likely)}
        return {at: record_of(Verdict, one) for at, one in found.items() if one is not None}

    def keep_likelihood(self, at: int, verdict: Verdict) -> None:
        """One more."""
        self._journal.keep(self._likely[at], asdict(verdict))


def forget_kept(folder: RunFolder) -> None:
    """Remove the journal: the run is finished.

    Raises:
        OSError: it cannot be removed.
    """
    for pattern in (NAME, f".{NAME}.lock", f"*.{NAME}", f".*.{NAME}.lock"):
        for file in folder.checkpoints.glob(pattern):
            file.unlink(missing_ok=True)


def _taken_by(path: Path, world: int) -> int | None:
    """Which of so many processes reads what one of more has left; None where it is that of one of these."""
    number = path.name.removesuffix(f".{NAME}")
    known = number.isascii() and number.isdecimal()
    return int(number) % world if known and int(number) >= world else None


def weights_hash(decoder: Decoder) -> str:
    """SHA-256 of a decoder's weights with their names; of those that are elsewhere one is read after another."""
    digest, elsewhere = hashlib.sha256(), decoder.elsewhere
    own = list(decoder.named_parameters())
    weights: Iterable[tuple[str, Tensor | Later]] = own
    if elsewhere is not None:
        like = [(name, torch.empty(one.shape, dtype=one.dtype, device="meta")) for name, one in own]
        weights = [(name, Later(one, partial(elsewhere.parameter, name))) for name, one in like]
    for piece in safetensors_pieces(weights):
        digest.update(piece)
    return digest.hexdigest()


def _crc(entry: Any) -> int:
    return zlib.crc32(json.dumps(entry, sort_keys=True).encode())
