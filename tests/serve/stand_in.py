"""A server that has the pages and OpenAI's endpoints, and models that say what a test wants, also when things go wrong.

What is asked decides: the first word of the question names how it is answered (`HOW`).
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from instil.assistant.assistant import Assistant
from instil.serve.models import Models, Served
from instil.serve.pages import OPEN, page_routes
from instil.settings.options import GenerateOptions

MARKDOWN = """Sort it with `sorted`, which leaves the list **as it was**:

```python
names = ["Ada", "grace", "Edsger"]
print(sorted(names, key=str.lower))
```

1. `sorted` gives a *new* list.
2. `list.sort` changes the one you have:
   - faster, by a little
   - gives `None`

| call | new list | changes |
| --- | :-: | ---: |
| `sorted(x)` | yes | 0 |
| `x.sort()` | no | 1 |

> Both are stable. See [the documentation](https://docs.python.org/3/howto/sorting.html).
"""
PLAIN = "The mitochondria are the parts of a cell that turn food into energy it can use."
BASE = "The cell The cell The cell is the cell of the cell. ### Instruction: What is"


def models_of(run: Path | None = None) -> Models:
    """A tuned model and its base, of which only is known what the pages ask for."""
    spec = SimpleNamespace(context=2048)
    assistant = cast(Assistant, SimpleNamespace(options=GenerateOptions(), decoder=SimpleNamespace(spec=spec)))
    return Models([Served("mine", assistant, 1, run), Served("mine:base", assistant, 1, base_of="mine")])


def app_of(
    folder: Path,
    root: Path | None = None,
    run: Path | None = None,
    key: str = "",
    asked: list[Any] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> FastAPI:
    """The application; ``asked`` gets the bodies of what it was asked."""
    app = FastAPI()
    models = models_of(run)
    app.include_router(page_routes(models, folder, root, stopping))

    @app.middleware("http")
    async def wants_key(request: Request, following: Any) -> Response:
        path = request.url.path
        is_open = any(path == one or (one.endswith("/") and one != "/" and path.startswith(one)) for one in OPEN)
        if key and not is_open and request.headers.get("authorization") != f"Bearer {key}":
            return JSONResponse({"error": {"message": "a key is wanted"}}, 401)
        return cast(Response, await following(request))

    @app.get("/v1/models")
    def listed() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in models]}

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        body = await request.json()
        if asked is not None:
            asked.append(body)
        how = body["messages"][-1]["content"].partition(" ")[0]
        tries = sum(one["messages"] == body["messages"] for one in asked or ())
        if how == "busy" and tries <= 1:
            return JSONResponse({"error": {"message": "2 ask already"}}, 503, headers={"Retry-After": "1"})
        if how == "full":
            message = "the prompt has 3,000 tokens; the model's context is 2,048"
            return JSONResponse({"error": {"message": message, "code": "context_length_exceeded"}}, 400)
        return StreamingResponse(_said(how, body), media_type="text/event-stream")

    return app


async def _said(how: str, body: Mapping[str, Any]) -> AsyncIterator[str]:
    text = MARKDOWN if how in ("How", "markdown") else body["messages"][-1]["content"] if how == "echo" else PLAIN
    if how == "raw":
        text = body["messages"][-1]["content"].removeprefix("raw ")
    if body["model"].endswith(":base") and how != "same":
        text = BASE
    if body.get("seed"):
        text = f"Try {body['seed']}: {text}"
    pieces = [text[at : at + 7] for at in range(0, len(text), 7)]
    for number, piece in enumerate(pieces):
        if number == 3 and how == "lost":
            return  # no end of the stream
        if number == 3 and how == "fails":
            yield f"data: {json.dumps({'error': {'message': 'there is no memory left'}})}\n\n"
            return
        if how == "slow":
            await asyncio.sleep(0.15)
        yield _chunk(body, {"content": piece})
    yield _chunk(body, {}, "length" if how == "long" else "stop")
    yield "data: [DONE]\n\n"


def _chunk(body: Mapping[str, Any], delta: Mapping[str, str], reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": body["model"], "choices": [choice]}
    return f"data: {json.dumps(chunk)}\r\n\r\n" if len(body["messages"]) > 1 else f"data: {json.dumps(chunk)}\n\n"


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The application on a port of this machine while the block lasts; its address."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listening.close()
