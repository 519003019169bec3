"""Where those that are compared with are installed, and whether they are.

Most share the environment that runs the benchmark. Those whose requirements contradict the others' have one of their
own, which the Makefile makes beside it: ``.venv-bench-unsloth``, ``.venv-bench-vllm``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python_of(home: str) -> Path:
    """The interpreter of an environment; of the one that runs this for ``""``.

    >>> python_of("") == Path(sys.executable)
    True
    """
    if not home:
        return Path(sys.executable)
    beside = Path(f"{sys.prefix}-{home}")
    folder = beside if beside.is_dir() else ROOT / f".venv-bench-{home}"
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def installed(package: str, home: str = "") -> bool:
    """Whether a package can be imported there; nothing is imported to know it.

    >>> installed("json"), installed("no_such_package"), installed("json", "no-such-environment")
    (True, False, False)
    """
    if not home:
        return importlib.util.find_spec(package) is not None
    python = python_of(home)
    folders = (python.parents[1] / "lib").glob("python*/site-packages"), [python.parents[1] / "Lib" / "site-packages"]
    return python.exists() and any((folder / package).is_dir() for found in folders for folder in found)
