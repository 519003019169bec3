"""Faults of clients, and of the machine, that a server has to stand; by number, from the catalogue of faults.

35 many clients; 36 bodies and headers; 37 slow ones; 38 those that go; 40 names, pages and keys; 42 ports and signals.
`tests/serve` looks at each closely; here they come together, or to a process of their own.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from instil.serve.limits import Limits
from tests.serve.running import QUICK, App, closed, read_reply, request, running, until

HEALTH = request("/health")
ROOT = Path(__file__).parents[2]

# The command line with a command of ours: its signals, its exit codes, its one line.
PROCESS = """
import sys
from instil import cli
from instil.serve.access import access_to
from instil.serve.guard import Guard
from instil.serve.limits import Limits
from instil.serve.server import addresses, listen, run
from tests.serve.running import App

def serve():
    sockets = listen("127.0.0.1", int(sys.argv[1]))
    app = App(pieces=int(sys.argv[2]), pause=0.02)
    run(Guard(app, access_to(addresses(sockets))), sockets, ["tuned"], limits=Limits(drain=30, last_call=0.1))

cli.app = lambda **how: serve()
cli.main()
"""


@contextmanager
def process(pieces: int, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own, with its port."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "COLUMNS": "200"}
    made = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(port), str(pieces)], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert made.stderr is not None
        first = made.stderr.readline()
        assert first.startswith("serving tuned at http://127.0.0.1:"), first
        yield made, int(first.split(":")[2].split()[0])
    finally:
        made.kill()
        made.communicate()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 5)


def ended(made: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what was said since."""
    _, said = made.communicate(timeout=20)
    return made.returncode, said


def open_files() -> int:
    """How many this process has, where the system tells."""
    files = Path("/proc/self/fd")
    return len(list(files.iterdir())) if files.is_dir() else 0


def test_42_sigterm_lets_answers_finish_and_is_143() -> None:
    with process(pieces=60) as (made, port), connect(port) as streams, connect(port) as kept:
        kept.sendall(HEALTH)
        assert read_reply(kept).status == 200
        streams.sendall(request("/slow"))
        assert streams.recv(1000)
        made.send_signal(signal.SIGTERM)
        assert closed(kept)
        with pytest.raises(ConnectionError):
            connect(port).close()
        got = b""
        while piece := streams.recv(65536):
            got += piece
        assert b"59\n" in got
        assert got.endswith(b"0\r\n\r\n")
        code, said = ended(made)
        assert code == 143
        assert "Traceback" not in said
        assert said.splitlines()[0] == "stopping when 1 answer under way is done (again: at once)"
        assert len(said.splitlines()) == 2  # and the command line's own


def test_42_a_second_signal_ends_it_at_once() -> None:
    with process(pieces=1_000_000) as (made, port), connect(port) as streams:
        streams.sendall(request("/slow"))
        assert streams.recv(1000)
        made.send_signal(signal.SIGINT)
        assert made.stderr is not None
        assert made.stderr.readline().startswith("stopping when 1 answer")
        assert made.poll() is None
        made.send_signal(signal.SIGINT)
        code, said = ended(made)
        assert code == 130
        assert "Traceback" not in said
        assert closed(streams)


def test_35_each_of_many_clients_is_answered_or_told_to_come_back() -> None:
    """No one is left without a reply, and nothing of them stays."""
    answers: Counter[int] = Counter()
    many = 300
    with running(App(), Limits(connections=50, linger=2.0)) as server:
        files = open_files()
        together = threading.Barrier(many)
        lock = threading.Lock()

        def ask() -> None:
            together.wait()
            try:
                with server.connect() as connection:
                    connection.settimeout(20)
                    with suppress(ConnectionError):
                        connection.sendall(request("/echo", b'{"a": 1}'))
                    status = read_reply(connection).status
            except (ConnectionError, EOFError):
                status = 0
            with lock:
                answers[status] += 1

        threads = [threading.Thread(target=ask) for _ in range(many)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        until(lambda: server.connections == 0)
        assert answers[200] >= 50
        assert set(answers) <= {200, 503, 0}
        assert answers[0] <= many - 100  # fifty more at a time are refused in words, the rest by a closed door
        assert server.ask(HEALTH).status == 200
        assert open_files() <= files + 2
        assert server.said.getvalue() == ""


def test_36_37_38_40_all_at_once_and_a_healthy_client_beside_them() -> None:
    limits = replace(QUICK, headers=1.0, body=1.0, write=1.0, body_bytes=10_000)
    chance = random.Random(0)
    attacks = [
        HEALTH[:9],
        request("/echo", b"{", "Content-Length: 50"),
        request("/echo", b"{", "Content-Length: 5000000000"),
        request("/echo", b"{}", "Content-Length: 2", "Transfer-Encoding: chunked"),
        request("/echo", b"5\r\n{", "Transfer-Encoding: chunked"),
        request("/flood"),
        request("/slow"),
        request("/hold"),
        request("/bug"),
        request("/bug/later"),
        request("/echo", b"[" * 5000),
        request("/echo", b"{}", "Host: evil.example"),
        request("/echo", b"{}", "Origin: http://evil.example"),
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 3000,
        b"\x00\xff" * 500,
        HEALTH * 50,
    ]
    with running(App(pieces=100_000), limits) as server:
        attackers = []
        for number in range(160):
            one = server.connect(4096)
            with suppress(OSError):
                one.sendall(attacks[number % len(attacks)])
            if chance.random() < 0.3:
                one.close()  # in the middle of whatever it was
            attackers.append(one)
            if number % 8 == 0:
                assert server.ask(HEALTH).status == 200
        for one in attackers:
            one.close()
        until(lambda: server.connections == 0)
        until(lambda: len(server.app.ended) == len(server.app.asked))
        until(lambda: not server.server.server_state.tasks)
        assert server.ask(HEALTH).status == 200
        assert "Traceback" not in server.said.getvalue()
        assert all("KeyError" in line for line in server.said.getvalue().splitlines())


@pytest.mark.parametrize("seed", range(2))
def test_36_requests_with_bytes_changed_never_break_the_server(seed: int) -> None:
    """Whatever comes is answered with a status or with the end of the connection, and nothing is told of a failure."""
    chance = random.Random(seed)
    whole = [
        HEALTH,
        request("/echo", b'{"a": [1, 2.5, "x"]}'),
        request("/echo", b"3\r\n[1]\r\n0\r\nX: y\r\n\r\n", "Transfer-Encoding: chunked"),
        request("/health", b"", "Connection: Upgrade", "Upgrade: websocket"),
        request("localhost:80", b"", method="CONNECT"),
        request("/health", b"", method="HEAD"),
        HEALTH.replace(b"1.1", b"1.0"),
    ]
    with running(limits=replace(QUICK, headers=0.3, body=0.3, idle=0.3)) as server:
        open_ones = []
        for _ in range(150):
            sent = bytearray(chance.choice(whole) + chance.choice([b"", HEALTH]))
            for _ in range(chance.randrange(4)):
                at = chance.randrange(len(sent))
                match chance.randrange(3):
                    case 0:
                        sent[at] = chance.randrange(256)
                    case 1:
                        del sent[at : at + chance.randrange(1, 9)]
                    case _:
                        sent[at:at] = chance.choice([b"\r\n", b"\n", b"\x00", b" ", b"9" * 30, b"\xff", b"chunked"])
            one = server.connect()
            one.sendall(sent)
            open_ones.append(one)
        for one in open_ones:
            got = b""
            with suppress(ConnectionError):
                while piece := one.recv(65536):
                    got += piece
            assert got == b"" or got.startswith(b"HTTP/1.1 "), got
            one.close()
        assert server.ask(HEALTH).status == 200
        assert server.said.getvalue() == ""
        assert not {end for end in server.app.ended if end not in ("done", "CancelledError")}


def test_37_slow_ones_go_and_the_house_is_empty_again() -> None:
    with running(App(pieces=100_000), replace(QUICK, connections=60)) as server:
        slow = [server.connect(2048) for _ in range(60)]
        for number, one in enumerate(slow):
            one.sendall([HEALTH[:5], request("/echo", b"{", "Content-Length: 9"), request("/lines")][number % 3])
        until(lambda: server.connections == 60)
        assert server.ask(HEALTH).status == 503
        began = time.monotonic()
        until(lambda: server.connections == 0)
        assert time.monotonic() - began < 4
        assert server.ask(HEALTH).status == 200
        for one in slow:
            one.close()
