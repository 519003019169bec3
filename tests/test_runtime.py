"""The process is settled once, quietly, and as the user has it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from instil import runtime
from instil.errors import SettingsError


def test_the_users_own_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: pytest.fail("the allocator is the user's"))
    runtime.settle()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_memory_that_is_freed_stays_with_the_process() -> None:
    """A block far above glibc's own threshold for giving back leaves the process as large as it was."""
    code = (
        "from instil import runtime; {}\n"
        "import ctypes; c = ctypes.CDLL(None); c.malloc.restype = ctypes.c_void_p\n"
        "c.free.argtypes = [ctypes.c_void_p]\n"
        "b = c.malloc(ctypes.c_size_t(200 << 20)); ctypes.memset(ctypes.c_void_p(b), 1, 200 << 20); c.free(b)\n"
        "print(next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS')) >> 10)"
    )
    sizes = [
        int(subprocess.run([sys.executable, "-c", code.format(call)], capture_output=True, check=True).stdout)
        for call in ("runtime.settle()", "None")
    ]
    assert sizes[0] > 200 > sizes[1]


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.device_for("auto") == runtime.device_for("cpu") == "cpu"
    with pytest.raises(SettingsError, match="no GPU"):
        runtime.device_for("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runtime.device_for("auto") == "cuda"
