"""The server beside llama.cpp's, on the same model and questions: ``python -m benchmarks.serve`` (see --help).

Each server runs in a process of its own with all cores; they are asked in alternation, each in every round, and medians
of the rounds are told. Everything stays on this machine, and the number of questions is bounded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pty
import re
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import hardware
from benchmarks.questions import examples_of
from instil.recipes.export.export import export

NEW_TOKENS = 64
SEQUENCES = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]")  # that steer a terminal
LONG = 1500  # tokens of a conversation before its second turn


@dataclass
class Server:
    """One of the servers, running."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    started: float
    idle_mb: float
    rounds: list[dict[str, float]] = field(default_factory=list)

    def memory_mb(self) -> float:
        """What it holds of the machine's memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1e3


def main() -> None:
    """Measure, and print a table and JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--questions", type=int, default=48, help="in a round, at most 1,000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", nargs="+", default=["f32", "int8", "llama-f32", "llama-q8_0"])
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where GGUF files are kept")
    parser.add_argument("--no-chat", action="store_true", help="leave the time to the first prompt of a chat out")
    parser.add_argument("--llama", nargs=2, metavar=("FILE", "PORT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.llama:
        llama(Path(asked.llama[0]), int(asked.llama[1]), asked.clients)
        return
    asked.work.mkdir(parents=True, exist_ok=True)
    told = measured(asked, asked.work)
    print(table(told), file=sys.stderr)
    print(json.dumps(told, indent=2))


def measured(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All figures."""
    questions = [f"{one.instruction}\n{one.input}".strip() for one in examples_of("starter", "all", 1000)]
    questions = (questions * 1000)[: min(asked.questions, 1000)]
    told: dict[str, Any] = {
        "machine": hardware(), "model": asked.model, "clients": asked.clients, "questions": len(questions),
        "new_tokens": NEW_TOKENS, "rounds": asked.rounds, "servers": {},
    }  # fmt: skip
    if not asked.no_chat:
        told["chat_seconds"] = statistics.median(chat_seconds(asked.model) for _ in range(3))
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running(name, asked, work)) for name in asked.servers]
        for _ in range(asked.rounds):
            for server in servers:
                server.rounds.append(asyncio.run(one_round(server.url, questions, asked.clients)))
        for server in servers:
            busy = server.memory_mb()
            second = asyncio.run(second_turn(server.url))
            told["servers"][server.name] = {
                **{key: statistics.median(one[key] for one in server.rounds) for key in server.rounds[0]},
                **second, "start_seconds": server.started, "idle_mb": server.idle_mb, "after_mb": busy,
            }  # fmt: skip
    return told


@contextlib.contextmanager
def running(name: str, asked: argparse.Namespace, work: Path) -> Iterator[Server]:
    """A server until the block ends."""
    port = free_port()
    if name.startswith("llama-"):
        file = work / f"{Path(asked.model).stem}-{name.removeprefix('llama-')}.gguf"
        if not file.exists():
            export(asked.model, "gguf", file, dtype=name.removeprefix("llama-"))
        words = ["-m", "benchmarks.serve", "--clients", str(asked.clients), "--llama", str(file), str(port)]
    else:
        words = ["-m", "instil.cli", "serve", asked.model, "--no-base", "--port", str(port)]
        words += [f"--{name}"] if name in ("int8", "bf16") else []
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() - begin > 120:
                raise SystemExit(f"{name} did not start; {' '.join(words)}")
            time.sleep(0.05)
        started = time.monotonic() - begin
        server = Server(name, url, process, started, 0.0)
        time.sleep(1)
        server.idle_mb = server.memory_mb()
        yield server
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def llama(file: Path, port: int, clients: int) -> None:
    """llama.cpp's own server, with room for all clients, else as it comes."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.port = str(file), port
    params.n_parallel, params.n_ctx = clients, clients * 2048
    params.verbosity = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = hardware()["cores"]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


async def one_round(url: str, questions: Sequence[str], clients: int) -> dict[str, float]:
    """All questions asked by so many clients, each its own one after another."""
    waiting = asyncio.Queue[str]()
    for question in questions:
        waiting.put_nowait(question)
    firsts: list[float] = []
    tokens = 0
    limits = httpx.Limits(max_connections=clients + 2, max_keepalive_connections=0)  # llama.cpp closes idle ones
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:

        async def ask() -> None:
            nonlocal tokens
            while not waiting.empty():
                first, count = await streamed(client, url, [{"role": "user", "content": waiting.get_nowait()}])
                firsts.append(first)
                tokens += count

        with looking(url) as listed:
            begin = time.monotonic()
            await asyncio.gather(*(ask() for _ in range(clients)))
            seconds = time.monotonic() - begin
    firsts.sort()
    listed.sort()
    return {
        "tokens_per_second": tokens / seconds,
        "first_token_p95": firsts[int(0.95 * (len(firsts) - 1))],
        "models_p50_ms": 1e3 * statistics.median(listed),
        "models_max_ms": 1e3 * listed[-1],
    }


@contextlib.contextmanager
def looking(url: str) -> Iterator[list[float]]:
    """Ask for the list of models four times a second until the block ends; the seconds that each took come then.

    In a process of its own: here they would wait for the 16 others to be asked and read.
    """
    seconds: list[float] = []
    words = [sys.executable, "-m", "benchmarks.looking", url]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        yield seconds
        process.stdin.close()  # which ends it
        seconds += json.loads(process.stdout.read())


async def streamed(
    client: httpx.AsyncClient, url: str, messages: Sequence[dict[str, str]], limit: int = NEW_TOKENS
) -> tuple[float, int]:
    """Seconds to the first text of an answer, and its tokens."""
    body = {"model": "", "messages": messages, "max_tokens": limit, "temperature": 0, "stream": True}
    body["model"] = await _model(client, url)
    body["stream_options"] = {"include_usage": True}
    first, count, begin = 0.0, 0, time.monotonic()
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            told = json.loads(line[6:])
            if not first and told["choices"] and told["choices"][0]["delta"].get("content"):
                first = time.monotonic() - begin
            if told.get("usage"):
                count = told["usage"]["completion_tokens"]
    return first or time.monotonic() - begin, count


NAMES: dict[str, str] = {}


async def _model(client: httpx.AsyncClient, url: str) -> str:
    if url not in NAMES:
        NAMES[url] = (await client.get(f"{url}/v1/models")).json()["data"][0]["id"]
    return NAMES[url]


async def second_turn(url: str) -> dict[str, float]:
    """First token of the second turn of a long chat."""
    messages = [{"role": "user", "content": "Tell me what this says. " + "The cat sat on the mat and slept. " * 160}]
    async with httpx.AsyncClient(timeout=300) as client:
        body = {"model": await _model(client, url), "messages": messages, "max_tokens": 48, "temperature": 0}
        said = (await client.post(f"{url}/v1/chat/completions", json=body)).json()
        known = said["usage"]["total_tokens"]
        messages += [{"role": "assistant", "content": said["choices"][0]["message"]["content"] or "Yes."}]
        first, _ = await streamed(client, url, [*messages, {"role": "user", "content": "And what else?"}], 16)
    return {"chat_tokens": known, "second_turn_first_token": first}


def chat_seconds(model: str) -> float:
    """From the command to the first prompt of ``instil chat``, in a terminal."""
    begin = time.monotonic()
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-m", "instil.cli", "chat", model])
    said = b""
    while b">" not in SEQUENCES.sub(b"", said.partition(b"/help has more")[2]) and time.monotonic() - begin < 60:
        if select.select([terminal], [], [], 0.05)[0]:
            said += os.read(terminal, 4096)
            if b"\x1b[6n" in said:  # where the cursor is, which a terminal would say
                os.write(terminal, b"\x1b[1;1R")
                said = said.replace(b"\x1b[6n", b"")
    seconds = time.monotonic() - begin
    os.write(terminal, b"\x04")
    os.close(terminal)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 15)
    os.waitpid(process, 0)
    return seconds


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def table(told: dict[str, Any]) -> str:
    """The figures side by side."""
    names = list(next(iter(told["servers"].values())))
    rows = ["| | " + " | ".join(told["servers"]) + " |", "| --- |" + " ---: |" * len(told["servers"])]
    for name in names:
        rows.append(f"| {name} | " + " | ".join(f"{one[name]:.4g}" for one in told["servers"].values()) + " |")
    machine = told["machine"]
    rows.append(f"\n{machine['cpu']} ({machine['architecture']}), {machine['cores']} cores, {told['clients']} clients")
    if "chat_seconds" in told:
        rows.append(f"instil chat to its first prompt: {told['chat_seconds']:.1f} s")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
