"""Answers on their way to clients: begun before a status is sent, as server-sent events or lines of JSON.

A client that goes is noticed by the guard, which cancels the endpoint; that ends the pieces, and they end the work.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from instil.errors import InstilError
from instil.generate.request import TokenLogprobs
from instil.records import Finish
from instil.serve.errors import ServeError, as_serve_error
from instil.serve.worker import Piece


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


async def begun(pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    """The same pieces, once the first is there: what is wrong with a request is found before a status is sent.

    Raises:
        ServeError, InstilError: what making them raises.
    """
    first = await anext(pieces)

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
