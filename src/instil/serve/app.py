"""The application: every endpoint of the server in one place."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Receive, Scope, Send

from instil.serve.errors import install
from instil.serve.grammar import Grammars
from instil.serve.ollama import ollama_routes
from instil.serve.openai import openai_routes
from instil.serve.responses import responses_routes
from instil.serve.worker import Worker
from instil.version import __version__


def make_app(worker: Worker, *more: APIRouter) -> FastAPI:
    """What answers for some models; its worker is started and stopped with it.

    Args:
        worker: what makes the answers.
        more: further endpoints, such as the page's.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    app = FastAPI(
        title="instil",
        version=__version__,
        summary="Models that were tuned here, in OpenAI's and Ollama's interfaces",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page is loaded from other people's servers
        redoc_url=None,
        redirect_slashes=False,
    )
    install(app)
    app.add_middleware(_HeadAsGet)
    app.openapi = lambda: _description(app, list(worker.models))  # type: ignore[method-assign]
    grammars = Grammars()
    for interface in (openai_routes, responses_routes, ollama_routes):
        app.include_router(interface(worker.models, worker, grammars))
    app.include_router(_own(worker))
    for routes in more:
        app.include_router(routes)
    return app


class _HeadAsGet:
    """Whatever can be got can be asked for its headers alone, as Ollama's command line does; uvicorn sends no body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


def _description(app: FastAPI, names: Sequence[str]) -> dict[str, Any]:
    """The OpenAPI description, with the models' names; what cannot be read is told with 400, not FastAPI's 422."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        for path in found["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(name, None)
        for schema in found["components"]["schemas"].values():
            if "model" in schema.get("required", ()):
                schema["properties"]["model"]["enum"] = names
        app.openapi_schema = found
    return app.openapi_schema


def _own(worker: Worker) -> APIRouter:
    """Whether it is well, and how busy."""
    routes = APIRouter(tags=["server"])

    @routes.get(
        "/health", summary="Whether requests are taken", response_model=None, responses={503: {"description": "No"}}
    )
    async def health() -> Response:
        told: dict[str, Any] = {"status": "ok" if worker.alive else "stopping", "under_way": worker.under_way}
        return JSONResponse(told, 200 if worker.alive else 503)

    @routes.get("/metrics", summary="Counts, for Prometheus", response_model=None, response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(worker.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    return routes
