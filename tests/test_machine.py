"""The process is settled once, quietly, and as the user has it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from instil import machine
from instil.errors import SettingsError


def test_the_users_own_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: pytest.fail("the allocator is the user's"))
    machine.settle()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_memory_that_is_freed_stays_with_the_process() -> None:
    """Blocks that glibc would give back on its own leave the process as large as it was; huge ones go."""
    code = (
        "from instil import machine; {}\n"
        "import ctypes; c = ctypes.CDLL(None); c.malloc.restype = ctypes.c_void_p\n"
        "c.free.argtypes = [ctypes.c_void_p]\n"
        "blocks = [c.malloc(ctypes.c_size_t(20 << 20)) for _ in range(10)]\n"
        "for b in blocks: ctypes.memset(ctypes.c_void_p(b), 1, 20 << 20)\n"
        "for b in blocks: c.free(b)\n"
        "b = c.malloc(ctypes.c_size_t(400 << 20)); ctypes.memset(ctypes.c_void_p(b), 1, 400 << 20); c.free(b)\n"
        "print(next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS')) >> 10)"
    )
    sizes = [
        int(subprocess.run([sys.executable, "-c", code.format(call)], capture_output=True, check=True).stdout)
        for call in ("machine.settle()", "None")
    ]
    assert 400 > sizes[0] > 200 > sizes[1]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="of glibc")
def test_memory_does_not_grow_with_every_new_shape() -> None:
    """Left alone, oneDNN keeps a product for each number of tokens, some megabytes for a model's layers."""
    code = (
        "from instil import machine; {}\n"
        "import ctypes, torch\n"
        "from instil.model.fast.gemm import Linear\n"
        "class Info(ctypes.Structure):\n"
        "    _fields_ = [(name, ctypes.c_size_t) for name in 'abcdefghij']\n"
        "libc = ctypes.CDLL(None); libc.mallinfo2.restype = Info\n"
        "def used(): info = libc.mallinfo2(); return (info.e + info.h) >> 20\n"
        "layers = [Linear(576, width, bias=False) for width in (960, 1536, 3072)]\n"
        "def step(tokens):\n"
        "    for layer in layers: layer(torch.ones(tokens, 576, requires_grad=True)).sum().backward()\n"
        "step(200); before = used()\n"
        "for tokens in range(80, 140): step(tokens)\n"
        "print(used() - before)"
    )
    environment = {**os.environ, "INSTIL_GEMM": "onednn"}
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        environment.pop(cache, None)
    grown = [
        int(
            subprocess.run(
                [sys.executable, "-c", code.format(call)], capture_output=True, check=True, env=environment
            ).stdout
        )
        for call in ("machine.settle()", "None")
    ]
    assert grown[0] < 40
    assert grown[0] < grown[1] / 2


@pytest.mark.parametrize(
    ("limit", "used", "cached", "wanted"),
    [("max", "5", "1", 3 << 20), ("1000", "400", "100", 700), ("100", "400", "100", 0), ("junk", "x", "1", 3 << 20)],
)
def test_memory_that_can_be_had(
    limit: str, used: str, cached: str, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    read = Path.read_text
    told = {"max": limit, "current": used, "stat": f"anon 3\ninactive_file {cached}\n"}
    files = {f"/sys/fs/cgroup/memory.{name}": text for name, text in told.items()}
    files["/proc/meminfo"] = "MemTotal: 9000 kB\nMemAvailable: 3072 kB\n"

    def fake(path: Path, **keywords: Any) -> str:
        if str(path).startswith("/sys/fs/cgroup") and str(path) not in files:
            raise FileNotFoundError
        return files[str(path)] if str(path) in files else read(path, **keywords)

    monkeypatch.setattr(Path, "read_text", fake)
    assert machine.available_memory(torch.device("cpu")) == wanted


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.device_for("auto") == machine.device_for("cpu") == "cpu"
    with pytest.raises(SettingsError, match="no GPU"):
        machine.device_for("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.device_for("auto") == "cuda"
