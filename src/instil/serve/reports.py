"""The runs of a folder: a list, what changes in it, the losses of one, and its report."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from instil.runs.folder import RunFolder
from instil.runs.listing import Curve, RunSummary, curve_of, find_runs, new_records, own_file
from instil.runs.watching import Change, RunWatch, Summaries
from instil.serve.models import Models

LISTENERS: Final = 8  # to changes, at once
EVERY: Final = 1.0  # seconds between two looks at the files
ALIVE: Final = 15  # looks without a change after which a listener is sent a sign of life
LONGEST: Final = 1800.0  # seconds of one stream; the page then asks anew
OPENED: Final = "/opened/"
TICKETS, VALID = 100, 60.0  # of reports to be opened: so many at once, so many seconds
# A report runs its own script, which its head names by its hash; in a sandbox it is of no origin, so that neither
# that script nor one that came in with a text could ask this server, or read what the pages keep.
REPORT_POLICY: Final = (
    "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass
class Runs:
    """The runs below a root and those that are served, by name."""

    models: Models
    root: Path | None
    summaries: Summaries = field(default_factory=Summaries)

    def found(self) -> dict[str, Path]:
        """All of them; one that is served and lies elsewhere goes by the name under which it is served."""
        found = find_runs(self.root) if self.root else {}
        known = {path.resolve() for path in found.values()}
        for name, one in self.models.items():
            if one.run and one.run.resolve() not in known:
                found[name if name not in found else f"{name} (served)"] = one.run
                known.add(one.run.resolve())
        return found

    def name_of(self, run: Path) -> str | None:
        """The name of a run folder."""
        return next((name for name, path in self.found().items() if path.resolve() == run.resolve()), None)

    def path(self, name: str) -> Path:
        """The folder of a run. Names are looked up in the list, so no path can be made of one.

        Raises:
            HTTPException: there is none of that name.
        """
        if (path := self.found().get(name)) is None:
            raise HTTPException(404, f"no run {name[:200]!r}")
        return path

    def summary(self, name: str) -> RunSummary:
        """What the list says of a run."""
        return self.summaries.of(name, self.path(name))

    def served(self) -> dict[Path, str]:
        """Names of models by the run that they come from."""
        return {one.run.resolve(): name for name, one in self.models.items() if one.run and not one.base_of}

    def listed(self) -> list[dict[str, Any]]:
        """The list as JSON."""
        served = self.served()
        return [
            {**self.summaries.of(name, path).as_json(), "served_as": served.get(path.resolve())}
            for name, path in self.found().items()
        ]

    def report(self, name: str) -> Path:
        """The report of a run.

        Raises:
            HTTPException: there is none.
        """
        report = own_file(RunFolder(self.path(name)).report)
        if report is None:
            raise HTTPException(404, f"the run {name[:200]!r} has no report yet; it is written at its end")
        return report


@dataclass
class _Tickets:
    """Reports that may be opened without a key for a moment: a browser sends none with a link."""

    given: dict[str, tuple[str, float]] = field(default_factory=dict)

    def give(self, name: str) -> str:
        while len(self.given) >= TICKETS:
            self.given.pop(next(iter(self.given)))
        ticket = secrets.token_urlsafe(32)
        self.given[ticket] = (name, time.monotonic() + VALID)
        return ticket

    def name(self, ticket: str) -> str | None:
        name, until = self.given.get(ticket, (None, 0.0))
        return name if until > time.monotonic() else None


def run_routes(runs: Runs, stopping: Callable[[], bool]) -> APIRouter:
    """``/runs.json``, ``/runs/events``, ``/runs/NAME/curve``, ``/runs/NAME/report`` and what opens that."""
    router = APIRouter()
    tickets, listening = _Tickets(), [0]

    @router.get("/runs.json")
    def listing() -> dict[str, Any]:
        return {"root": str(runs.root) if runs.root else None, "runs": runs.listed()}

    @router.get("/runs/events")
    async def events(request: Request) -> StreamingResponse:
        if listening[0] >= LISTENERS:
            raise HTTPException(
                503, f"{LISTENERS} pages listen to the runs already; close one", headers={"Retry-After": "10"}
            )
        return _Events(_changes(runs, request, stopping), listening)

    @router.get("/runs/{name:path}/curve")
    def curve(name: str) -> dict[str, Any]:
        return _curve(runs.path(name)).as_json()

    @router.get("/runs/{name:path}/report")
    def report(name: str) -> Response:
        return _report(runs.report(name))

    @router.post("/runs/{name:path}/ticket")
    def ticket(name: str) -> dict[str, str]:
        runs.report(name)
        return {"url": f"{OPENED}{quote(tickets.give(name))}"}

    @router.get(OPENED + "{ticket}")
    def opened(ticket: str) -> Response:
        name = tickets.name(ticket)
        if name is None:
            raise HTTPException(404, "this link to a report is used up; open the report from the page again")
        return _report(runs.report(name))

    return router


def _curve(path: Path) -> Curve:
    return curve_of(new_records(RunFolder(path).metrics, 0)[0])


def _report(file: Path) -> Response:
    headers = {
        "Content-Security-Policy": REPORT_POLICY,
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return FileResponse(file, media_type="text/html; charset=utf-8", headers=headers)


class _Events(StreamingResponse):
    """Changes as server-sent events, until the client leaves."""

    def __init__(self, changes: AsyncIterator[str], listening: list[int]) -> None:
        super().__init__(changes, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._listening = listening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._listening[0] += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._listening[0] -= 1


async def _changes(runs: Runs, request: Request, stopping: Callable[[], bool]) -> AsyncIterator[str]:
    watch = await run_in_threadpool(RunWatch, runs.found, runs.summaries)
    yield "event: hello\ndata: {}\n\n"  # what was there before this is asked for after it
    quiet, until = 0, time.monotonic() + LONGEST
    while time.monotonic() < until and not stopping() and not await request.is_disconnected():
        changes: list[Change] = await run_in_threadpool(watch.changes)
        for change in changes:
            yield f"data: {json.dumps(change.as_json())}\n\n"
        quiet = 0 if changes else quiet + 1
        if quiet == ALIVE:
            quiet = 0
            yield ": still here\n\n"
        await asyncio.sleep(EVERY)
