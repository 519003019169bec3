"""Answers on their way to clients: begun before a status is sent, ended when the client goes, as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from instil.errors import InstilError
from instil.generate.request import TokenLogprobs
from instil.records import Finish
from instil.serve.errors import ServeError, as_serve_error
from instil.serve.worker import Piece

Result = TypeVar("Result")
GONE = 499  # what nginx calls a client that went; nobody reads it


@dataclass(slots=True)
class Whole:
    """An answer from its beginning to its end; ``first``: when its first token came (`time.monotonic_ns`)."""

    text: str = ""
    tokens: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: Finish = "stop"
    first: int | None = None

    def add(self, piece: Piece) -> None:
        """Take what has come."""
        if piece.tokens and self.first is None:
            self.first = time.monotonic_ns()
        self.text += piece.text
        self.tokens += piece.tokens
        self.logprobs += piece.logprobs
        self.finish = piece.finish or self.finish


async def whole(pieces: AsyncIterator[Piece]) -> Whole:
    """All of an answer."""
    found = Whole()
    async for piece in pieces:
        found.add(piece)
    return found


async def while_there(request: Request, work: Awaitable[Result]) -> Result:
    """What comes of some work, which is broken off if the client goes before it is done.

    Raises:
        ServeError: the client went; and whatever the work raises.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            raise ServeError(GONE, "the client has gone")
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def begun(request: Request, pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    """The same pieces, once the first is there: what is wrong with a request is found before a status is sent.

    Raises:
        ServeError: the client went; and whatever making them raises.
    """
    first = await while_there(request, anext(pieces))

    async def rest() -> AsyncIterator[Piece]:
        try:
            yield first
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]

    return rest()


def lines(
    request: Request, flow: AsyncIterator[dict[str, Any] | str], line: Callable[[dict[str, Any] | str], str]
) -> StreamingResponse:
    """A reply of one line for each thing that comes, sent at once; an error in its midst is a last line of its own."""
    path, media_type = request.url.path, "application/x-ndjson" if line is json_line else "text/event-stream"

    async def text() -> AsyncIterator[str]:
        try:
            async for one in flow:
                yield line(one)
        except (InstilError, ServeError) as error:
            yield line(as_serve_error(error, "POST", path).body(path))
        finally:
            await flow.aclose()  # type: ignore[attr-defined]

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(text(), media_type=media_type, headers=headers)


def event_line(one: dict[str, Any] | str) -> str:
    """A server-sent event.

    >>> event_line("[DONE]"), event_line({"type": "a"})
    ('data: [DONE]\\n\\n', 'data: {"type": "a"}\\n\\n')
    """
    return f"data: {one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)}\n\n"


def named_event_line(one: dict[str, Any] | str) -> str:
    """A server-sent event with its type as its name, as the responses interface has it."""
    name = f"event: {one['type']}\n" if isinstance(one, dict) and "type" in one else ""
    return name + event_line(one)


def json_line(one: dict[str, Any] | str) -> str:
    """A line of JSON."""
    return json.dumps(one, ensure_ascii=False) + "\n"
