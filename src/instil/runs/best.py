"""The best model of a run, kept on disk while training goes on: in memory it would be a second model."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from instil.errors import InstilError
from instil.files import unfinished_of, write_whole
from instil.model.decoder import Decoder
from instil.model.files.safetensors import Later, SafetensorsFile, write_safetensors
from instil.model.load import blank_decoder
from instil.model.lora import trained_parameters
from instil.settings.options import Settings, steps_and_seconds
from instil.tasks.adapters import adapt

CHECKPOINTS = 3  # that lie there at once
FLOAT = 4  # bytes of a number that is trained


@dataclass(frozen=True, slots=True)
class BestOnDisk:
    """Keeps what is trained in one file, which is gone after the ``with`` block that it is used in.

    Where that is left by an error the file stays: it may be the best there is of a training.
    """

    path: Path
    warn: Callable[[str], None] = lambda line: None

    def __enter__(self) -> BestOnDisk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unfinished_of(self.path).unlink(missing_ok=True)
        if kind is None:
            self.path.unlink(missing_ok=True)

    def save(self, tensors: Mapping[str, Tensor | Later]) -> bool:
        """Write what is trained; the file appears whole or not at all.

        Returns:
            Whether it could be written; what was kept before is as it was where it could not, and that is told.
        """
        try:
            self.keep(tensors)
        except InstilError as error:
            self.warn(f"  {error}; training goes on")
            return False
        return True

    def keep(self, tensors: Mapping[str, Tensor | Later]) -> None:
        """Write these.

        Raises:
            InstilError: it cannot be written.
        """
        try:
            write_whole(self.path, lambda part: write_safetensors(part, tensors.items()))
        except OSError as error:
            with suppress(OSError):
                unfinished_of(self.path).unlink(missing_ok=True)
            raise InstilError(f"{self.path}: the best model cannot be kept: {error.strerror or error}") from error

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what was written."""
        file = SafetensorsFile(self.path)
        for name, tensor in tensors.items():
            tensor.copy_(file.get(name))

    def kept(self) -> Mapping[str, Tensor]:
        """What was written, in a map of the file: read as it is looked at, and not a second model in memory.

        Raises:
            OSError: somebody has removed or damaged it.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found: dict[str, Tensor] = load_file(self.path)
        except SafetensorError as error:
            raise OSError(errno.EIO, f"the best model so far is damaged: {error}", str(self.path)) from error
        except OSError as error:
            raise OSError(error.errno or errno.EIO, "the best model so far cannot be read", str(self.path)) from error
        return found


def saved_bytes(decoder: Decoder, settings: Settings) -> int:
    """What a run puts on disk at most besides checkpoints: its model, and the best one so far until that is saved.

    While the best one is kept the one that replaces it is there, too, but the model is not.
    """
    kept = 2 if settings.train.patience and settings.train.method == "full" else 1
    return kept * sum(parameter.nbytes for parameter in decoder.parameters())


def checkpoint_bytes(decoder: Decoder, settings: Settings) -> int:
    """What the checkpoints of a run take at most: two that are kept and one being written; 0 where none are wanted."""
    train = settings.train
    if not any(steps_and_seconds(train.save_every)):
        return 0
    trained = decoder.parameter_count
    if train.method == "lora":
        blank = blank_decoder(decoder.spec)
        adapt(blank, settings)
        trained = trained_parameters(blank)
    parts = 3 + bool(train.patience)  # weights, two moments, the best weights
    return CHECKPOINTS * parts * FLOAT * trained
