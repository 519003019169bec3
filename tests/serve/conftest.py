"""A server on loopback with a tiny model, in a thread of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from instil.assistant.assistant import Assistant, load
from instil.screen import Screen
from instil.serve.access import access_to
from instil.serve.app import make_app
from instil.serve.guard import Guard
from instil.serve.limits import Limits
from instil.serve.models import Models, Served
from instil.serve.server import Server, addresses, listen
from instil.serve.worker import Worker


@dataclass
class Running:
    """A server that answers at ``url``; ``twin`` is the same model, for asking beside it."""

    url: str
    worker: Worker
    twin: Assistant


@contextlib.contextmanager
def running(models: Models, **how: int) -> Iterator[tuple[str, Worker]]:
    """Serve some models, behind the guard, until the block ends."""
    worker = Worker(models, **how)
    sockets = listen("127.0.0.1", 0)
    limits = Limits(drain=1.0, last_call=0.1)
    screen = Screen(quiet=True)
    guard = Guard(make_app(worker), access_to(addresses(sockets)), limits=limits, screen=screen)
    server = Server(guard, limits=limits, screen=screen)
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}", worker
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
