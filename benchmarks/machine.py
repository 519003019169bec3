"""What this machine is and what it can do at most; run as ``python -m benchmarks.machine`` in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("fma.c")
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory; nothing that names the machine."""
    text = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    family, number = (
        int(found.group(1)) if (found := re.search(rf"^{field}\s*:\s*(\d+)$", text, re.MULTILINE)) else None
        for field in ("cpu family", "model")
    )
    name = model.group(1).strip() if model else _sysctl() or platform.machine()
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    return {
        "cpu": re.sub(r"\s+", " ", name),
        "cpu_family": family,
        "architecture": zen(family, number) if "AMD" in name else "",
        "cores": cores(),
        "features": [flag for flag in FLAGS if flags and flag in flags.group(1).split()],
        "memory_gb": round(int(memory.group(1)) / 1e6, 1) if memory else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def zen(family: int | None, model: int | None) -> str:
    """The generation of AMD's processors, since their names do not always tell; empty if it is not known.

    >>> zen(25, 17), zen(25, 1), zen(26, 2), zen(6, 1)
    ('Zen 4', 'Zen 3', 'Zen 5', '')
    """
    if family == 25 and model is not None:
        return "Zen 4" if 0x10 <= model < 0x20 or 0x60 <= model < 0xB0 else "Zen 3"
    return {23: "Zen 2" if model is not None and model >= 0x30 else "Zen", 26: "Zen 5"}.get(family or 0, "")


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def slug(told: dict[str, Any]) -> str:
    """The hardware in a file's name.

    >>> slug({"cpu": "AMD EPYC 7763 64-Core Processor", "cores": 2})
    'amd-epyc-7763-64-core-processor-2-cores'
    """
    words = re.sub(r"[^a-z0-9]+", "-", str(told["cpu"]).lower()).strip("-")
    return f"{words}-{told['cores']}-core{'s' if told['cores'] != 1 else ''}"


def fma_peak(threads: int, millions: int) -> tuple[float | None, str]:
    """Operations a second of a loop that stays in registers, and how that was found; None without a C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None, "no C compiler found, so the peak of the multiply-add units was not measured"
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "fma")
        for native in (["-march=native"], ["-mcpu=native"], []):
            build = [compiler, "-O3", *native, "-pthread", str(SOURCE), "-o", program]
            if subprocess.run(build, capture_output=True, check=False).returncode == 0:
                run = [program, str(threads), str(millions)]
                said = [subprocess.run(run, capture_output=True, check=True).stdout for _ in range(3)]
                return max(map(float, said)), f"a loop in C, {threads} threads, best of {len(said)}"
    return None, "the C compiler could not build fma.c, so the peak of the multiply-add units was not measured"


def peaks(*, small: bool) -> dict[str, Any]:
    """Peak of multiply-add, best sgemm, and bandwidth of a copy."""
    import torch

    from benchmarks.gemm import BACKENDS, best_seconds, products

    side, rounds, copied = (256, 3, 1 << 20) if small else (2048, 7, 1 << 28)
    threads = torch.get_num_threads()
    fma, how = fma_peak(threads, 2 if small else 200)
    gemm: dict[str, float] = {}
    for backend in BACKENDS:
        try:
            work = products(backend, side, side, side)["NT"]
        except LookupError:
            continue
        gemm[backend] = 2.0 * side**3 / best_seconds(work, rounds)
    source = torch.ones(copied // 4)
    target = torch.empty_like(source)
    bandwidth = 2 * copied / best_seconds(lambda: target.copy_(source), rounds)
    return {
        "threads": threads,
        "fma": fma,
        "fma_how": how,
        "sgemm": gemm,
        "sgemm_best": max(gemm.values()),
        "sgemm_side": side,
        "bandwidth": bandwidth,
    }


def at_shapes(spec: dict[str, Any], rows: int, scored: int, *, small: bool) -> dict[str, Any]:
    """Seconds that the products of one step take where each is done by the fastest library.

    Args:
        spec: of the model, as a dict.
        rows: tokens computed in the body.
        scored: rows of the head.
    """
    from benchmarks.floor import layer_shapes
    from benchmarks.gemm import speeds
    from instil.model.spec import DecoderSpec, RopeScaling

    scaling = spec["rope_scaling"] and RopeScaling(**spec["rope_scaling"])
    shape = DecoderSpec(**{**spec, "rope_scaling": scaling, "windows": tuple(spec["windows"])})
    layers = [(rows, *layer, shape.layers) for layer in layer_shapes(shape)]
    seconds = 0.0
    for count, outputs, inputs, times in [*layers, (scored, shape.vocab_size, shape.width, 1)]:
        found = speeds(count, outputs, inputs, 2 if small else 5)
        for form in ("NT", "NN", "TN"):
            best = max(speed[form] for speed in found.values())
            seconds += times * 2e-9 * count * outputs * inputs / best
    return {"rows": rows, "scored": scored, "seconds": seconds}


def main() -> None:
    """Print peaks as JSON; with a job's facts also the seconds at its shapes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("facts", nargs="*", type=Path, help="facts of jobs, see benchmarks.inputs")
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    told: dict[str, Any] = {"peaks": peaks(small=asked.small), "shapes": {}}
    for path in asked.facts:
        facts = json.loads(path.read_text(encoding="utf-8"))
        work = facts["work"]
        rows, scored = (round(sum(one[name] for one in work) / len(work)) for name in ("rows", "scored"))
        told["shapes"][path.name] = at_shapes(facts["spec"], rows, scored, small=asked.small)
    json.dump(told, sys.stdout)


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _sysctl() -> str:
    if platform.system() != "Darwin":
        return ""
    asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
