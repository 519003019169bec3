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
from instil.model.load import read_spec
from tests.conftest import tiny_reference

COMMIT = "a" * 40


@pytest.fixture
def asked() -> list[str]:
    """The files that were asked for."""
    return []


@pytest.fixture
def hub(tmp_path: Path, asked: list[str]) -> Iterator[str]:
    """A hub with a model, me/tiny, and a repository without one, me/bare."""
    folder = tmp_path / "served"
    tiny_reference("llama", vocab_size=50257).save_pretrained(folder)
    FastTokenizer.gpt2().save(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not to be fetched")
    tiny = {file.name: file.read_bytes() for file in folder.iterdir()}
    served = {"me/tiny": tiny, "me/bare": {"README.md": b"nothing"}}

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
            model = next((name for name in served if f"/{name}/" in f"{path}/"), "")
            files = served.get(model, {})
            if model and path.startswith("/api/models/"):
                siblings = [{"rfilename": name, "size": len(body)} for name, body in files.items()]
                if "/tree/" in path:
                    listing = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in files.items()]
                    self.answer(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
                    return
                info = {"id": model, "modelId": model, "sha": COMMIT, "siblings": siblings}
                self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
            elif "/resolve/" in path and (name := path.rpartition("/")[2]) in files:
                asked.append(name)
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


WHOLE = (
    "import sys; from instil.model.load import load_decoder; from instil.model.find import find_model\n"
    "from instil.errors import InstilError\n"
    "try:\n    path = find_model(sys.argv[1])\nexcept InstilError as e:\n    sys.exit(f'instil: {e}')\n"
    "print(load_decoder(path).spec.family, sorted(f.name for f in path.iterdir()))"
)
SPEC = (
    "import sys; from instil.model.load import read_spec; from instil.model.find import find_here\n"
    "from instil.errors import InstilError\n"
    "try:\n    spec = read_spec(sys.argv[1])\nexcept InstilError as e:\n    sys.exit(f'instil: {e}')\n"
    "print(spec.family, spec.layers, find_here(sys.argv[1]))"
)


def ask(hub: str, tmp_path: Path, model: str, code: str = WHOLE, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"INSTIL_HOME": str(tmp_path / "home"), **more}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-c", code, model], env=environment, capture_output=True, text=True, check=False, timeout=120
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


def test_of_a_configuration_nothing_else_is_fetched(hub: str, asked: list[str], tmp_path: Path) -> None:
    done = ask(hub, tmp_path, "me/tiny", SPEC)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["llama", "2", "None"]  # and the model does not count as being here
    assert set(asked) == {"config.json"}
    folder = tmp_path / "home" / "configs" / "me--tiny"
    assert [entry.name for entry in folder.iterdir() if entry.is_file()] == ["config.json"]
    again = ask("http://127.0.0.1:9", tmp_path, "me/tiny", SPEC)
    assert again.stdout == done.stdout, again.stderr


def test_a_repository_without_a_configuration_is_one_clear_line(hub: str, tmp_path: Path) -> None:
    done = ask(hub, tmp_path, "me/bare", SPEC)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "instil: me/bare: me/bare has no config.json on the hub, so that it is no model folder of transformers"
    ]


def test_where_nobody_answers_there_is_one_line(tmp_path: Path) -> None:
    """The client would try a single file six times, and say so each time."""
    done = ask("http://127.0.0.1:9", tmp_path, "me/tiny", SPEC)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1


def test_where_the_model_is_here_nobody_is_asked(hub: str, asked: list[str], tmp_path: Path) -> None:
    assert ask(hub, tmp_path, "me/tiny").returncode == 0
    asked.clear()
    done = ask(hub, tmp_path, "me/tiny", SPEC)
    assert done.stdout.startswith("llama 2 /"), done.stderr
    assert not asked


@pytest.mark.parametrize("model", ["me/nothing", "no-such-model", "gpt2-small"])
def test_a_configuration_that_is_not_there_is_one_clear_line(hub: str, tmp_path: Path, model: str) -> None:
    mirror = {"INSTIL_GPT2_URL": f"{hub}/mirror", "NO_PROXY": "*"} if model == "gpt2-small" else {}
    done = ask(hub, tmp_path, model, SPEC, **mirror)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert model in done.stderr or "124M" in done.stderr
    assert not (tmp_path / "home" / "models").exists()


def test_a_folder_with_nothing_but_a_configuration(tmp_path: Path) -> None:
    reference = tiny_reference("llama")
    reference.config.save_pretrained(tmp_path)
    spec = read_spec(tmp_path)
    assert (spec.layers, spec.width, spec.tied) == (2, 24, True)
    reference.save_pretrained(tmp_path, max_shard_size="4KB")
    next(tmp_path.glob("model-*.safetensors")).unlink()  # of a copy that is not complete
    assert read_spec(tmp_path) == spec
