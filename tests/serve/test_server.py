"""The beginning and the end of a server."""

from __future__ import annotations

import io
import resource
import threading
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from instil.errors import InstilError, ModelError
from instil.screen import Screen
from instil.serve import server as server_module
from instil.serve.limits import Limits
from instil.serve.server import Server, listen, run, url
from tests.serve.running import QUICK, App, closed, read_reply, request, running, until

PATIENT = replace(QUICK, headers=5.0, body=5.0, write=5.0, idle=5.0, drain=5.0)


def test_it_says_where_it_is_and_what_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    said, servers = io.StringIO(), []
    start = Server.startup

    async def startup(self: Server, sockets: Any = None) -> None:
        await start(self, sockets)
        servers.append(self)

    monkeypatch.setattr(Server, "startup", startup)
    sockets = listen("127.0.0.1", 0)
    where = url(sockets)
    screen = Screen(console=Console(file=said, width=200))
    thread = threading.Thread(target=run, args=(App(), sockets, ["tuned", "base"]), kwargs={"screen": screen})
    thread.start()
    until(lambda: bool(servers))
    servers[0].should_exit = True
    thread.join(5)
    assert said.getvalue() == f"serving tuned, base at {where} (Ctrl-C stops)\n"
    assert where.startswith("http://127.0.0.1:")
    assert not where.endswith(":0")
    assert sockets[0].fileno() == -1


def test_all_addresses_are_said_as_the_name_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module.socket, "gethostname", lambda: "desk")
    sockets = listen("0.0.0.0", 0)
    assert url(sockets) == f"http://desk:{sockets[0].getsockname()[1]}"
    sockets[0].close()


@pytest.mark.parametrize("error", [ModelError("no such model"), ValueError("odd")])
def test_an_application_that_does_not_start_says_why(error: Exception) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise error

    with pytest.raises(InstilError) as told:
        run(fails, listen("127.0.0.1", 0))
    assert type(told.value) is (ModelError if isinstance(error, ModelError) else InstilError)
    assert str(error) in str(told.value)


def test_answers_under_way_are_finished_and_new_ones_refused() -> None:
    with running(App(pieces=60, pause=0.01), replace(PATIENT, last_call=2.0)) as server:
        kept, half, streams, silent = (server.connect() for _ in range(4))
        kept.sendall(request("/health"))
        assert read_reply(kept).status == 200
        half.sendall(request("/health")[:-2])
        streams.sendall(request("/slow"))
        until(lambda: server.app.sent > 0)
        server.server.should_exit = True
        until(lambda: "stopping" in server.said.getvalue())
        kept.sendall(request("/health"))
        half.sendall(b"\r\n")
        silent.sendall(request("/echo", b"{}"))
        for connection in (kept, half, silent):
            reply = read_reply(connection)
            assert (reply.status, reply.headers["connection"], reply.headers["retry-after"]) == (503, "close", "5")
            assert closed(connection)
        with pytest.raises(ConnectionError):
            server.connect()
        assert b"59\n" in read_reply(streams).body
        assert closed(streams)
        assert server.app.ended == ["done", "done"]
        assert server.said.getvalue() == "stopping when 1 answer under way is done (again: at once)\n"
        for connection in (kept, half, streams, silent):
            connection.close()


def test_an_answer_that_has_not_begun_says_that_its_connection_ends() -> None:
    with running(limits=PATIENT) as server, server.connect() as connection:
        connection.sendall(request("/hold"))
        until(lambda: bool(server.app.asked))
        server.server.should_exit = True
        until(lambda: "stopping" in server.said.getvalue())
        server.app.release.set()
        reply = read_reply(connection)
        assert (reply.status, reply.headers["connection"]) == (200, "close")


def test_answers_that_take_too_long_are_cut() -> None:
    with running(App(pieces=10_000, parting=0.3), replace(PATIENT, drain=0.3)) as server:
        held, streams = server.connect(), server.connect()
        held.sendall(request("/hold"))
        streams.sendall(request("/slow"))
        until(lambda: server.app.sent > 0 and "/hold" in server.app.asked)
        server.server.should_exit = True
        reply = read_reply(held)
        assert (reply.status, reply.error) == (503, "the server is stopping")
        with pytest.raises((EOFError, ConnectionError)):
            read_reply(streams)
        until(lambda: server.app.ended == ["CancelledError"] * 2)
        held.close()
        streams.close()
    assert server.said.getvalue() == "stopping when 2 answers under way are done (again: at once)\n"


def test_no_more_connections_than_the_system_has_files_for(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [256, 1000]
    monkeypatch.setattr(resource, "getrlimit", lambda what: tuple(files))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: files.__setitem__(0, limits[0]))
    assert Server(App(), limits=Limits(connections=300)).limits.connections == 300
    assert files[0] == 728
    assert Server(App(), limits=Limits(connections=5000)).limits.connections == 436
    assert files[0] == 1000
