"""The application: every endpoint of the server in one place."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response

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
        redoc_url=None,
    )
    install(app)
    grammars = Grammars()
    for interface in (openai_routes, responses_routes, ollama_routes):
        app.include_router(interface(worker.models, worker, grammars))
    app.include_router(_own(worker))
    for routes in more:
        app.include_router(routes)
    return app


def _own(worker: Worker) -> APIRouter:
    """Whether it is well, and how busy."""
    routes = APIRouter(tags=["server"])

    @routes.get("/health", summary="Whether requests are taken", response_model=None)
    async def health() -> Response:
        told: dict[str, Any] = {"status": "ok" if worker.alive else "stopping", "under_way": worker.under_way}
        return JSONResponse(told, 200 if worker.alive else 503)

    @routes.get("/metrics", summary="Counts, for Prometheus", response_model=None)
    async def metrics() -> Response:
        return Response(worker.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
