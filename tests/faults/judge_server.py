"""A judge behind HTTP that can be told to do everything wrong: Ollama's interface and OpenAI's at one address."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WHOLE = ("body", "bytes", "gzip", "say", "cut")  # replies that are complete, after which the connection stays
CLOSING = {"Connection": "close"}  # without it a client sends its next try into a connection that is just being closed
Say = Callable[[str, int], str]  # the reply to a message; which question it is, from 0


def graded(message: str, number: int) -> str:
    """A deterministic verdict that depends on the message alone."""
    del number
    return json.dumps({"score": int(hashlib.sha256(message.encode()).hexdigest(), 16) % 5 + 1})


def message_of(body: dict[str, Any]) -> str:
    """The message of a chat, or the text that is to be gone on with."""
    return str(body["messages"][0]["content"] if "messages" in body else body["prompt"])


@dataclass
class JudgeServer:
    """What is said, and what is done instead. ``faults`` gives a fault's name for a question's number."""

    say: Say = graded
    faults: dict[int, str] = field(default_factory=dict)
    always: str = ""
    models: tuple[str, ...] = ("judge:latest",)
    unlisted: bool = True  # models that are not in the list answer all the same
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    read: Callable[[str], int] = lambda message: len(message) // 4  # tokens of a prompt
    listing: int = 200  # the status that the list of models comes with
    refuses: Callable[[dict[str, Any]], str] = lambda body: ""  # the fault that a question is answered with
    logprobs: Callable[[str], list[dict[str, Any]]] | None = None
    dead: bool = False
    lock: Any = field(default_factory=threading.Lock)

    def messages(self) -> list[str]:
        """What was asked, in the order of arrival."""
        return [message_of(body) for body in self.asked]

    def names(self) -> set[str]:
        """Names of models under which they answer."""
        return {*self.models, *(name.removesuffix(":latest") for name in self.models)}

    def get(self, handler: BaseHTTPRequestHandler) -> None:
        """Questions about the server."""
        if self.listing != 200:
            self.send(handler, self.listing, b'{"error":"not for you"}')
        elif self.always == "no list":
            self.send(handler, 404, b"404 page not found")
        elif self.always == "not ollama":
            self.send(handler, 200, b"<html>hello</html>")
        elif handler.path == "/api/tags":
            tags = [{"name": name, "model": name, "digest": f"sha-{name}"} for name in self.models]
            self.send(handler, 200, json.dumps({"models": tags}).encode())
        elif handler.path == "/v1/models":
            data = [{"id": name.removesuffix(":latest")} for name in self.models]
            self.send(handler, 200, json.dumps({"object": "list", "data": data}).encode())
        else:
            self.send(handler, 404, b"404 page not found")

    def post(self, handler: BaseHTTPRequestHandler) -> None:
        """One question."""
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            number = len(self.asked)
            self.asked.append(body)
            self.keys.append(handler.headers.get("Authorization", ""))
        fault = self.faults.get(number, self.always) or self.refuses(body)
        if body.get("model") and not self.unlisted and body["model"] not in self.names():
            self.send(handler, 404, json.dumps({"error": f"model {body['model']!r} not found"}).encode())
            return
        if fault == "die" or self.dead:
            self.dead = True
            with suppress(OSError):
                handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return
        if fault and self.misbehave(handler, fault, body):
            return
        message = message_of(body)
        self.reply(handler, body, self.say(message, number), self.read(message))

    def reply(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], said: str, read: int) -> None:
        """A proper reply."""
        extra = self.logprobs(said) if self.logprobs else None
        if handler.path.startswith("/api"):
            lines: list[dict[str, Any]] = [{"message": {"role": "assistant", "content": piece}} for piece in said]
            if handler.path == "/api/generate":
                lines = [{"response": piece} for piece in said]
            if extra:
                lines[-1]["logprobs"] = extra
            last = {"done": True, "done_reason": "stop", "prompt_eval_count": read}
            self.send(handler, 200, b"".join(json.dumps(line).encode() + b"\n" for line in [*lines, last]))
            return
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        if handler.path.endswith("/v1/completions"):
            choice = {"text": said, "finish_reason": "stop"}
        if extra:
            choice["logprobs"] = {"content": extra}
        self.send(handler, 200, json.dumps({"choices": [choice], "usage": {"prompt_tokens": read}}).encode())

    def misbehave(self, handler: BaseHTTPRequestHandler, fault: str, body: dict[str, Any]) -> bool:
        """Do one of the faults; False if a proper reply is to follow."""
        name, _, what = fault.partition(" ")
        if name == "status":
            code, _, text = what.partition(" ")
            self.send(handler, int(code), text.encode() or b"<html><h1>Bad Gateway</h1></html>", CLOSING)
        elif name == "retry-after":
            self.send(handler, 429, b'{"error":"slow down"}', {"Retry-After": what})
        elif name == "headers":  # of a 429, as JSON
            self.send(handler, 429, b'{"error":"slow down"}', json.loads(what))
        elif name == "hang":
            time.sleep(float(what))
        elif name == "drip":
            self.drip(handler, float(what))
        elif name == "drip-head":
            with suppress(OSError):
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                for _ in range(int(float(what) / 0.05)):
                    handler.wfile.write(b"x")
                    handler.wfile.flush()
                    time.sleep(0.05)
        elif name == "torn":
            self.send(handler, 200, b'{"message": {"content": "{\\"sco', length=500)
        elif name == "body":
            self.send(handler, 200, what.encode())
        elif name == "bytes":
            self.send(handler, 200, bytes.fromhex(what))
        elif name == "gigabyte":
            with suppress(OSError):
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
                for _ in range(1024):
                    handler.wfile.write(b"x" * 1024**2)
        elif name == "gzip":
            self.send(handler, 200, b"\x1f\x8b", {"Content-Encoding": "gzip"})
        elif name == "say":
            self.reply(handler, body, what, self.read(message_of(body)))
        elif name == "cut":
            last = {"message": {"content": "8"}, "done": True, "done_reason": "length", "prompt_eval_count": 9999}
            choice = {"message": {"content": "8"}, "finish_reason": "length"}
            both = json.dumps(last) if handler.path.startswith("/api") else json.dumps({"choices": [choice]})
            self.send(handler, 200, both.encode() + b"\n")
        else:
            raise AssertionError(fault)
        handler.close_connection = name not in WHOLE
        return True

    def drip(self, handler: BaseHTTPRequestHandler, seconds: float) -> None:
        """A byte now and then."""
        with suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            for _ in range(int(seconds / 0.05)):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.05)

    def send(
        self,
        handler: BaseHTTPRequestHandler,
        code: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        """A whole answer, or one that says to be longer."""
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in (headers or {}).items():
            handler.send_header(key, value)
        handler.end_headers()
        with suppress(OSError):
            handler.wfile.write(body)
        if length is not None:
            handler.close_connection = True


class Quiet(ThreadingHTTPServer):
    """Clients that leave are none of its business."""

    daemon_threads = True
    block_on_close = False  # a handler that hangs must not hold up the test

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing."""


@contextmanager
def judging(**how: Any) -> Iterator[JudgeServer]:
    """A running server; its address is in ``url``."""
    server = JudgeServer(**how)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.get(self)

        def do_POST(self) -> None:
            server.post(self)

        def log_message(self, *args: object) -> None:
            del args

    http = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
