"""A little of the general material, so that runs in tests take no time for measuring it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from instil.evaluate.general import material as module

FULL = module.HOME  # before anything is in its place


def little(texts: int = 3, probes: int = 4, requests: int = 2) -> dict[str, Any]:
    """So many texts, probes of each of two skills, and requests of each kind, as the files have them."""
    full = {name: json.loads((FULL / f"{name}.json").read_text()) for name in ("texts", "skills", "refusals")}
    return {
        "texts": full["texts"][:texts],
        "skills": [{**skill, "probes": skill["probes"][:probes]} for skill in full["skills"][:2]],
        "refusals": {
            **full["refusals"],
            **{kind: full["refusals"][kind][:requests] for kind in ("harmful", "harmless")},
        },
        "chats": json.loads((FULL / "chats.json").read_text())[:3],
    }


@contextmanager
def little_material(given: dict[str, Any] | None = None) -> Iterator[None]:
    """Inside, this is all there is."""
    with tempfile.TemporaryDirectory(prefix="instil-general-") as place:
        for name, value in (given or little()).items():
            (Path(place) / f"{name}.json").write_text(json.dumps(value))
        with patch.object(module, "HOME", Path(place)):
            module.material.cache_clear()
            try:
                yield
            finally:
                module.material.cache_clear()
