"""A server of files on this machine that can be told to misbehave, for tests of downloads."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """What is served, and how. Lists are used up, one item a request."""

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    ranges: bool = True  # whether Range is understood
    tags: bool = True  # whether files have an ETag
    lengths: bool = True  # whether Content-Length is sent
    check_if_range: bool = True
    cuts: list[int | None] = field(default_factory=list)  # bytes of the body after which the connection ends
    answers: list[int] = field(default_factory=list)  # status codes instead of files
    requests: list[tuple[str, str]] = field(default_factory=list)  # path and Range of each

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """One request."""
        path, wanted = handler.path.split("?")[0].lstrip("/"), handler.headers.get("Range", "")
        self.requests.append((path, wanted))
        if self.answers and (code := self.answers.pop(0)) != 200:
            self._send(handler, code, b"<html>sorry</html>", {})
            return
        if path not in self.files:
            self._send(handler, 404, b"<html>not here</html>", {})
            return
        body = self.files[path]
        tag = f'"{hashlib.sha256(body).hexdigest()[:8]}"'
        headers = {"ETag": tag} if self.tags else {}
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start and handler.headers.get("If-Range", tag) == tag and start >= len(body):
            self._send(handler, 416, b"", {"Content-Range": f"bytes */{len(body)}"})
            return
        if start and (not self.check_if_range or handler.headers.get("If-Range", tag) == tag):
            span = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self._send(handler, 206, body[start:], {**headers, "Content-Range": span})
        else:
            self._send(handler, 200, body, headers)

    def _send(self, handler: BaseHTTPRequestHandler, code: int, body: bytes, headers: dict[str, str]) -> None:
        cut = self.cuts.pop(0) if self.cuts and code < 300 else None
        handler.send_response(code)
        if self.lengths:
            handler.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        with suppress(ConnectionError):  # the client may have had enough
            handler.wfile.write(body[:cut])
        handler.close_connection = True


@contextmanager
def serving(**files: bytes) -> Iterator[FileServer]:
    """A running server; its address is in ``url``."""
    server = FileServer(dict(files))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *args: object) -> None:
            del args

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
