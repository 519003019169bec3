"""The command line as a process of its own, which begins within a moment.

A process that has read PyTorch once waits for commands and forks for each. What it forks is a process with its own
number, signals, files, folder and environment, in which `instil.cli.main` runs as it does when a user calls it; only
the second and a half that reading PyTorch takes is spent once and not for each command.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, NoReturn, Self, cast

READ = ("matplotlib.pyplot", "rapidfuzz", "sacrebleu", "safetensors.torch", "tokenizers", "httpx2", "rich.live")


class Command:
    """``instil`` with some arguments, under way; of `subprocess.Popen` what the tests need.

    Args:
        arguments: what a user would write after ``instil``.
        cwd: the folder that it is called in.
        env: its environment; as in this process if none is given.
        stdin: whether something will be written to it.
    """

    def __init__(
        self,
        *arguments: object,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bool = False,
    ) -> None:
        asked = {
            "arguments": [str(one) for one in arguments],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
        }
        ends = [os.pipe(), os.pipe(), os.pipe()]
        (given, giving), (said, saying), (complained, complaining) = ends
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(_listening())
        socket.send_fds(self._line, [b"x"], [given, saying, complaining])
        for one in (given, saying, complaining):
            os.close(one)
        self._line.sendall(json.dumps(asked).encode() + b"\n")
        self._told = self._line.makefile("r")
        self.pid = int(self._told.readline())
        self.returncode: int | None = None
        self.stdout: IO[str] = os.fdopen(said, encoding="utf-8", errors="surrogateescape")
        self.stderr: IO[str] = os.fdopen(complained, encoding="utf-8", errors="surrogateescape")
        self.stdin: IO[str] | None = os.fdopen(giving, "w", encoding="utf-8") if stdin else None
        if not stdin:
            os.close(giving)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self.kill()
        self.wait()
        for one in (self.stdin, self.stdout, self.stderr):
            if one is not None:
                one.close()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def poll(self) -> int | None:
        """Its exit code, negative for a signal that ended it; None as long as it runs."""
        try:
            return self.wait(0.001)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once there is one.

        Raises:
            subprocess.TimeoutExpired: there is none after so many seconds.
        """
        if self.returncode is None:
            self._line.settimeout(timeout)
            try:
                ended = self._line.recv(64)
            except TimeoutError:
                raise subprocess.TimeoutExpired("instil", timeout or 0) from None
            self.returncode = int(ended)
            self._told.close()
            self._line.close()
        return self.returncode

    def communicate(self, given: str = "", timeout: float = 300) -> tuple[str, str]:
        """What it says and what it complains of, until it ends."""
        import threading

        complaints: list[str] = []
        beside = threading.Thread(target=lambda: complaints.append(self.stderr.read()))
        beside.start()
        if self.stdin is not None:
            self.stdin.write(given)
            self.stdin.close()
        said = self.stdout.read()
        beside.join()
        self.wait(timeout)
        self.stdout.close()
        self.stderr.close()
        return said, complaints[0]


def instil(
    *arguments: object, cwd: str | Path | None = None, stdin: str = "", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """``instil`` with some arguments, ended."""
    command = Command(*arguments, cwd=cwd, env=env, stdin=True)
    said, complaints = command.communicate(stdin)
    return subprocess.CompletedProcess(["instil", *map(str, arguments)], command.wait(), said, complaints)


@cache
def _listening() -> str:
    """Where the process that forks listens, begun once for all tests of this process."""
    import atexit

    folder = tempfile.TemporaryDirectory(prefix="instil-tests-")
    path = f"{folder.name}/s"
    root = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.processes", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=root, env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])},
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    process.stdout.close()

    def end() -> None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)
        folder.cleanup()

    atexit.register(end)
    return path


def _serve(path: str) -> None:
    """Fork for each that connects, until the process that began this one is gone."""
    import select

    import instil.cli

    for found in pkgutil.walk_packages(instil.__path__, "instil."):
        if "serve" not in found.name and not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for name in READ:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen(64)
        print("listening", flush=True)
        while True:
            ready, _, _ = select.select([door, sys.stdin], [], [])
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if sys.stdin in ready:
                return
            line, _ = door.accept()
            if os.fork() == 0:
                door.close()
                _wait_for_command(line)
            line.close()


def _wait_for_command(line: socket.socket) -> NoReturn:
    """Fork again for the command that is asked for, and tell its number and how it ended."""
    _, ends, _, _ = socket.recv_fds(line, 1, 3)
    asked = json.loads(line.makefile("r").readline())
    number = os.fork()
    if number == 0:
        line.close()
        _become(asked, ends)
    for one in ends:
        os.close(one)
    line.sendall(f"{number}\n".encode())
    _, status = os.waitpid(number, 0)
    line.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(asked: dict[str, object], ends: list[int]) -> NoReturn:
    """Be the command: `instil.cli.main`, with all that a process gets from who calls it."""
    import atexit
    import threading

    code = 1
    try:
        for wanted, one in enumerate(ends):
            os.dup2(one, wanted)
            os.close(one)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(0, closefd=False),
            os.fdopen(1, "w", closefd=False),
            os.fdopen(2, "w", closefd=False, errors="backslashreplace", buffering=1),
        )
        os.chdir(str(asked["cwd"]))
        os.environ.clear()
        os.environ.update(cast(dict[str, str], asked["env"]))
        sys.modules["__main__"].__package__ = ""  # so that usage names the command as it is called
        sys.argv = ["instil", *cast(list[str], asked["arguments"])]

        from instil.cli import main

        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            code = 120
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
