"""HTTP/1.1 on one connection, with the bounds that uvicorn leaves to a proxy in front of it.

uvicorn reads HTTP with h11, runs the application and holds it back where a client reads slowly. It has no time limit
on headers, bodies or readers, answers malformed requests in plain text, throws away without end what is sent after an
early answer, and closes without reading on, which makes the system drop the answer. What is here mends that.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import h11
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from instil.serve.errors import ServeError
from instil.serve.limits import Limits

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send
    from uvicorn.config import Config
    from uvicorn.server import ServerState

COME_BACK: Final = 1  # seconds after which a client that finds no room may ask again
STOPPED_FOR: Final = 5  # and one that finds the server stopping
LOOKS: Final = 4  # at a client that does not read, in the time it has
SEND_BUFFER: Final = 128 << 10  # bytes of an answer that the system holds
NOTHING: Final = (-1, "")
PIPELINED: Final = 16 << 10  # bytes of next requests that are read while one is being answered


class Shared:
    """What the connections of one server have in common."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.refused = 0  # connections that are open only until their refusal is read


class Reader(h11.Connection):
    """Reads requests, refuses what is too large, and keeps why."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(h11.SERVER, limits.header_bytes)
        self._limits = limits
        self.requests = 0
        self.chunks = 0  # of the present request's body
        self.refusal: ServeError | None = None

    def next_event(self) -> Any:
        """An event of h11.

        Raises:
            h11.RemoteProtocolError: the request is refused; `refusal` says why.
        """
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.refusal = self._refusal(error)
            raise
        refusal = None
        if isinstance(event, h11.Request):
            self.requests, self.chunks = self.requests + 1, 0
            refusal = self._wrong_with(event)
        elif isinstance(event, h11.Data) and event.chunk_start:
            self.chunks += 1
            if self.chunks > self._limits.chunks:
                refusal = ServeError(413, f"the body comes in more than {self._limits.chunks:,} pieces")
        if refusal is not None:
            self.refusal = refusal
            raise h11.RemoteProtocolError(refusal.message)
        return event

    def _refusal(self, error: h11.RemoteProtocolError) -> ServeError:
        if error.error_status_hint == 431:
            return self._too_large()
        if error.error_status_hint == 501:
            return ServeError(501, "of transfer encodings only chunked is read here")
        return ServeError(400, "this is not a request in HTTP/1.1")

    def _too_large(self) -> ServeError:
        return ServeError(431, f"the headers are larger than {self._limits.header_bytes:,} bytes")

    def _wrong_with(self, request: h11.Request) -> ServeError | None:
        names = [name for name, _ in request.headers]
        size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
        if size > self._limits.header_bytes:  # h11 counts only what is not yet complete
            return self._too_large()
        if len(names) > self._limits.header_count:
            return ServeError(431, f"there are more than {self._limits.header_count} headers")
        return None


class Line(asyncio.Transport):
    """The way to the client: it is given up when the client stops reading, and closed so that refusals arrive.

    Args:
        transport: asyncio's.
        limits: of which ``write`` and ``linger`` count.
        loop: the event loop.
        unread: whether the client may still be sending when the line is closed.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        unread: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._transport, self._limits, self._loop, self._unread = transport, limits, loop, unread
        self._closing = False
        self._written = 0
        self._seen, self._seen_at = 0, 0.0  # bytes that the client has taken, and when that number last grew
        self._look_timer: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, at once or when the client reads."""
        if self._closing:
            return
        self._written += len(data)
        self._transport.write(data)
        if self._look_timer is None:
            self._seen, self._seen_at = self._written - self._waiting(), self._loop.time()
            self._look_again()

    def _waiting(self) -> int:
        """Bytes that the client has not acknowledged; the system alone holds a whole answer of text."""
        return self._transport.get_write_buffer_size() + unacknowledged(self.get_extra_info("socket"))

    def _look_again(self) -> None:
        self._look_timer = self._loop.call_later(self._limits.write / LOOKS, self._look)

    def _look(self) -> None:
        self._look_timer = None
        if not (waiting := self._waiting()):
            return
        if (taken := self._written - waiting) > self._seen:
            self._seen, self._seen_at = taken, self._loop.time()
        elif self._loop.time() - self._seen_at >= self._limits.write:
            self._transport.abort()
            return
        self._look_again()

    def close(self) -> None:
        """Send what waits and close; who may still be sending is heard for a moment more, and can read meanwhile."""
        if self.is_closing():
            return
        self._closing = True
        if not self._unread():
            self._transport.close()
            return
        with suppress(OSError, RuntimeError):  # the client may be gone
            self._transport.write_eof()
        self._transport.resume_reading()
        self._close_timer = self._loop.call_later(self._limits.linger, self._transport.close)

    def done(self) -> None:
        """The connection is gone."""
        self._closing = True
        for timer in (self._look_timer, self._close_timer):
            if timer is not None:
                timer.cancel()

    def is_closing(self) -> bool:
        """Whether nothing more is sent."""
        return self._closing or self._transport.is_closing()

    def abort(self) -> None:
        """Close at once; what waits is lost."""
        self._closing = True
        self._transport.abort()

    def pause_reading(self) -> None:
        """Leave what comes to the system."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take it again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See asyncio."""
        return self._transport.get_extra_info(name, default)


def unacknowledged(line: Any) -> int:
    """Bytes that the system still holds for the other side, 0 where it does not tell (it does on Linux)."""
    try:
        import fcntl
        import termios

        return int.from_bytes(fcntl.ioctl(line.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (ImportError, AttributeError, OSError, ValueError):
        return 0


class Protocol(H11Protocol):
    """uvicorn's protocol with time limits, one form of refusals, and an end that clients are told of."""

    transport: Line
    conn: Reader

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        shared: Shared,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._shared, self._limits = shared, shared.limits
        self._refused = self._heard = False
        self._awaited = NOTHING  # number of the request, and which part of it
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came."""
        with suppress(OSError, AttributeError):  # the system would hold megabytes for each, and hide who does not read
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        super().connection_made(Line(transport, self._limits, self.loop, self._may_be_sending))
        self.conn = Reader(self._limits)
        present = len(self.connections) - self._shared.refused
        if present > self._limits.connections:
            if self._shared.refused >= self._limits.connections:
                transport.abort()
            else:
                self._refuse(ServeError(503, "there are too many connections", retry_after=COME_BACK))
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went, or was sent away."""
        self._stop_waiting()
        self._unset_keepalive_if_required()
        self._shared.refused -= self._refused
        self.transport.done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The client said something."""
        if self.transport.is_closing():
            return
        self._heard = True
        super().data_received(data)
        self._wait()

    def handle_events(self) -> None:
        """Go through what was read."""
        super().handle_events()
        # uvicorn stops reading where a next request comes early, and would not see the client go.
        if self.flow.read_paused and not self._reads_body() and len(self.conn.trailing_data[0]) <= PIPELINED:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """An answer is sent; a next one may be under way."""
        super().on_response_complete()
        if self._reads_body():  # the answer did not need the rest, which may have no end
            self.transport.close()
        self._wait()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn does where h11 can read no further."""
        self._refuse(self.conn.refusal or ServeError(400, msg))

    def shutdown(self) -> None:
        """The server stops: finish the answer under way, and tell who asks anew."""
        self.app = _stopping
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE_HEADER]
        elif self._awaited[1] != "headers" or not self._heard:
            self._stop_waiting()
            self._awaited = NOTHING
            self._timer = self.loop.call_later(self._limits.last_call, self.transport.close)

    def _reads_body(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY

    def _may_be_sending(self) -> bool:
        return self._refused or self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def _wait(self) -> None:
        """Begin the time of whatever the client owes next, unless it runs already."""
        if self.transport.is_closing():
            return
        begun = not self.conn.requests or bool(self.conn.trailing_data[0])
        part = {h11.IDLE: "headers" if begun else "", h11.SEND_BODY: "body"}.get(self.conn.their_state, "")
        awaited = (self.conn.requests, part)
        if awaited == self._awaited and self._timer is not None:
            return
        self._stop_waiting()
        self._awaited = awaited
        if part:
            seconds = self._limits.headers if part == "headers" else self._limits.body
            self._timer = self.loop.call_later(seconds, self._too_late, part, seconds)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self, part: str, seconds: float) -> None:
        if self.transport.is_closing():
            return
        if not self._heard:  # browsers open connections that they may never use
            self.transport.close()
        else:
            self._refuse(ServeError(408, f"the {part} of the request did not come within {seconds:g} seconds"))

    def _refuse(self, error: ServeError) -> None:
        """Say what is wrong, where no answer is under way, and close."""
        self._stop_waiting()
        if not self._refused:
            self._refused = True
            self._shared.refused += 1
        path = self.scope["path"] if self.scope is not None and self.conn.requests else ""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the application is told that nobody listens
            self.cycle.message_event.set()
            self.flow.resume_writing()
        body = json.dumps(error.body(path)).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "x-content-type-options": "nosniff",
            **error.headers(),
        }
        with suppress(h11.LocalProtocolError):  # an answer is under way or sent: its connection just ends
            response = h11.Response(status_code=error.status, headers=list(headers.items()))
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


async def _stopping(scope: Scope, receive: Receive, send: Send) -> None:
    """What new requests get from a server that stops."""
    error = ServeError(503, "the server is stopping", retry_after=STOPPED_FOR, headers={"connection": "close"})
    await error.reply(scope["path"])(scope, receive, send)
