"""The part of the hub that models are sent to, on this machine: repositories, one commit, large files apart."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any, dict[str, str]]
OWNER, TOKEN = "me", "hf_of_me"


@dataclass
class HubServer:
    """What has come to it; ``fails`` is the part of a path that is answered with a status."""

    url: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    fails: dict[str, int] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: bytes, token: str) -> Answer:
        """Status, JSON and headers."""
        self.asked.append(f"{method} {path}")
        for part, status in self.fails.items():
            if part in path:
                return status, {"error": "sorry"}, {}
        if method in ("POST", "DELETE") and not path.startswith("/large/") and token != f"Bearer {TOKEN}":
            return 401, {"error": "who is it?"}, {}
        if path.startswith("/api/repos/"):
            return self._repository(path, json.loads(body))
        if "/preupload/" in path or path.endswith("/objects/batch") or path.startswith("/large/"):
            return self._before(path, body)
        if "/commit/" in path:
            return self._commit(path, body)
        name = path.removeprefix("/api/models/").removesuffix("/revision/main")
        if name in self.repositories:
            return 200, {"id": name, "sha": "c" * 40, "siblings": []}, {}
        return (200, {}, {}) if path == "/api/validate-yaml" else (404, {}, {"X-Error-Code": "RepoNotFound"})

    def _repository(self, path: str, wanted: dict[str, Any]) -> Answer:
        name = f"{wanted.get('organization') or OWNER}/{wanted['name']}"
        if path.endswith("/delete"):
            del self.repositories[name]
        elif not name.startswith(f"{OWNER}/"):
            return 403, {"error": "not yours"}, {}
        elif name in self.repositories:
            return 409, {"error": "taken"}, {}
        else:
            self.repositories[name] = wanted
        return 200, {"url": f"{self.url}/{name}"}, {}

    def _before(self, path: str, body: bytes) -> Answer:
        """What comes before a commit: how each file is sent, and the large ones."""
        if path.startswith("/large/"):
            self.large[path.removeprefix("/large/")] = body
            return 200, {}, {}
        wanted = json.loads(body)
        if path.endswith("/objects/batch"):
            links = [
                {**one, "actions": {"upload": {"href": f"{self.url}/large/{one['oid']}"}}} for one in wanted["objects"]
            ]
            return 200, {"transfer": "basic", "objects": links}, {}
        modes = [
            {"path": name, "uploadMode": "lfs" if name.endswith(".safetensors") else "regular", "shouldIgnore": False}
            for name in (one["path"] for one in wanted["files"])
        ]
        return 200, {"files": modes}, {}

    def _commit(self, path: str, body: bytes) -> Answer:
        head, *lines = (json.loads(line) for line in body.splitlines())
        self.commits.append(head["value"]["summary"])
        for line in lines:
            value = line["value"]
            large = line["key"] == "lfsFile"
            self.files[value["path"]] = self.large[value["oid"]] if large else base64.b64decode(value["content"])
        name = path.removeprefix("/api/models/").partition("/commit/")[0]
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{'c' * 40}", "commitOid": "c" * 40, "hookOutput": ""}, {}


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A running one."""
    hub = HubServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.split("?")[0]
            code, value, headers = hub.answer(self.command, path, body, self.headers.get("Authorization", ""))
            sent = json.dumps(value).encode()
            self.send_response(code)
            for key, text in {"Content-Length": str(len(sent)), "Content-Type": "application/json", **headers}.items():
                self.send_header(key, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(sent)

        do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

        def log_message(self, *args: object) -> None:
            del args

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield hub
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
