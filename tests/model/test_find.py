"""Fetching from a hub, held against a small HTTP server that speaks its protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from instil.data.tokenizers import FastTokenizer
from tests.conftest import tiny_reference

COMMIT = "a" * 40


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A hub with one model, me/tiny."""
    folder = tmp_path / "served"
    tiny_reference("llama", vocab_size=50257).save_pretrained(folder)
    FastTokenizer.gpt2().save(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not to be fetched")
    files = {file.name: file.read_bytes() for file in folder.iterdir()}

    class Handler(BaseHTTPRequestHandler):
        def answer(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path.startswith("/api/models/me/tiny"):
                siblings = [{"rfilename": name, "size": len(body)} for name, body in files.items()]
                if "/tree/" in path:
                    listing = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in files.items()]
                    self.answer(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
                    return
                info = {"id": "me/tiny", "modelId": "me/tiny", "sha": COMMIT, "siblings": siblings}
                self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
            elif path.startswith("/me/tiny/resolve/") and (name := path.rpartition("/")[2]) in files:
                tag = hashlib.sha256(files[name]).hexdigest()
                self.answer(200, files[name], {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"})

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            del args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def ask(hub: str, tmp_path: Path, model: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from instil.model.load import load_decoder; from instil.model.find import find_model\n"
        "from instil.errors import InstilError\n"
        f"try:\n    path = find_model({model!r})\nexcept InstilError as e:\n    sys.exit(f'instil: {{e}}')\n"
        "print(load_decoder(path).spec.family, sorted(f.name for f in path.iterdir()))"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_model_is_fetched_by_its_id_and_found_again_offline(hub: str, tmp_path: Path) -> None:
    done = ask(hub, tmp_path, "me/tiny")
    assert done.returncode == 0, done.stderr
    assert "llama" in done.stdout
    assert "tokenizer.json" in done.stdout
    assert "pytorch_model.bin" not in done.stdout
    again = ask("http://127.0.0.1:9", tmp_path, "me/tiny")
    assert again.returncode == 0, again.stderr


def test_a_model_that_is_not_there_is_one_clear_line(hub: str, tmp_path: Path) -> None:
    done = ask(hub, tmp_path, "me/nothing")
    assert done.returncode == 1
    assert "could not be fetched" in done.stderr.replace("nor could it be fetched", "could not be fetched")
    assert "Traceback" not in done.stderr
