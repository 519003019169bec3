"""Time limits, malformed requests and full houses, with plain sockets against a server that runs."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from instil.errors import UserError
from instil.serve import server as server_module
from instil.serve.server import addresses, listen, url
from tests.serve.running import QUICK, App, Running, closed, read_reply, request, running, until

HEALTH = request("/health")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """One that many tests ask."""
    with running(limits=replace(QUICK, headers=5.0, body=5.0)) as made:
        yield made


def test_a_request_is_answered_and_the_connection_kept() -> None:
    with running() as server, server.connect() as connection:
        for _ in range(3):
            connection.sendall(HEALTH)
            assert read_reply(connection).status == 200
        assert server.connections == 1


def test_small_pieces_are_sent_at_once() -> None:
    """Nagle's algorithm would hold each back until the one before is acknowledged, which takes 40 ms."""
    with running() as server, server.connect() as connection:
        connection.sendall(HEALTH)
        read_reply(connection)
        (one,) = server.server.server_state.connections
        assert one.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_idle_connection_is_closed_in_the_end() -> None:
    with running() as server, server.connect() as connection:
        connection.sendall(HEALTH)
        read_reply(connection)
        began = time.monotonic()
        assert closed(connection)
        assert time.monotonic() - began > 0.5


def test_headers_that_do_not_come_are_given_up() -> None:
    """One byte at a time does not buy more of it."""
    with running() as server, server.connect() as connection:
        with pytest.raises(ConnectionError):
            for byte in HEALTH[:-1]:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        until(lambda: server.connections == 0)


def test_headers_that_do_not_come_are_told_so() -> None:
    with running() as server, server.connect() as connection:
        connection.sendall(HEALTH[:-4])
        reply = read_reply(connection)
        assert (reply.status, reply.headers["connection"]) == (408, "close")
        assert reply.error == "the headers of the request did not come within 0.4 seconds"


def test_a_connection_that_never_says_anything_is_closed_in_silence() -> None:
    with running() as server, server.connect() as connection:
        assert connection.recv(10) == b""
        assert server.app.asked == []


def test_the_headers_of_a_next_request_have_their_time_too() -> None:
    with running(limits=replace(QUICK, idle=30.0)) as server, server.connect() as connection:
        connection.sendall(HEALTH)
        read_reply(connection)
        time.sleep(0.6)  # idle is not late
        connection.sendall(HEALTH[:-4])
        assert read_reply(connection).status == 408


def test_a_body_that_does_not_come_is_given_up_and_the_application_not_asked() -> None:
    with running() as server, server.connect() as connection:
        connection.sendall(request("/echo", b"{", "Content-Length: 10"))
        reply = read_reply(connection)
        assert (reply.status, reply.error) == (408, "the body of the request did not come within 0.4 seconds")
        assert server.app.asked == []


def test_a_client_that_does_not_read_is_cut_and_its_answer_cancelled() -> None:
    with running(App(pieces=10_000)) as server, server.connect(4096) as connection:
        connection.sendall(request("/flood"))
        until(lambda: server.app.ended == ["CancelledError"])
        until(lambda: server.connections == 0)
        assert server.app.sent < 1000


def test_a_client_that_reads_slowly_but_reads_is_served() -> None:
    with running(App(pieces=60)) as server, server.connect(4096) as connection:
        connection.sendall(request("/flood"))
        began, got = time.monotonic(), 0
        while piece := connection.recv(1 << 16):
            got += len(piece)
            time.sleep(0.005 if time.monotonic() - began < 1.0 else 0.0)
            if piece.endswith(b"0\r\n\r\n"):
                break
        assert time.monotonic() - began > 0.5
        assert got > 60 * 65536
        assert server.app.ended == ["done"]


def test_a_small_answer_that_nobody_reads_is_cut_too() -> None:
    """The system would hold all of it, uvicorn's buffer would stay empty, and nobody would be told to wait."""
    with running(App(pieces=10_000, pause=0.005)) as server, server.connect(2048) as connection:
        connection.sendall(request("/slow"))
        until(lambda: server.app.ended == ["CancelledError"])
        assert server.app.sent < 1000  # of some bytes each


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA b: c\r\n\r\n", 400),
        (request("/echo", b"{}", "Content-Length: 2", "Content-Length: 3"), 400),
        (request("/echo", b"{}", "Content-Length: -2"), 400),
        (request("/echo", b"{}", "Content-Length: 2", "Transfer-Encoding: chunked"), 400),
        (request("/echo", b"zz\r\n", "Transfer-Encoding: chunked"), 400),
        (request("/echo", b"{}", "Transfer-Encoding: gzip"), 501),
        (request("/health", b"", *[f"X-{n}: y" for n in range(200)]), 431),
        (request("/health", b"", "X: " + "y" * 40_000), 431),
        (request("/health", b"", *[f"X-{n}: {'y' * 900}" for n in range(50)]), 431),
        (b"GET /" + b"x" * 50_000, 431),
        (request("/echo", b"1\r\n1\r\n" * 5000, "Transfer-Encoding: chunked"), 413),
    ],
)
def test_what_is_no_good_request_is_refused_as_json(
    server: Running, sent: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.app.asked.clear()
    reply = server.ask(sent)
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["connection"] == "close"
    assert reply.error
    assert server.app.asked == []
    assert server.ask(HEALTH).status == 200
    assert server.said.getvalue() == ""
    assert not caplog.records


def test_an_endless_flood_of_headers_holds_no_memory() -> None:
    with running(limits=replace(QUICK, headers=5.0)) as server, server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        begun = time.monotonic()
        with pytest.raises(ConnectionError):
            # By the clock, as the server closes it: a fast machine has sent any number of bytes before.
            while time.monotonic() - begun < 30:
                connection.sendall((b"X-A: %s\r\n" % (b"y" * 500)) * 100)
        until(lambda: server.connections == 0)


def test_a_second_request_that_came_early_waits_its_turn() -> None:
    with running() as server, server.connect() as connection:
        connection.sendall(request("/echo", b"1") + HEALTH)
        got = b""
        while not got.endswith(b'{"ok": true}'):
            got += connection.recv(65536)
        assert got.index(b'"body": "1"') < got.index(b'{"ok": true}')
        assert got.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("early", [b"", HEALTH])
def test_a_client_that_goes_cancels_its_stream(early: bytes) -> None:
    with running(App(pause=0.01)) as server:
        connection = server.connect()
        connection.sendall(request("/slow") + early)
        until(lambda: server.app.sent > 3)
        sent = server.app.sent
        connection.close()
        until(lambda: server.app.ended == ["CancelledError"])
        assert server.app.sent - sent < 6  # 10 ms each: what was under way


@pytest.mark.parametrize("early", [b"", HEALTH])
def test_a_client_that_goes_cancels_an_answer_that_does_not_stream(early: bytes) -> None:
    with running() as server:
        connection = server.connect()
        connection.sendall(request("/hold"))
        until(lambda: server.app.asked == ["/hold"])
        connection.sendall(early)
        time.sleep(0.05)  # it is read, and waits
        connection.close()
        until(lambda: server.app.ended == ["CancelledError"], within=0.5)
        assert server.said.getvalue() == ""


def test_an_application_without_a_guard_is_told_that_nobody_listens_after_a_refusal() -> None:
    """And what it says all the same goes nowhere."""
    with running(bare=True, limits=replace(QUICK, linger=2.0)) as server, server.connect() as connection:
        connection.sendall(request("/hold", b"{", "Content-Length: 10"))
        until(lambda: server.app.asked == ["/hold"])
        assert read_reply(connection).status == 408
        server.app.release.set()
        until(lambda: server.app.ended == ["done"])
        assert server.said.getvalue() == ""


def test_an_early_answer_ends_the_connection_of_a_body_that_goes_on() -> None:
    with running(bare=True, limits=replace(QUICK, body=30.0, idle=30.0)) as server, server.connect() as connection:
        connection.sendall(request("/health", b"{", "Content-Length: 10"))
        assert read_reply(connection).status == 200
        assert closed(connection)


def test_a_full_house_says_so_at_once_and_recovers() -> None:
    with running(limits=replace(QUICK, connections=3, headers=5.0, linger=1.0)) as server:
        sitting = [server.connect() for _ in range(3)]
        until(lambda: server.connections == 3)
        for _ in range(3):
            reply = server.ask(HEALTH)
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            until(lambda: server.connections == 3)
        sitting.pop().close()
        until(lambda: server.connections == 2)
        assert server.ask(HEALTH).status == 200
        for one in sitting:
            one.close()


def test_who_is_refused_again_and_again_takes_no_place() -> None:
    with running(limits=replace(QUICK, connections=2, headers=5.0, linger=5.0)) as server:
        sitting = [server.connect() for _ in range(2)]
        until(lambda: server.connections == 2)
        refused = [server.connect() for _ in range(5)]
        assert all(closed(one) for one in refused[2:])  # two may read their refusal, the others are cut
        assert server.connections == 4
        sitting.pop().close()
        until(lambda: server.connections == 3)
        assert server.ask(HEALTH).status == 200
        for one in (*sitting, *refused):
            one.close()


def test_two_hundred_slow_clients_do_not_hold_up_a_healthy_one() -> None:
    with running(limits=replace(QUICK, headers=30.0, body=30.0)) as server:
        slow = [server.connect() for _ in range(200)]
        for number, one in enumerate(slow):
            one.sendall(HEALTH[:20] if number % 2 else request("/echo", b"{", "Content-Length: 9"))
        for _ in range(20):
            assert server.ask(HEALTH).status == 200
        assert server.connections >= 200  # they are all still there
        for one in slow:
            one.close()
        until(lambda: server.connections == 0)


def test_a_port_that_is_taken_is_named() -> None:
    taken = listen("127.0.0.1", 0)
    port = taken[0].getsockname()[1]
    with pytest.raises(UserError, match=f"^port {port} of 127.0.0.1 is taken by another program; .*--port") as told:
        listen("127.0.0.1", port)
    assert told.value.exit_code == 2
    taken[0].close()
    listen("127.0.0.1", port)[0].close()


def test_connections_that_just_ended_do_not_hold_the_port() -> None:
    first = listen("127.0.0.1", 0)[0]
    first.setblocking(True)
    port = first.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        first.accept()[0].close()  # who ends first has to wait
        assert closed(client)
    first.close()
    listen("127.0.0.1", port)[0].close()


@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_ipv6(host: str) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    sockets = listen(host, 0)
    assert addresses(sockets) == [host.strip("[]")]
    port = sockets[0].getsockname()[1]
    with socket.create_connection(("::1", port), 1):
        pass
    if host == "::":
        with socket.create_connection(("127.0.0.1", port), 1):
            pass
    else:
        assert url(sockets) == f"http://[::1]:{port}"
    sockets[0].close()


def test_a_name_listens_at_all_its_addresses_on_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    two = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.1", "127.0.0.2")]
    monkeypatch.setattr(server_module.socket, "getaddrinfo", lambda *args, **more: two)
    sockets = listen("localhost", 0)
    assert addresses(sockets) == ["127.0.0.1", "127.0.0.2"]
    assert len({one.getsockname()[1] for one in sockets}) == 1
    for one in sockets:
        one.close()


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("127.0.0.1", 70_000, "--port 70000: a port is a number from 0 to 65535"),
        ("127.0.0.1", -1, "--port -1"),
        ("no such host", 0, "--host no such host: no such host"),
        ("", 0, "--host : no such host"),
        ("192.0.2.1", 0, "--host 192.0.2.1: not an address of this machine"),
    ],
)
def test_where_it_cannot_listen(host: str, port: int, said: str) -> None:
    with pytest.raises(UserError) as told:
        listen(host, port)
    assert str(told.value).startswith(said)


def test_a_port_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(server_module, "_listening", refuse)
    with pytest.raises(UserError, match=r"^port 80 of 127\.0\.0\.1 is kept for the system; take one from 1024"):
        listen("127.0.0.1", 80)
