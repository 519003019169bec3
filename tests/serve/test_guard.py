"""What stands before the application, over the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from instil.screen import Screen
from instil.serve.access import access_to
from instil.serve.errors import OWN_FAULT, ServeError, install
from instil.serve.guard import SECURITY, Guard
from instil.serve.limits import Limits
from tests.serve.running import QUICK, App, Running, closed, read_reply, request, running, until

LIMITS = replace(QUICK, headers=5.0, body=5.0, write=5.0, body_bytes=1000)
PAGE = "http://chat.example"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """One on this machine, with no key."""
    with running(limits=LIMITS) as made:
        yield made


@pytest.fixture(scope="module")
def keyed() -> Iterator[Running]:
    """One with a key, and a page of another server that may ask."""
    with running(limits=LIMITS, access=access_to(["127.0.0.1"], key=b"secret", origins=[PAGE])) as made:
        yield made


def asked(server: Running) -> list[str]:
    """The paths at which the application was asked since the last time."""
    paths, server.app.asked = server.app.asked, []
    return paths


def test_a_body_arrives_whole_and_is_called_what_it_is(server: Running) -> None:
    body = json.dumps({"a": "ä" * 100}, ensure_ascii=False).encode()
    for kind in ("application/json", "application/x-www-form-urlencoded", "text/plain"):
        reply = json.loads(server.ask(request("/echo", body, f"Content-Type: {kind}")).body)
        assert reply == {"body": body.decode(), "type": "application/json", "length": len(body)}
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:])) + b"0\r\n\r\n"
    reply = json.loads(server.ask(request("/echo", chunks, "Transfer-Encoding: chunked")).body)
    assert reply["body"] == body.decode()


def test_a_large_body_is_refused_before_it_is_read(server: Running) -> None:
    asked(server)
    with server.connect() as connection:
        connection.sendall(request("/echo", b"{", "Content-Length: 1001", "Expect: 100-continue"))
        reply = read_reply(connection)  # and no 100
        assert (reply.status, reply.headers["connection"]) == (413, "close")
        assert reply.error == "the body is larger than 1,000 bytes"
        assert closed(connection)
    assert asked(server) == []


@pytest.mark.parametrize("path", ["/echo", "/api/echo"])
def test_a_large_body_that_is_sent_all_the_same_does_not_hide_the_refusal(server: Running, path: str) -> None:
    body = b"1" * 8_000_000  # more than systems hold: the server has to go on reading
    reply = server.ask(request(path, body))
    assert reply.status == 413
    assert b"larger than" in reply.body


@pytest.mark.parametrize("length", ["9" * 25, "9" * 19, "1" + "0" * 17])
def test_absurd_lengths(server: Running, length: str) -> None:
    assert server.ask(request("/echo", b"{", f"Content-Length: {length}")).status in (400, 413)


def test_a_chunked_body_without_an_end_is_cut_off_at_the_limit(server: Running) -> None:
    asked(server)
    with server.connect() as connection:
        connection.sendall(request("/echo", b"", "Transfer-Encoding: chunked", method="POST"))
        for _ in range(11):
            connection.sendall(b"64\r\n" + b"1" * 100 + b"\r\n")
        assert read_reply(connection).status == 413
        assert closed(connection)
    assert asked(server) == []


def test_a_body_longer_than_it_says_is_no_second_request_of_the_guard(server: Running) -> None:
    asked(server)
    with server.connect() as connection:
        connection.sendall(request("/echo", b"{}xx", "Content-Length: 2"))
        assert read_reply(connection).status == 200
        assert closed(connection)
    assert asked(server) == ["/echo"]


def test_a_body_shorter_than_it_says_reaches_nobody(server: Running) -> None:
    asked(server)
    with server.connect() as connection:
        connection.sendall(request("/echo", b"{}", "Content-Length: 5"))
    until(lambda: server.connections == 0)
    assert asked(server) == []


@pytest.mark.parametrize("body", [b"{", b"[NaN]", b'["\\ud800"]', b"[" * 500, b"\xff\xff", b"model=x"])
def test_a_body_that_is_no_good_json_is_400_and_the_connection_stays(server: Running, body: bytes) -> None:
    asked(server)
    with server.connect() as connection:
        connection.sendall(request("/v1/chat/completions", body))
        reply = read_reply(connection)
        assert reply.status == 400
        assert set(json.loads(reply.body)["error"]) == {"message", "type", "param", "code"}
        connection.sendall(request("/api/chat", body))
        assert isinstance(json.loads(read_reply(connection).body)["error"], str)
    assert asked(server) == []


def test_all_bodies_together_are_bounded() -> None:
    with running(App(), replace(LIMITS, held_bytes=1500)) as server:
        body = b'"' + b"x" * 898 + b'"'
        first = server.connect()
        first.sendall(request("/hold", body))
        until(lambda: server.app.asked == ["/hold"])
        reply = server.ask(request("/echo", body))
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        server.app.release.set()
        assert read_reply(first).status == 200
        first.close()
        until(lambda: server.connections == 0)
        assert server.ask(request("/echo", body)).status == 200


def test_another_name_is_refused(server: Running) -> None:
    asked(server)
    for path in ("/health", "/v1/models", "/"):
        reply = server.ask(request(path, b"", "Host: evil.example"))
        assert (reply.status, json.loads(reply.body)["error"]["type"]) == (403, "permission_error")
    assert asked(server) == []


def test_pages_of_other_servers_are_refused(server: Running) -> None:
    asked(server)
    for origin in ("http://evil.example", "null"):
        reply = server.ask(request("/api/echo", b"{}", f"Origin: {origin}", "Content-Type: text/plain"))
        assert reply.status == 403
        assert "access-control-allow-origin" not in reply.headers
        preflight = request("/echo", b"", f"Origin: {origin}", "Access-Control-Request-Method: POST", method="OPTIONS")
        assert server.ask(preflight).status == 403
    assert asked(server) == []


def test_its_own_page_may_ask(server: Running) -> None:
    reply = server.ask(request("/echo", b"{}", "Host: localhost:80", "Origin: http://localhost"))
    assert reply.status == 200
    assert "access-control-allow-origin" not in reply.headers


def test_a_listed_page_may_ask_and_is_told_so(keyed: Running) -> None:
    asked(keyed)
    preflight = keyed.ask(
        request(
            "/echo",
            b"",
            f"Origin: {PAGE}",
            "Access-Control-Request-Method: POST",
            "Access-Control-Request-Headers: authorization,x-stainless-os",
            method="OPTIONS",
        )
    )
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert preflight.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    assert asked(keyed) == []  # and no key was needed
    for key, status in (("secret", 200), ("wrong", 401)):
        reply = keyed.ask(request("/echo", b"{}", f"Origin: {PAGE}", f"Authorization: Bearer {key}"))
        assert reply.status == status
        assert (reply.headers["access-control-allow-origin"], reply.headers["vary"]) == (PAGE, "origin")


def test_without_the_key_there_is_only_health(keyed: Running) -> None:
    asked(keyed)
    assert keyed.ask(request("/health")).status == 200
    for path in ("/echo", "/", "/health/x", "/nothing", "/api/tags"):
        reply = keyed.ask(request(path))
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
    reply = keyed.ask(request("/echo", b"{}", "Authorization: Bearer wrong"))
    assert json.loads(reply.body)["error"]["code"] == "invalid_api_key"
    assert keyed.ask(request("/echo", b"{}", "Authorization: Bearer secret")).status == 200
    assert asked(keyed) == ["/health", "/echo"]
    assert keyed.said.getvalue() == ""


def test_paths_that_are_open() -> None:
    guard = Guard(App(), access_to(["127.0.0.1"], key=b"k"), open_paths=["/", "/static/"])
    for path, status in (("/", 404), ("/static/a.css", 404), ("/static", 401), ("/statically", 401), ("/health", 401)):
        assert called(guard, path)[0]["status"] == status


@pytest.mark.parametrize("name", ["Origin", "Authorization", "Content-Type"])
def test_headers_that_stand_there_twice_are_refused(server: Running, name: str) -> None:
    reply = server.ask(request("/echo", b"", f"{name}: http://localhost", f"{name}: http://localhost"))
    assert (reply.status, reply.error) == (400, f"the header {name.lower()} stands there twice")


def test_all_replies_carry_what_protects_a_browser(server: Running) -> None:
    replies = {
        path: server.ask(request(path, b"", *headers))
        for path, headers in (
            ("/health", ()),
            ("/none", ()),
            ("/bug", ()),
            ("/echo", ("Host: evil.example",)),
            ("/page", ()),
        )
    }
    for path, reply in replies.items():
        assert {name: reply.headers.get(name) for name in SECURITY} == SECURITY, path
        policy = "default-src 'self'" if path == "/page" else "default-src 'none'; frame-ancestors 'none'"
        assert reply.headers["content-security-policy"] == policy
        assert "server" not in reply.headers


def test_what_breaks_is_told_without_what_clients_wrote(server: Running) -> None:
    server.said.truncate(server.said.seek(0))
    reply = server.ask(request("/bug", b'{"a": "secret"}'))
    assert (reply.status, reply.error) == (500, OWN_FAULT)
    said = server.said.getvalue()
    assert said.startswith("POST /bug: KeyError at ")
    assert "running.py:" in said
    assert "what the client wrote" not in said
    assert "Traceback" not in said


def test_what_breaks_within_an_answer_does_not_look_whole(server: Running) -> None:
    with pytest.raises(EOFError, match="half a reply"):
        server.ask(request("/bug/later"))


def test_tracebacks_are_for_debugging(server: Running) -> None:
    said: list[str] = []

    class Heard:
        def warn(self, text: str) -> None:
            said.append(text)

    called(Guard(App(), access_to(["127.0.0.1"]), screen=Heard(), debug=True), "/bug")  # type: ignore[arg-type]
    assert "Traceback" in said[0]


def called(app: Any, path: str, body: bytes = b"", length: int | None = None) -> list[dict[str, Any]]:
    """What an application sends when it is called without a server."""
    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost")] + ([] if length is None else [(b"content-length", str(length).encode())])
    scope = {"type": "http", "asgi": {"version": "3.0"}, "method": "GET", "path": path, "headers": headers}
    asyncio.run(app(scope, receive, send))
    return sent


def test_it_counts_what_comes_under_any_server() -> None:
    """A server that does not hold bodies to their length changes nothing."""
    guard = Guard(App(), access_to(["127.0.0.1"]), limits=Limits(body_bytes=10))
    assert called(guard, "/echo", b"1" * 11, length=3)[0]["status"] == 413
    assert called(guard, "/echo", b"1" * 10, length=10)[0]["status"] == 200


def test_a_refusal_of_the_application_is_told_once() -> None:
    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        raise ServeError(404, "no such thing", code="x")

    async def too_late(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ServeError(404, "no such thing")

    access = access_to(["127.0.0.1"])
    assert called(Guard(refuses, access), "/")[0]["status"] == 404
    with pytest.raises(ServeError):
        called(Guard(too_late, access), "/")


def test_web_sockets_are_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/", "headers": []}
    asyncio.run(Guard(App(), access_to(["127.0.0.1"]))(scope, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_an_answer_that_broke_is_broken_under_any_server() -> None:
    with pytest.raises(KeyError):
        called(Guard(App(), access_to(["127.0.0.1"]), screen=Screen(quiet=True)), "/bug/later")


def test_endpoints_of_fastapi_are_broken_off_when_the_client_goes() -> None:
    """Their ``finally`` runs at once, whether they stream or make an answer that nobody has seen anything of."""
    app, ended, begun = FastAPI(), [], []
    install(app)

    async def work(name: str) -> AsyncIterator[str]:
        begun.append(name)
        try:
            while True:
                yield "x"
                await asyncio.sleep(0.01)
        finally:
            ended.append(name)

    @app.post("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(work("stream"))

    @app.post("/whole")
    async def whole() -> str:
        return "".join([piece async for piece in work("whole")])

    with running(app, LIMITS) as server:
        for path in ("stream", "whole"):
            connection = server.connect()
            connection.sendall(request(f"/{path}", b"{}"))
            until(lambda path=path: path in begun)  # type: ignore[misc]
            connection.close()
            until(lambda path=path: path in ended)  # type: ignore[misc]
        until(lambda: not server.server.server_state.tasks)
        assert server.said.getvalue() == ""
        assert server.ask(request("/nothing")).error == "there is nothing at /nothing"
