"""What stands before the application: who may ask, how much, and what is told when something breaks.

It is plain ASGI around any application. Bodies are read whole, and are JSON that can be worked with, before the
application is called; a client that goes away cancels whatever is answering it, streams or not.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Collection
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from instil.screen import Screen
from instil.serve.access import Access
from instil.serve.errors import OWN_FAULT, ServeError
from instil.serve.limits import Limits
from instil.serve.strict_json import strict

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ONCE: Final = ("host", "origin", "authorization", "content-length", "content-type")
SECURITY: Final = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
NO_PAGE: Final = "default-src 'none'; frame-ancestors 'none'"  # pages come with a policy of their own
PREFLIGHT_SECONDS: Final = 600


class Guard:
    """An application behind its guard.

    Args:
        app: any ASGI application.
        access: who may ask.
        limits: of which sizes count here.
        open_paths: paths that need no key; one that ends in a slash stands for all below it.
        screen: where failures are told; what clients wrote is never shown.
        debug: show whole tracebacks of failures.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        *,
        limits: Limits | None = None,
        open_paths: Collection[str] = ("/health",),
        screen: Screen | None = None,
        debug: bool = False,
    ) -> None:
        self._app, self._access = app, access
        self._limits = limits or Limits()
        self._open = frozenset(path for path in open_paths if path == "/" or not path.endswith("/"))
        self._open_below = tuple(path for path in open_paths if path != "/" and path.endswith("/"))
        self._screen, self._debug = screen or Screen(), debug
        self._held = 0  # bytes of bodies that are being answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply, headers = _Reply(send), Headers(scope=scope)
        try:
            if await self._may_ask(scope, headers, reply):
                await self._pass_on(scope, headers, receive, reply)
        except ServeError as error:
            if reply.started:
                raise
            reply.close_after = not reply.body_read and _announces_body(headers)
            await error.reply(scope["path"])(scope, receive, reply.send)
        except asyncio.CancelledError:
            if not reply.started:
                reply.close_after = True
                await ServeError(503, "the server is stopping").reply(scope["path"])(scope, receive, reply.send)
            raise
        except Exception as error:
            self._tell(scope, error)
            if not reply.started:
                await ServeError(500, OWN_FAULT).reply(scope["path"])(scope, receive, reply.send)
            elif not reply.complete:
                raise  # the connection is closed, so that the answer does not look like a whole one

    async def _may_ask(self, scope: Scope, headers: Headers, reply: _Reply) -> bool:
        """Whether there is anything for the application to do.

        Raises:
            ServeError: the request is refused.
        """
        for name in ONCE:
            if len(headers.getlist(name)) > 1:
                raise ServeError(400, f"the header {name} stands there twice")
        host, origin = headers.get("host"), headers.get("origin")
        self._access.check_host(host)
        if self._access.check_origin(origin, host):
            reply.listed = origin
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await reply.preflight(headers.get("access-control-request-headers", ""))
                return False
        path = scope["path"]
        if path not in self._open and not path.startswith(self._open_below):
            self._access.check_key(headers.get("authorization"))
        return True

    async def _pass_on(self, scope: Scope, headers: Headers, receive: Receive, reply: _Reply) -> None:
        held = 0
        try:
            body = bytearray()
            self._check_length(headers)
            async for piece in _pieces(receive):
                body += piece
                if len(body) > self._limits.body_bytes:
                    raise self._too_large()
                held, self._held = held + len(piece), self._held + len(piece)
                if self._held > self._limits.held_bytes:
                    raise ServeError(503, "the server holds as many requests as it can", retry_after=1)
            reply.body_read = True
            if body:
                strict(bytes(body))
                # Proved to be JSON, it is called so; curl and clients of Ollama say other things of it.
                changed = MutableHeaders(raw=list(scope["headers"]))
                changed["content-type"] = "application/json"
                scope = {**scope, "headers": changed.raw}
            await _while_there(self._app, scope, bytes(body), receive, reply)
        except ClientDisconnect:
            return
        finally:
            self._held -= held

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length")
        if length is None:
            return
        if "transfer-encoding" in headers:  # proxies disagree on which of them counts
            raise ServeError(400, "Content-Length and Transfer-Encoding contradict each other; send one of them")
        if not (length.isascii() and length.isdigit()):
            raise ServeError(400, "Content-Length is not a number")
        if len(length) > 18 or int(length) > self._limits.body_bytes:
            raise self._too_large()

    def _too_large(self) -> ServeError:
        return ServeError(413, f"the body is larger than {self._limits.body_bytes:,} bytes", code="request_too_large")

    def _tell(self, scope: Scope, error: Exception) -> None:
        """Say where it broke; the exception's own words may be what a client wrote."""
        if self._debug:
            self._screen.warn("".join(traceback.format_exception(error)))
            return
        inner: BaseException = error
        while isinstance(inner, BaseExceptionGroup):
            inner = inner.exceptions[0]
        frames = traceback.extract_tb(inner.__traceback__)
        where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        self._screen.warn(f"{scope['method']} {scope['path'][:200]}: {type(inner).__name__}{where}")


class _Reply:
    """The way back: it adds what all replies carry, and knows how far the reply is."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = self.complete = False
        self.gone = False  # nobody listens
        self.body_read = self.close_after = False
        self.listed: str | None = None  # origin of a page of another server that may read this

    async def send(self, message: Message) -> None:
        """Send on.

        Raises:
            OSError: nobody listens.
        """
        if self.gone:
            raise OSError("the client is gone")
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            for name, value in SECURITY.items():
                headers.setdefault(name, value)
            headers.setdefault("content-security-policy", NO_PAGE)
            if self.listed is not None:
                headers["access-control-allow-origin"] = self.listed
                headers["access-control-expose-headers"] = "retry-after"
                headers.add_vary_header("origin")
            if self.close_after:
                headers["connection"] = "close"
            message = {**message, "headers": headers.raw}
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
        await self._send(message)

    async def preflight(self, asked: str) -> None:
        """Allow a page of another server to send what it is about to."""
        names = ", ".join(name.strip() for name in asked.split(",") if name.strip())
        headers = {
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": names or "authorization, content-type",
            "access-control-max-age": str(PREFLIGHT_SECONDS),
        }
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": 204, "headers": raw})
        await self.send({"type": "http.response.body"})


def _announces_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


async def _pieces(receive: Receive) -> AsyncIterator[bytes]:
    """The body as it comes.

    Raises:
        ClientDisconnect: the client went before it was there.
    """
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _while_there(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, reply: _Reply) -> None:
    """Run the application, and cancel it when the client goes.

    Raises:
        ClientDisconnect: it went.
    """
    task, gone, unread = asyncio.current_task(), asyncio.Event(), [body]
    assert task is not None

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()
        if not reply.complete:
            reply.gone = True
            task.cancel()

    async def replay() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    # From 2.4 on, sending to nobody is an error, and Starlette needs no task that listens for it.
    scope = {**scope, "asgi": {**scope["asgi"], "spec_version": "2.4"}}
    watcher = asyncio.create_task(watch())
    try:
        await app(scope, replay, reply.send)
    except asyncio.CancelledError:
        if not reply.gone:
            raise
        raise ClientDisconnect from None
    except OSError:
        if not reply.gone:
            raise
        raise ClientDisconnect from None
    finally:
        watcher.cancel()
