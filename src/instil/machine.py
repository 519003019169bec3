"""Where the process computes and how it treats memory; nothing here changes a number that is computed (E0).

A training step makes and drops hundreds of megabytes. glibc gives every large block back to the kernel at
once, which then has to map and clear new pages for the next one; and pages of 4 KiB cost far more look-ups
than those of 2 MiB. oneDNN keeps a compiled product for every shape it has met, and in training every batch has
its own: the thousand it would keep are some hundred megabytes that are never used again. All three are told
otherwise here, before torch makes its first tensor.

Besides: what memory this machine has, and what this process takes of it, in bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import re
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from instil.errors import SettingsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT = 1 << 25  # bytes of the largest block that stays with the process, and the most that glibc takes here
LITTLE = 1 << 17  # what glibc begins with
# Of either version of Linux control groups: limit, use, and how much of the use is cached files.
CONTROL_GROUPS = (
    (
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory.current",
        "/sys/fs/cgroup/memory.stat",
        "inactive_file",
    ),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)
_little = False
PRODUCTS = "64"  # shapes of products kept: those of one training step, attention's in bfloat16 among them


def settle() -> None:
    """Keep freed memory for the next step and ask for huge pages; once, and only on Linux with glibc.

    What the user has set in the environment (``THP_MEM_ALLOC_ENABLE``, ``MALLOC_*``) stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch: huge pages for tensors from 2 MiB up
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's, and torch's in front of it
        os.environ.setdefault(cache, PRODUCTS)
    _keep(KEPT, 2**31 - 1)


def keep_little() -> None:
    """Take back what `settle` does for speed: freed memory is the system's at once, where weights are made whole for a
    moment, in every process of a machine. Copies of weights are not held either (`keeps_little`).
    """
    global _little  # noqa: PLW0603 - as malloc's, it is one of the process
    _little = True
    _keep(LITTLE, LITTLE)


def keeps_little() -> bool:
    """Whether `keep_little` was said in this process."""
    return _little


def _keep(largest: int, together: int) -> None:
    """Let malloc keep freed blocks of up to so many bytes, and no more than so many at the end of its heap."""
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, largest)
        mallopt(M_TRIM_THRESHOLD, together)


def release() -> None:
    """Give back the memory of what is no longer used, which `settle` keeps for the next step."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def device_for(asked: str) -> str:
    """Where to compute: ``"auto"`` is a GPU if there is one.

    Raises:
        SettingsError: a GPU is asked for and there is none.
    """
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise SettingsError("train.device=cuda, but torch sees no GPU here; use cpu or auto, or a torch with CUDA")
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device. To a GPU it goes from pinned memory, and nobody waits for it.

    Any other copy to a GPU waits until all is done that the GPU has to do, so that it stands still afterwards until it
    is given new work.
    """
    import torch

    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def processor() -> str:
    """What the processor calls itself."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^(?:model name|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return re.sub(r"\s+", " ", found[1]).strip() if found else platform.processor() or platform.machine()


def available_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device: of this machine, or of what its control group leaves."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    told = _numbers("/proc/meminfo")
    if "MemAvailable:" in told:
        free = told["MemAvailable:"] << 10
    for limit, used, facts, cached in CONTROL_GROUPS:
        most, now = _number(limit), _number(used)
        if most is not None and now is not None:
            free = min(free, most - now + _numbers(facts).get(cached, 0))
    return max(free, 0)


def _number(path: str) -> int | None:
    """The one number in a file of the kernel's, if it holds one."""
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() else None


def _numbers(path: str) -> dict[str, int]:
    """Lines of a name and a number."""
    try:
        lines = [line.split() for line in Path(path).read_text(encoding="ascii").splitlines()]
    except (OSError, UnicodeDecodeError):
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}


NO_MEMORY = re.compile(
    r"out of memory|allocate memory|not enough memory|bad_alloc|ALLOC_FAILED|memory allocation failed", re.IGNORECASE
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory, of the machine or of a GPU (torch has several ways to say so)."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error))))


_left_behind: list[str] = []  # names of what is still at work, and is not waited for


def leave_behind(name: str) -> None:
    """A library's own thread goes on, and may have others that Python waits for: see `end_process`."""
    _left_behind.append(name)


def end_process(code: int) -> None:
    """End the process at once if something was left behind; else do nothing, and let it end as others do.

    Threads and clean-up of the library that hangs would be waited for, be it forever.
    """
    if _left_behind:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


STATUS = Path("/proc/self/status")
FORGET = Path("/proc/self/clear_refs")  # Linux: "5" written here makes the peak what is held now
FORGOTTEN = 1 << 26  # bytes by which the new peak may exceed that


def machine_memory(device: torch.device | None = None) -> int:
    """The memory there is: a GPU's, or the machine's, or less where a container (a control group) has less."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[1])
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        text = limit.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return found
    return min(found, int(text)) if text.isdigit() else found


def memory_now(device: torch.device | None = None) -> int:
    """What this process holds now, on a GPU or in the machine; where the system does not tell, the most it has held."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.memory_allocated(device))
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return peak_memory()
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_memory(device: torch.device | None = None) -> int:
    """The most this process has held so far, or since `forget_peak`, on a GPU or in the machine."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        found = re.search(rb"VmHWM:\s+(\d+) kB", STATUS.read_bytes())
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> bool:
    """Let the peak begin anew from what is held now, on GPUs too; False where the system cannot do that."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        FORGET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return peak_memory() < memory_now() + FORGOTTEN


def peak_memory_gb() -> float:
    """The most memory this process has held since the run began, in GB (where that cannot be told, since it began)."""
    return peak_memory() / 1e9


def peak_gpu_memory_gb() -> float | None:
    """The most that this process has held of its GPU's memory, likewise; None where it computes on none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return float(torch.cuda.max_memory_allocated() / 1e9)
