"""The thread that answers: how much is under way is bounded, and it ends when it is told to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from instil.assistant.assistant import load
from instil.generate.answer import AnswerStream
from instil.generate.request import Request
from instil.serve import worker as module
from instil.serve.models import Models, Served
from instil.serve.worker import Busy, Piece, Stopping, Worker
from tests.serve.conftest import running


@pytest.fixture
def models(tiny_folder: Path) -> Models:
    return Models([Served("tiny", load(tiny_folder), 0)])


async def _answer(worker: Worker, tokens: int = 4) -> list[Piece]:
    served = worker.models["tiny"]
    text = AnswerStream(served.assistant.tokenizer)
    return [piece async for piece in worker.answer(served, Request([1, 2, 3], tokens), text)]


def test_one_more_than_may_be_under_way_is_refused(models: Models) -> None:
    async def ask() -> None:
        worker = Worker(models, under_way=2)
        worker.start()
        try:
            found = await asyncio.gather(*(_answer(worker) for _ in range(5)), return_exceptions=True)
            assert sum(isinstance(one, Busy) for one in found) == 3
            assert [sum(piece.tokens for piece in one) for one in found if isinstance(one, list)] == [4, 4]
            assert worker.under_way == 0
            assert await _answer(worker)
        finally:
            worker.stop()
        with pytest.raises(Stopping):
            await _answer(worker)

    asyncio.run(ask())


def test_what_is_under_way_is_told_of_the_end(models: Models) -> None:
    async def ask() -> None:
        worker = Worker(models)
        worker.start()
        task = asyncio.ensure_future(_answer(worker, 500))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(worker.stop)
        with pytest.raises(Stopping):
            await task

    asyncio.run(ask())


def test_what_was_made_of_the_weights_is_let_go_when_nothing_is_asked(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    monkeypatch.setattr(module, "IDLE", 0.05)
    monkeypatch.setattr(models["tiny"].assistant.engine, "close", lambda: closed.append(1))

    async def ask() -> None:
        worker = Worker(models)
        worker.start()
        await _answer(worker)
        await asyncio.sleep(0.3)
        assert closed
        assert await _answer(worker)
        worker.stop()

    asyncio.run(ask())


def test_busy_is_503_with_a_time_to_come_back(models: Models) -> None:
    with running(models, under_way=1) as (url, _):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Go."}], "stream": True, "max_tokens": 400}
        body |= {"logit_bias": {"50256": -100}}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body):
            refused = httpx.post(f"{url}/v1/chat/completions", json=body)
            ollama = httpx.post(f"{url}/api/chat", json={"model": "tiny", "messages": body["messages"]})
        assert (refused.status_code, ollama.status_code) == (503, 503)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["code"] == "busy"
        assert 'outcome="refused"' in httpx.get(f"{url}/metrics").text
