"""A run with adapters, for what takes them elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import instil
from instil.model.fast import gemm
from tests.conftest import make_tinier, rows
from tests.recipes.test_export_gguf import folder_of


def tuned(model: Path, folder: Path, **lora: Any) -> Path:
    """A short run with adapters, whose template has control tokens."""
    return instil.finetune(
        rows(24), model=model, out=folder / "run", method="lora", lora={"rank": 4, **lora}, template="chatml",
        learning_rate=3e-2, max_steps=6, max_new_tokens=6,
    ).path  # fmt: skip


@pytest.fixture(scope="session")
def lora_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that it is made of."""
    return folder_of(tmp_path_factory.mktemp("base") / "model", "llama", max_position_embeddings=512)


@pytest.fixture(scope="session")
def lora_run(lora_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It."""
    return tuned(lora_base, tmp_path_factory.mktemp("adapted"))


@pytest.fixture(scope="module")
def one_backend() -> Iterator[None]:
    """All runs of a file multiply alike, and those of others as they like."""
    gemm.use_again(gemm.backend())
    yield
    gemm._before = ""
    gemm.backend.cache_clear()


@pytest.fixture(scope="session")
def tinier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is loaded and saved in a moment; nobody changes it."""
    return make_tinier(tmp_path_factory.mktemp("tinier"))
