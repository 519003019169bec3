"""The best model of a run, kept on disk while training goes on: in memory it would be a second model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from instil.errors import InstilError
from instil.files import unfinished_of, write_whole
from instil.model.decoder import Decoder
from instil.model.files.safetensors import SafetensorsFile, write_safetensors
from instil.settings.options import Settings


@dataclass(frozen=True, slots=True)
class BestOnDisk:
    """Keeps what is trained in one file, which is gone after the ``with`` block that it is used in.

    Where that is left by an error the file stays: it may be the best there is of a training.
    """

    path: Path

    def __enter__(self) -> BestOnDisk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unfinished_of(self.path).unlink(missing_ok=True)
        if kind is None:
            self.path.unlink(missing_ok=True)

    def save(self, decoder: Decoder) -> None:
        """Write what is trained; the file appears whole or not at all.

        Raises:
            InstilError: it cannot be written.
        """
        self.keep({name: parameter for name, parameter in decoder.named_parameters() if parameter.requires_grad})

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Write these; errors as those of `save`."""
        try:
            write_whole(self.path, lambda part: write_safetensors(part, tensors.items()))
        except OSError as error:
            raise InstilError(f"{self.path}: the best model cannot be kept: {error}; set train.patience=0") from error

    @torch.no_grad()
    def restore(self, decoder: Decoder) -> None:
        """Put back what was written."""
        file = SafetensorsFile(self.path)
        for name, parameter in decoder.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(file.get(name))

    def kept(self) -> Mapping[str, Tensor]:
        """What was written, in a map of the file: read as it is looked at, and not a second model in memory."""
        from safetensors.torch import load_file

        found: dict[str, Tensor] = load_file(self.path)
        return found


def saved_bytes(decoder: Decoder, settings: Settings) -> int:
    """What a run puts on disk at most: its model, or, while the best one is kept, that and the one that replaces it."""
    kept = 2 if settings.train.patience and settings.train.method == "full" else 1
    return kept * sum(parameter.nbytes for parameter in decoder.parameters())
