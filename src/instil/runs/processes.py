"""Processes by what tells them from others: a number alone is given anew to the next one."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """A process, wherever it is.

    Attributes:
        pid: its number.
        began: when it began, as its system tells it.
        host: the name of its machine.
        system: which start of the system it belongs to, and in which space its number counts (containers have their
            own); empty where that is not told.
    """

    pid: int
    began: str
    host: str
    system: str

    @staticmethod
    def own() -> Process:
        """This one."""
        return Process(os.getpid(), _began(os.getpid()) or "", platform.node(), _system())

    def is_alive(self) -> bool | None:
        """Whether it is there; None where that cannot be seen from here."""
        here = Process.own()
        if self.host == here.host and self.system == here.system:
            return _began(self.pid) == self.began
        boot, there = here.system.partition(" ")[0], self.system.partition(" ")[0]
        if self.host == here.host and boot and there and boot != there:
            return False  # the machine was started again since
        return None

    def shares_kernel(self) -> bool:
        """Whether it belongs to this machine's system as it was started last, in whatever container."""
        boot = self.system.partition(" ")[0]
        return boot != "" and boot == _system().partition(" ")[0]

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _system() -> str:
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {(PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(pid: int) -> str | None:
    """When a process began, in words of the system's; None if there is none, or none that still runs."""
    if (PROC / "self/stat").exists():
        try:
            fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()  # its name may hold anything
        except OSError:
            return None
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()  # one that is dead and not waited for
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
