"""Which library multiplies fastest here: torch's own product, numpy's OpenBLAS without copies, or oneDNN.

``python -m benchmarks.gemm`` prints GFLOP/s for the shapes and the three forms of a training step:
NT (output of a layer), NN (gradient of its input) and TN (gradient of its weight). With ``--type bfloat16`` what
`train.precision=bf16` multiplies with; numpy's OpenBLAS has none of these.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROWS = (110, 160, 280, 350, 500)
SHAPES = {  # (outputs, inputs): query-key-value, attention's output, up, down, head
    "gpt2": ((2304, 768), (768, 768), (3072, 768), (768, 3072), (50257, 768)),
    "smollm2": ((960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576)),
    "gemma3": ((262144, 640),),
}
FORMS = ("NT", "NN", "TN")
BACKENDS = ("torch", "openblas", "onednn")
Product = Callable[[], Any]


def products(
    backend: str, rows: int, outputs: int, inputs: int, kind: torch.dtype = torch.float32
) -> dict[str, Product]:
    """The three products of a layer for so many rows; torch and OpenBLAS write their results in place.

    Raises:
        LookupError: the backend is not there.
    """
    x, weight, grad = (torch.randn(shape, dtype=kind) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs)))
    operands = {"NT": (x, weight.t()), "NN": (grad, weight), "TN": (grad.t(), x)}
    return {form: _product(backend, left, right) for form, (left, right) in operands.items()}


def _product(backend: str, left: Tensor, right: Tensor) -> Product:
    out = torch.empty(left.shape[0], right.shape[1], dtype=left.dtype)
    if backend == "torch":
        return lambda: torch.mm(left, right, out=out)
    if backend == "openblas":
        if not has_openblas() or left.dtype != torch.float32:
            raise LookupError("numpy here has no OpenBLAS, or not for this type")
        return lambda: np.matmul(left.numpy(), right.numpy(), out=out.numpy())
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        raise LookupError("torch here was built without oneDNN")
    turned = right.t()
    return lambda: torch.ops.mkldnn._linear_pointwise(left, turned, None, "none", [], "")


def has_openblas() -> bool:
    """Whether numpy multiplies with OpenBLAS."""
    told: Any = np.show_config(mode="dicts")
    return "openblas" in str(told.get("Build Dependencies", {}).get("blas", {}).get("name", "")).lower()


def best_seconds(work: Product, rounds: int) -> float:
    """The fastest of some rounds after one that does not count."""
    work()
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def speeds(
    rows: int, outputs: int, inputs: int, rounds: int, kind: torch.dtype = torch.float32
) -> dict[str, dict[str, float]]:
    """GFLOP/s by backend and form."""
    found: dict[str, dict[str, float]] = {}
    for backend in BACKENDS:
        try:
            three = products(backend, rows, outputs, inputs, kind)
        except LookupError:
            continue
        flops = 2e-9 * rows * outputs * inputs
        found[backend] = {form: flops / best_seconds(work, rounds) for form, work in three.items()}
    return found


def table(results: Sequence[dict[str, Any]]) -> str:
    """One line for each shape and form, the fastest of a line marked."""
    lines = [
        "| rows x outputs x inputs | form | " + " | ".join(BACKENDS) + " | best / torch |",
        "|" + " --- |" * (len(BACKENDS) + 3),
    ]
    for result in results:
        for form in FORMS:
            speed = {backend: result["speeds"].get(backend, {}).get(form) for backend in BACKENDS}
            best = max(value for value in speed.values() if value is not None)
            cells = [
                "-" if value is None else f"**{value:.0f}**" if value == best else f"{value:.0f}"
                for value in speed.values()
            ]
            shape = f"{result['rows']} x {result['outputs']} x {result['inputs']}"
            gain = best / (speed["torch"] or best)
            lines.append(f"| {shape} | {form} | " + " | ".join(cells) + f" | {gain:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print; ``--json`` for one JSON object instead of the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=tuple(SHAPES), default=list(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch and OpenBLAS choose")
    parser.add_argument("--type", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    results = []
    for model in asked.models:
        for outputs, inputs in SHAPES[model]:
            for rows in asked.rows:
                found = speeds(rows, outputs, inputs, asked.rounds, getattr(torch, asked.type))
                results.append({"rows": rows, "outputs": outputs, "inputs": inputs, "speeds": found})
    print(json.dumps(results) if asked.json else f"GFLOP/s, best of {asked.rounds}\n\n{table(results)}")


if __name__ == "__main__":
    main()
