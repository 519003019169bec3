"""The thread that answers: how much is under way is bounded, and it ends when it is told to."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor

from instil.assistant.assistant import Assistant, load
from instil.errors import DataError, InstilError
from instil.generate.answer import AnswerStream
from instil.generate.request import Request
from instil.generate.sampling import Sampling
from instil.serve import worker as module
from instil.serve.models import Models, Served
from instil.serve.worker import Busy, Piece, Stopping, Worker
from tests.conftest import TINY_END
from tests.serve.conftest import running


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> Assistant:
    return load(tiny_folder)


@pytest.fixture
def models(loaded: Assistant) -> Models:
    return Models([Served("tiny", replace(loaded), 0)])  # with an engine of its own


async def _answer(worker: Worker, tokens: int = 4, name: str = "tiny", **more: Any) -> list[Piece]:
    served = worker.models[name]
    text = more.pop("text", None) or AnswerStream(served.assistant.tokenizer)
    return [piece async for piece in worker.answer(served, Request([1, 2, 3], tokens, **more), text)]


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
        body |= {"logit_bias": {str(TINY_END): -100}}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body):
            refused = httpx.post(f"{url}/v1/chat/completions", json=body)
            ollama = httpx.post(f"{url}/api/chat", json={"model": "tiny", "messages": body["messages"]})
        assert (refused.status_code, ollama.status_code) == (503, 503)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["code"] == "busy"
        assert 'outcome="refused"' in httpx.get(f"{url}/metrics").text


class Breaking:
    """A constraint that allows everything for some tokens, and then fails."""

    def __init__(self, after: int, error: Exception) -> None:
        self.left, self.error = after, error

    def allowed(self, size: int) -> Tensor:
        if not self.left:
            raise self.error
        return torch.ones(size, dtype=torch.bool)

    def take(self, token: int) -> None:
        self.left -= 1


class EndsBadly(AnswerStream):
    """A text that cannot be finished."""

    def finish(self) -> str:
        raise ValueError("no end")


@pytest.mark.parametrize(
    "how",
    [
        {"constraint": Breaking(2, DataError("no further"))},
        {"constraint": Breaking(0, RuntimeError("a panic"))},
        {"constraint": Breaking(2, DataError("no further")), "sampling": Sampling(temperature=1.0)},
        {"text": "ends badly"},
    ],
    ids=["held", "bug", "drawn", "end"],
)
def test_what_goes_wrong_with_one_answer_is_told_to_its_client_alone(models: Models, how: dict[str, Any]) -> None:
    tokenizer = models["tiny"].assistant.tokenizer

    async def ask() -> None:
        worker = Worker(models)
        worker.start()
        try:
            (alone,) = await asyncio.gather(_answer(worker, 20))
            more = {**how, "text": EndsBadly(tokenizer)} if "text" in how else how
            *found, broken = await asyncio.gather(
                _answer(worker, 20), _answer(worker, 20), _answer(worker, 9, **more), return_exceptions=True
            )
            assert isinstance(broken, InstilError), broken
            assert [_text(one) for one in found] == [_text(alone)] * 2
            assert worker.under_way == 0
            engine = models["tiny"].assistant.engine
            assert not engine._active and not engine._waiting and not engine._slots._taken
        finally:
            worker.stop()

    asyncio.run(ask())


def _text(pieces: Any) -> tuple[str, Any]:
    assert isinstance(pieces, list), pieces
    return "".join(piece.text for piece in pieces), pieces[-1].finish


def test_two_names_of_one_model_have_their_own_ends(models: Models) -> None:
    shared = models["tiny"].assistant
    both = Models([Served("a", shared, 0), Served("b", shared, 0)])

    async def ask() -> None:
        worker = Worker(both)
        worker.start()
        try:
            alone = await _answer(worker, 20, "a")
            broken = Breaking(3, DataError("no further"))
            found = await asyncio.gather(
                _answer(worker, 20, "a"),
                _answer(worker, 20, "b"),
                _answer(worker, 9, "b", constraint=broken),
                return_exceptions=True,
            )
            assert [_text(one) for one in found[:2]] == [_text(alone)] * 2
            assert isinstance(found[2], DataError)
        finally:
            worker.stop()

    asyncio.run(ask())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_is_no_more(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = models["tiny"].assistant.engine

    async def ask() -> None:
        worker = Worker(models)
        worker.start()
        step = engine.step

        def dies() -> Any:
            if engine.passes > 3:
                raise SystemExit
            return step()

        monkeypatch.setattr(engine, "step", dies)
        async with asyncio.timeout(10):
            found = await asyncio.gather(*(_answer(worker, 50) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(one, Stopping) for one in found)
        assert not worker.alive
        with pytest.raises(Stopping):
            await _answer(worker)
        worker.stop()

    asyncio.run(ask())


def test_many_models_share_the_memory_that_is_free(loaded: Assistant) -> None:
    several = [Served(f"m{at}", replace(loaded), 0) for at in range(8)]
    for one in several:
        one.assistant.engine.memory = 1200
    Worker(Models([*several, Served("again", several[0].assistant, 0)]))
    assert [one.assistant.engine.memory for one in several] == [300] * 8
    two = Models(several[:2])
    Worker(two)
    assert [one.assistant.engine.memory for one in two.values()] == [300, 300]


def test_a_request_that_cannot_be_lined_up_harms_no_other(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = models["tiny"].assistant.engine
    submit = engine.submit

    def breaks(request: Request) -> int:
        if request.max_new_tokens == 9:
            raise RuntimeError("a bug")
        return submit(request)

    async def ask() -> None:
        worker = Worker(models)
        worker.start()
        monkeypatch.setattr(engine, "submit", breaks)
        async with asyncio.timeout(10):
            fine, broken = await asyncio.gather(_answer(worker, 8), _answer(worker, 9), return_exceptions=True)
        assert isinstance(fine, list)
        assert isinstance(broken, InstilError)
        assert worker.alive
        assert worker.under_way == 0
        worker.stop()

    asyncio.run(ask())


def test_more_prompts_than_there_is_ever_room_for_are_refused_for_good(models: Models) -> None:
    with running(models, under_way=3) as (url, _):
        body = {"model": "tiny", "prompt": ["a"] * 4, "max_tokens": 1}
        refused = httpx.post(f"{url}/v1/completions", json=body)
        assert refused.status_code == 400
        assert "at most 3" in refused.json()["error"]["message"]
        assert httpx.post(f"{url}/v1/completions", json={**body, "prompt": ["a"] * 3}).status_code == 200
