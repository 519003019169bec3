"""Processes of one thread that talk by gloo, started once and asked again and again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from instil.train.ranks import Ranks

LONGEST = 120.0  # seconds that an answer may take


class Pool:
    """So many processes; `call` runs a function of a module in each of them, with its `Ranks` as first argument."""

    def __init__(self, world: int) -> None:
        port, spawn = free_port(), multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for rank in range(world):
            here, there = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(there, rank, world, port), daemon=True)
            process.start()
            there.close()
            self._ends.append(here)
            self._processes.append(process)

    def call(self, function: Callable[..., Any], *given: Any) -> list[Any]:
        """What it returns in each, which can be pickled."""
        for end in self._ends:
            end.send((function, given))
        said = [end.recv() if end.poll(LONGEST) else (False, "it says nothing") for end in self._ends]
        for rank, (good, what) in enumerate(said):
            assert good, f"process {rank}:\n{what}"
        return [what for _, what in said]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(10)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _serve(end: Connection, rank: int, world: int, port: int) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= where | {"WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    import torch

    from instil.train.parallel.processes import joined

    torch.set_num_threads(1)
    with joined() as ranks:
        while True:
            function, given = end.recv()
            end.send(_answer(function, ranks, given))


def _answer(function: Callable[..., Any], ranks: Ranks, given: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return True, function(ranks, *given)
    except Exception:
        return False, traceback.format_exc()
