"""A server from its sockets to its end: it listens, says where, and on a signal lets answers finish."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from instil.errors import InstilError, UserError, counted
from instil.screen import Screen
from instil.serve.limits import Limits
from instil.serve.protocol import Protocol, Shared

if TYPE_CHECKING:
    from types import FrameType

    from starlette.types import ASGIApp, Receive, Scope, Send

BACKLOG: Final = 1024
OTHER_FILES: Final = 128  # that a process has open beside its connections
AT_ONCE: Final = 1.0  # seconds that a second signal leaves for an orderly end


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at a host's addresses, all on one port; do this before the long work of loading.

    Args:
        host: a name or an address; IPv6 with or without brackets. ``localhost`` may be two addresses, ``::`` is every
            address of this machine.
        port: 0 takes one that is free.

    Raises:
        UserError: the port is taken, or the host is not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: a port is a number from 0 to 65535; 0 takes a free one")
    name = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise UserError(f"--host {host}: no such host; 127.0.0.1 is this machine alone") from None
    sockets: list[socket.socket] = []
    refused: OSError | None = None
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        at = (address[0], port, *address[2:])
        try:
            sockets.append(_listening(family, at))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # a name's IPv6 address may not be there
                _close(sockets)
                raise UserError(_why_not(host, port, error)) from None
            refused = error
            continue
        port = port or sockets[0].getsockname()[1]
    if not sockets:
        raise UserError(_why_not(host, port, refused or OSError(errno.EADDRNOTAVAIL, "")))
    return sockets


def _listening(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    # Said to be TCP, since asyncio sends small pieces at once only on what is: otherwise each would wait for 40 ms.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that just ended do not hold the port
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        made.bind(address)
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken by another program; take another one with --port, or --port 0 for any"
    if error.errno == errno.EACCES:
        return f"port {port} of {host} is kept for the system; take one from 1024 on with --port"
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return (
            f"--host {host}: not an address of this machine; 127.0.0.1 is this machine alone, 0.0.0.0 all its addresses"
        )
    return f"cannot listen on port {port} of {host}: {error.strerror or error}"


def _close(sockets: Sequence[socket.socket]) -> None:
    for one in sockets:
        one.close()


def addresses(sockets: Sequence[socket.socket]) -> list[str]:
    """The IP addresses that sockets are bound to."""
    return [str(one.getsockname()[0]) for one in sockets]


def url(sockets: Sequence[socket.socket]) -> str:
    """Where to reach them from a browser; of all addresses of a machine, by its name."""
    host, port = sockets[0].getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    app: ASGIApp,
    sockets: Sequence[socket.socket],
    served: Sequence[str] = (),
    *,
    limits: Limits | None = None,
    screen: Screen | None = None,
    when_stopping: Callable[[], None] = lambda: None,
    debug: bool = False,
) -> None:
    """Serve until a signal comes, and let answers under way finish.

    The signal is then raised again for the handler that was there before, which is how the command line ends with 130
    or 143. A second signal ends everything at once.

    Args:
        app: an ASGI application, guarded (`instil.serve.guard.Guard`).
        sockets: from `listen`; closed at the end.
        served: names of what is served, for the line that says so.
        limits: what clients may do.
        screen: where that line goes.
        when_stopping: called once it was told to stop, in the midst of whatever the main thread does.
        debug: show uvicorn's own log.

    Raises:
        InstilError: the application did not start.
    """
    server = Server(app, limits=limits, screen=screen, debug=debug)
    said = ", ".join(served) or "instil"
    server.when_stopping = when_stopping
    server.when_ready = lambda: server.screen.say(f"serving {said} at {url(sockets)} (Ctrl-C stops)")
    try:
        server.run(list(sockets))
    except SystemExit:
        cause = server.did_not_start
        if isinstance(cause, InstilError):
            raise cause from None
        raise InstilError(f"the server did not start: {type(cause).__name__}: {cause}") from cause
    finally:
        _close(sockets)


class Server(uvicorn.Server):
    """uvicorn's server with the protocol of this room, and an end by signals that users expect."""

    def __init__(
        self, app: ASGIApp, *, limits: Limits | None = None, screen: Screen | None = None, debug: bool = False
    ) -> None:
        self.limits = _as_many_as_files(limits or Limits())
        self.screen = screen or Screen()
        self.when_ready: Callable[[], None] = lambda: None
        self.when_stopping: Callable[[], None] = lambda: None
        self.did_not_start: BaseException | None = None
        self._app, self._debug = app, debug
        self._loop: asyncio.AbstractEventLoop | None = None
        self._patience: threading.Timer | None = None
        super().__init__(
            uvicorn.Config(
                self._remembering,
                loop="asyncio",
                http=functools.partial(Protocol, shared=Shared(self.limits)),  # type: ignore[arg-type]
                ws="none",
                lifespan="on",
                interface="asgi3",
                log_config=None,
                log_level=_log_level(debug),
                access_log=False,
                proxy_headers=False,  # nobody in front of us is believed
                server_header=False,
                timeout_keep_alive=self.limits.idle,  # type: ignore[arg-type]
                timeout_graceful_shutdown=self.limits.drain,  # type: ignore[arg-type]
            )
        )

    async def _remembering(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application; why it did not start would only be logged."""
        try:
            await self._app(scope, receive, send)
        except BaseException as error:
            if scope["type"] == "lifespan":
                self.did_not_start = error
            raise

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._tell)
        await super().startup(sockets)
        self.when_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept none anymore, let answers finish, then close what is left."""
        under_way = len(self.server_state.tasks)
        if under_way and not self.force_exit:
            what = counted(under_way, "answer")
            self.screen.say(f"stopping when {what} under way {'is' if under_way == 1 else 'are'} done (again: at once)")
        await super().shutdown(sockets)
        if self.server_state.tasks:  # they are cancelled, and may say so to their clients
            await asyncio.wait(set(self.server_state.tasks), timeout=AT_ONCE)
        self._cut()
        await asyncio.sleep(0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        del frame
        self._captured_signals.append(sig)
        if not self.should_exit:
            self.should_exit = True
            self.when_stopping()
            return
        self.force_exit = True
        if self._loop is not None and self._patience is None:
            self._loop.call_soon_threadsafe(self._cut)
            self._patience = threading.Timer(AT_ONCE, os._exit, [128 + sig])  # whatever does not let us
            self._patience.daemon = True
            self._patience.start()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve from start to end."""
        try:
            await super().serve(sockets)
        finally:
            if self._patience is not None:
                self._patience.cancel()

    def _cut(self) -> None:
        """End all connections and answers now."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()

    def _tell(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What asyncio would log with a traceback, such as that there are no more files for connections."""
        error = context.get("exception")
        self.screen.warn(context["message"] + (f": {type(error).__name__}: {error}" if error else ""))
        if self._debug:
            loop.default_exception_handler(context)


def _log_level(debug: bool) -> int:
    """uvicorn logs every malformed request, which is the network's usual noise; shown only for debugging."""
    if not debug:
        return logging.CRITICAL + 1
    logger = logging.getLogger("uvicorn")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
    return logging.INFO


def _as_many_as_files(limits: Limits) -> Limits:
    """Limits with no more connections than the system gives files for, after asking it for more."""
    with suppress(ImportError):  # Windows has neither the module nor the limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * limits.connections + OTHER_FILES  # as many again are being refused
        if soft not in (resource.RLIM_INFINITY,) and soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            fits = max((resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OTHER_FILES) // 2, 1)
            limits = replace(limits, connections=min(limits.connections, fits))
    return limits
