"""What this machine has, and what this process takes of it. All in bytes."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")
FORGET = Path("/proc/self/clear_refs")  # Linux: "5" written here makes the peak what is held now
FORGOTTEN = 1 << 26  # bytes by which the new peak may exceed that


def machine_memory() -> int:
    """The memory there is: the machine's, or less where a container (a control group) has less."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        text = limit.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return found
    return min(found, int(text)) if text.isdigit() else found


def memory_now() -> int:
    """What this process holds at the moment; where the system does not tell, the most it has held."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return peak_memory()
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_memory() -> int:
    """The most this process has held so far, or since `forget_peak`."""
    try:
        found = re.search(rb"VmHWM:\s+(\d+) kB", STATUS.read_bytes())
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> bool:
    """Let the peak begin anew from what is held now; False where the system cannot do that."""
    try:
        FORGET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return peak_memory() < memory_now() + FORGOTTEN
