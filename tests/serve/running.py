"""A server in a thread of this process, an application that streams slowly, and clients that speak plain sockets."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from instil.screen import Screen
from instil.serve.access import Access
from instil.serve.guard import Guard
from instil.serve.limits import Limits
from instil.serve.server import Server, listen

QUICK = Limits(headers=0.4, body=0.4, write=0.4, idle=0.6, drain=1.0, last_call=0.1, linger=0.2)


@dataclass
class App:
    """An application with an endpoint for each way of answering.

    ``/health`` answers at once, ``/hold`` once `release` is set, ``/echo`` says what it was sent; ``/slow`` streams
    numbers, ``/lines`` lines, ``/flood`` as much as is taken; ``/bug`` breaks, ``/bug/later`` within its answer.
    """

    pause: float = 0.01  # seconds between two pieces
    pieces: int = 1000
    sent: int = 0  # pieces that were streamed
    parting: float = 0.0  # seconds that ``/hold`` takes to end when it is cancelled
    asked: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)  # how each answer ended
    release: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        self.asked.append(scope["path"])
        try:
            body = (await receive()).get("body", b"")
            await getattr(self, "_" + scope["path"].strip("/").replace("/", "_"), self._none)(body, scope, send)
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        self.ended.append("done")

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _none(self, body: bytes, scope: Any, send: Any) -> None:
        await _say(send, {"none": scope["path"]}, 404)

    async def _health(self, body: bytes, scope: Any, send: Any) -> None:
        await _say(send, {"ok": True})

    async def _echo(self, body: bytes, scope: Any, send: Any) -> None:
        names = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        await _say(send, {"body": body.decode(), "type": names.get("content-type", ""), "length": len(body)})

    async def _hold(self, body: bytes, scope: Any, send: Any) -> None:
        try:
            while not self.release.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            await asyncio.sleep(self.parting)
            raise
        await _say(send, {"held": True})

    async def _slow(self, body: bytes, scope: Any, send: Any) -> None:
        await self._stream(send, b"%d\n", self.pause)

    async def _lines(self, body: bytes, scope: Any, send: Any) -> None:
        await self._stream(send, b"%d" + b"x" * 500, self.pause)

    async def _flood(self, body: bytes, scope: Any, send: Any) -> None:
        await self._stream(send, b"%d" + b"x" * 65536, 0.0)

    async def _stream(self, send: Any, form: bytes, pause: float) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(self.pieces):
            await send({"type": "http.response.body", "body": form % number, "more_body": True})
            self.sent += 1
            await asyncio.sleep(pause)
        await send({"type": "http.response.body", "body": b""})

    async def _bug(self, body: bytes, scope: Any, send: Any) -> None:
        raise KeyError("what the client wrote")

    async def _bug_later(self, body: bytes, scope: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise KeyError("what the client wrote")

    async def _page(self, body: bytes, scope: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/html"), (b"content-security-policy", b"default-src 'self'")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"<p>"})


async def _say(send: Any, said: object, status: int = 200) -> None:
    body = json.dumps(said).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Running:
    """A server that runs; ``app`` is an `App` unless it was given another."""

    app: Any
    server: Server
    port: int
    said: io.StringIO

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """A plain connection."""
        made = socket.socket()
        if receive_buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.settimeout(5.0)
        try:
            made.connect(("127.0.0.1", self.port))
        except OSError:
            made.close()
            raise
        return made

    def ask(self, request: bytes) -> Reply:
        """One reply, after which the connection is closed."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_reply(connection)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self.server.server_state.connections)


@dataclass
class Reply:
    """Of a server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The message of an error in OpenAI's shape."""
        return str(json.loads(self.body)["error"]["message"])


@contextmanager
def running(
    app: Any = None, limits: Limits = QUICK, access: Access | None = None, *, bare: bool = False
) -> Iterator[Running]:
    """A server on a free port, stopped at the end; ``bare``: without a guard."""
    app, said = app or App(), io.StringIO()
    screen = Screen(console=Console(file=said, width=200))
    sockets = listen("127.0.0.1", 0)
    guard = Guard(app, access or Access(), limits=limits, screen=screen)
    server = Server(app if bare else guard, limits=limits, screen=screen)
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield Running(app, server, sockets[0].getsockname()[1], said)
    finally:
        if isinstance(app, App):
            app.release.set()
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def request(path: str, body: bytes = b"", *headers: str, method: str = "") -> bytes:
    """A whole request of HTTP/1.1."""
    named = {line.partition(":")[0].lower() for line in headers}
    lines = [f"{method or ('POST' if body else 'GET')} {path} HTTP/1.1", *headers]
    if "host" not in named:
        lines.append("Host: localhost")
    if body and not named & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def read_reply(connection: socket.socket) -> Reply:
    """A reply with its body, whatever its framing."""
    got = b""
    while b"\r\n\r\n" not in got:
        if not (piece := connection.recv(65536)):
            raise EOFError(f"no reply: {got!r}")
        got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "content-length" in headers:
        while len(body) < int(headers["content-length"]):
            if not (piece := connection.recv(65536)):
                raise EOFError("half a reply")
            body += piece
    elif headers.get("transfer-encoding") == "chunked":
        while not body.endswith(b"0\r\n\r\n"):
            if not (piece := connection.recv(65536)):
                raise EOFError("half a reply")
            body += piece
    return Reply(int(first.split()[1]), headers, body)


def closed(connection: socket.socket, within: float = 5.0) -> bool:
    """Whether the server closes a connection in that time; what it still says is thrown away."""
    end = time.monotonic() + within
    while (left := end - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            if not connection.recv(65536):
                return True
        except TimeoutError:
            return False
        except ConnectionError:
            return True
    return False


def until(true: Callable[[], bool], within: float = 5.0) -> None:
    """Wait for something."""
    end = time.monotonic() + within
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
