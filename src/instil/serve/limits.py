"""How much of a server's patience, memory and connections a client may use up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what clients may do; times are in seconds, sizes in bytes.

    Attributes:
        headers: until all headers of a request are there, from connecting or from the request's first byte.
        body: from the headers until the whole body is there.
        write: how long a client may take nothing of an answer that waits for it.
        idle: how long a connection stays open between two requests.
        drain: how long answers may go on once the server was told to stop.
        last_call: how long an idle connection may then still bring a request, to be told that the server stops.
        linger: how long what a client still sends is thrown away before a refused connection is closed; closed at once,
            the client would see a broken connection in place of the refusal.
        connections: so many are open at once; more are told to come back.
        header_bytes, header_count: of one request, its first line included.
        body_bytes: of one request.
        held_bytes: of the bodies of all requests that are being answered.
        chunks: pieces in which a body of no announced length may come.
    """

    headers: float = 10.0
    body: float = 30.0
    write: float = 30.0
    idle: float = 20.0
    drain: float = 30.0
    last_call: float = 0.25
    linger: float = 1.0
    connections: int = 1000
    header_bytes: int = 32 << 10
    header_count: int = 100
    body_bytes: int = 1 << 20
    held_bytes: int = 64 << 20
    chunks: int = 4096
