"""A server that writes, at an address of this machine, and no keys from outside."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from instil.ask import patience as asking
from tests.faults.judge_server import JudgeServer, judging


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "FIRST_WAIT", 0.01)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "INSTIL_API_KEY", "OLLAMA_API_KEY", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judging(say=lambda message, number: f"Said to {message}.") as running:
        yield running
