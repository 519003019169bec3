"""The web pages: the chat at ``/``, the runs at ``/runs``, and what the two ask for.

The pages are files of this package, fetched from nowhere else and run under a policy that allows nothing in line. They
hold no secret, so that they can be given out before a key is known (`OPEN`); what they ask for cannot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from instil.serve.feedback import feedback_routes
from instil.serve.models import Models
from instil.serve.reports import OPENED, Runs, run_routes

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",  # asked for again each time, and given out again only if it changed
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGES: Final = {"/": "index.html", "/runs": "runs.html", "/docs": "docs.html"}
OPEN: Final = (*PAGES, "/page/", OPENED)  # need no key; one with "/" at its end is the beginning of such paths


def page_routes(
    models: Models, folder: Path, root: Path | None = None, stopping: Callable[[], bool] = lambda: False
) -> APIRouter:
    """The pages, and what they ask for besides OpenAI's endpoints.

    Args:
        models: those that are served; a run among them has its report one click away.
        folder: where what people make of answers is written.
        root: the folder whose runs are listed beside those that are served.
        stopping: whether the server was told to stop; then nobody listens to the runs anymore.
    """
    router = APIRouter(include_in_schema=False)
    found = {file.name: file.read_bytes() for file in (files("instil.serve") / "page").iterdir() if file.is_file()}
    for path, name in {**PAGES, **{f"/page/{name}": name for name in found if not name.endswith(".html")}}.items():
        router.add_api_route(path, _Static(found[name], name), methods=["GET", "HEAD"])
    runs = Runs(models, root)

    @router.get("/page.json")
    def about() -> dict[str, Any]:
        """What the chat says of each model."""
        return {"models": {name: _about(name, models, runs) for name in models}, "feedback": str(folder)}

    router.include_router(feedback_routes(folder))
    router.include_router(run_routes(runs, stopping))
    return router


class _Static:
    """One file as it is given out, or that it has not changed."""

    def __init__(self, content: bytes, name: str) -> None:
        self._content, self._type = content, TYPES[Path(name).suffix]
        self._tag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'

    async def __call__(self, request: Request) -> Response:
        headers = {**HEADERS, "ETag": self._tag}
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if self._tag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(self._content, media_type=self._type, headers=headers)


def _about(name: str, models: Models, runs: Runs) -> dict[str, Any]:
    one = models[name]
    options, tuned = one.assistant.options, models[one.base_of] if one.base_of else one
    said: dict[str, Any] = {
        "base_of": one.base_of,
        "temperature": options.temperature,
        "max_tokens": options.max_new_tokens,
        "context": one.assistant.decoder.spec.context,
        "run": runs.name_of(tuned.run) if tuned.run else None,
    }
    if said["run"] is not None:
        summary = runs.summary(said["run"])
        told = summary.scores[0].sentence if summary.scores else ""
        said |= {"report": summary.report, "data": summary.data, "model": summary.model, "verdict": told}
    return said
