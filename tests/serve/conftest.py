"""A server on loopback with a tiny model, in a thread of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from instil.assistant.assistant import Assistant, load
from instil.serve.app import make_app
from instil.serve.models import Models, Served
from instil.serve.worker import Worker


@dataclass
class Running:
    """A server that answers at ``url``; ``twin`` is the same model, for asking beside it."""

    url: str
    worker: Worker
    twin: Assistant


@contextlib.contextmanager
def running(models: Models, **how: int) -> Iterator[tuple[str, Worker]]:
    """Serve some models until the block ends."""
    worker = Worker(models, **how)
    server = uvicorn.Server(uvicorn.Config(make_app(worker), port=0, log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", worker
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="package")
def server(tiny_folder: Path) -> Iterator[Running]:
    twin = load(tiny_folder, max_new_tokens=12)
    served = Served("tiny", load(tiny_folder, max_new_tokens=12), 1_700_000_000)
    base = Served("tiny:base", load(tiny_folder, max_new_tokens=12), 1_700_000_000, base_of="tiny")
    with running(Models([served, base]), under_way=64) as (url, worker):
        yield Running(url, worker, twin)
