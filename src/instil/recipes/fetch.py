"""Models and data sets brought here and verified, before they are needed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from instil.data.files.places import FETCHED, NAMED, comes_from_afar
from instil.data.files.rows import open_rows
from instil.errors import ModelError, did_you_mean
from instil.model.find import NAMED as MODELS
from instil.model.find import find_model


@dataclass(frozen=True, slots=True)
class Fetched:
    """What is there now."""

    name: str
    kind: Literal["model", "data"]
    path: Path

    @property
    def size(self) -> int:
        """Bytes on disk."""
        files = self.path.rglob("*") if self.path.is_dir() else (self.path,)
        return sum(file.stat().st_size for file in files if file.is_file())

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"name": self.name, "kind": self.kind, "path": str(self.path), "bytes": self.size}


def fetch(name: str) -> Fetched:
    """A model or data set by name, hub id or address: there and sound when this returns.

    OpenAI's files are read through and held against their checksums; of other models the header is held
    against the file, as whenever one is loaded. Rows are parsed.

    Raises:
        UserError: there is none of that name, it cannot be had, or it is damaged.
    """
    if name in NAMED:
        with resources.as_file(resources.files("instil.data") / NAMED[name]) as path:
            return Fetched(name, "data", path)
    if comes_from_afar(name):
        rows = open_rows(name)
        for _ in rows:
            pass
        folders = {file.parent for file in rows.files}
        return Fetched(name, "data", rows.files[0] if len(rows.files) == 1 else Path(os.path.commonpath(folders)))
    if "/" not in name and name not in MODELS and not Path(name).exists():
        known = [*MODELS, *NAMED, *FETCHED]
        raise ModelError(
            f"{name}: no model and no data set of that name; known names: {', '.join(known)}"
            + did_you_mean(name, known)
        )
    path = find_model(name)
    from instil.model.files.tensorflow import TensorflowCheckpoint
    from instil.model.load import open_model

    reader = open_model(path)
    if isinstance(reader, TensorflowCheckpoint):
        reader.verify()
    return Fetched(name, "model", path)
