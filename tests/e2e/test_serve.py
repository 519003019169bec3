"""``instil serve`` as users start it: a run and its base, the command's refusals, and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import instil
from instil.errors import UserError
from instil.recipes.serve import Serving, serve
from tests.conftest import TINY_END


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "COLUMNS": "300", "OMP_NUM_THREADS": "1", **more}


@contextmanager
def serving(*words: str, **more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command until the block ends, and where it says that it serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", "instil.cli", "serve", *words, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**more),
    )
    try:
        assert process.stderr is not None
        said = ""
        while "serving " not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        yield process, said.split(" at ")[-1].split(" ")[0].strip()
    finally:
        process.kill()
        process.communicate()


def ask(url: str, model: str, **more: object) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Double the number 3."}], **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def refused(*words: str, **more: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "instil.cli", "serve", *words], capture_output=True, text=True, env=environment(**more),
        timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_run_and_its_base_are_served(plain_run: Path, tmp_path: Path) -> None:
    words = (f"mine={plain_run}", "--folder", str(tmp_path))
    with serving(*words, INSTIL_API_KEY="secret") as (process, url):
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/").status_code == 200
        with httpx.Client(headers={"authorization": "Bearer secret"}) as client:
            names = [one["id"] for one in client.get(f"{url}/v1/models").json()["data"]]
            assert names == ["mine", "mine:base"]
            body = {"messages": [{"role": "user", "content": "Double the number 3."}], "max_tokens": 6}
            said = {
                name: client.post(f"{url}/v1/chat/completions", json={"model": name, **body}, timeout=60).json()
                for name in names
            }
            assert client.get(f"{url}/v1/models", headers={"host": "evil.example"}).status_code == 403
            assert client.get(f"{url}/runs.json").status_code == 200
        tuned = instil.load(plain_run).respond("Double the number 3.", max_new_tokens=6)
        assert said["mine"]["choices"][0]["message"]["content"] == tuned
        base = instil.load(_base(plain_run))
        assert said["mine:base"]["choices"][0]["message"]["content"] == base.respond(
            "Double the number 3.", max_new_tokens=6
        )
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
        assert process.returncode == 143
        assert "Traceback" not in rest
        assert rest.splitlines()[-1] == "instil: stopped"


def _base(run: Path) -> str:
    from instil.runs.folder import RunFolder

    return str(RunFolder(run).read_settings()["model"])


def test_an_answer_under_way_is_finished_when_the_server_is_stopped(tiny_folder: Path) -> None:
    with serving(f"tiny={tiny_folder}") as (process, url):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Go."}], "stream": True, "max_tokens": 200}
        body["logit_bias"] = {str(TINY_END): -100}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert sum('"content"' in line for line in rest) > 20
        process.communicate(timeout=30)
        assert process.returncode == 130


def test_what_cannot_be_served_is_said_before_anything_is_loaded(tiny_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = refused(str(tiny_folder), "--port", str(port))
        assert (code, f"port {port} of 127.0.0.1 is taken" in said, "loading" in said) == (2, True, False)


@pytest.mark.parametrize(
    ("models", "how", "told"),
    [
        (["TINY"], {"host": "0.0.0.0"}, "a key is wanted"),
        (["TINY"], {"host": "203.0.113.9"}, "not an address of this machine"),
        (["TINY"], {"key_file": Path("none.txt")}, "none.txt"),
        (["/nothing/here"], {}, "/nothing/here"),
        (["a=TINY", "a=TINY"], {}, "both called a"),
        (["a:base=TINY"], {}, ":base"),
        (["a b=TINY"], {}, "cannot be a model's name"),
    ],
)
def test_what_cannot_be_served_is_refused(models: list[str], how: dict[str, Any], told: str, tiny_folder: Path) -> None:
    given = [one.replace("TINY", str(tiny_folder)) for one in models]
    with pytest.raises(UserError, match=told):
        serve(given, Serving(port=0, **how), {})


@pytest.mark.slow
def test_a_thousand_clients_get_an_answer_or_are_told_to_come_back(tiny_folder: Path) -> None:
    """Fault 35: with flat memory and file handles, and the server well afterwards."""
    import asyncio

    def held(process: subprocess.Popen[str]) -> tuple[int, float]:
        files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        return files, int(status.split("VmRSS:")[1].split()[0]) / 1e3

    async def flood(url: str, count: int) -> list[int]:
        limits = httpx.Limits(max_connections=count)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:

            async def one() -> int:
                body = {"model": "tiny", "messages": [{"role": "user", "content": "Go."}], "max_tokens": 8}
                reply = await client.post(f"{url}/v1/chat/completions", json=body)
                assert reply.status_code == 200 or int(reply.headers["retry-after"]) > 0
                return reply.status_code

            return await asyncio.gather(*(one() for _ in range(count)))

    with serving(f"tiny={tiny_folder}") as (process, url):
        ask(url, "tiny", max_tokens=8)
        asyncio.run(flood(url, 100))
        files, memory = held(process)
        for _ in range(3):
            found = asyncio.run(flood(url, 1000))
            assert set(found) <= {200, 503}
            assert found.count(200) >= 32
        time.sleep(2)
        after = held(process)
        assert after[0] <= files + 8
        assert after[1] <= memory + 100
        assert ask(url, "tiny", max_tokens=8).status_code == 200
