"""How many times as fast instil is, from the files that the benchmarks leave in ``results``; and the table of README.

A ratio is that to instil with the same mathematics, so that losses are equal: of the book's code and of LitGPT with an
untied head, of PEFT with adapters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import is_common

NOT = "not measured"

# Rows: what is compared with, and the cells for training and answering, with "case/contender" in braces.
BOOK, TRL, PEFT, HF = "the book's code", "TRL, tuned", "TRL with PEFT, tuned", "transformers, batches of 22"
TABLE: tuple[tuple[str, str, str], ...] = (
    (
        "the book's code (GPT-2 124M)",
        f"{{gpt2-all/{BOOK}}}, responses only {{gpt2-response/{BOOK}}}; equal losses",
        "{gpt2/the book's generate}; the same tokens",
    ),
    (
        "TRL 1.16 (SmolLM2-135M): bfloat16 off, as shipped",
        f"{{smollm2-all smollm2-response/{TRL}}}, {{smollm2-all smollm2-response/TRL, as shipped}}",
        "",
    ),
    (
        "TRL 1.16 with PEFT 0.21, LoRA of rank 16: GPT-2, SmolLM2-135M",
        f"{{gpt2-response/{PEFT}}}, {{smollm2-response/{PEFT}}}; of its memory "
        f"{{memory gpt2-response/instil, LoRA/{PEFT}}}, with checkpointing "
        f"{{memory gpt2-response/instil, LoRA, checkpointing/{PEFT}}}",
        "",
    ),
    (
        "TRL 1.16, DPO with the reference (GPT-2, SmolLM2-135M): as usual; with PEFT; computed beforehand (one round)",
        f"{{dpo-gpt2/{TRL}}}, {{dpo-smollm2/{TRL}}}; {{dpo-gpt2/{PEFT}}}, {{dpo-smollm2/{PEFT}}}; "
        "{dpo-gpt2/TRL, precomputed}, {dpo-smollm2/TRL, precomputed}; equal losses",
        "",
    ),
    ("LitGPT 0.5 (SmolLM2-135M)", "{smollm2-all smollm2-response/LitGPT}; equal losses", ""),
    (
        "Unsloth 2026.10 on the processor (SmolLM2-135M): float32; all in bfloat16, beside ours in it; LoRA so",
        "{smollm2-all smollm2-response/Unsloth, float32}, equal losses; "
        "{least smollm2-response/Unsloth/Unsloth, compiled}; "
        "{least smollm2-response/Unsloth, LoRA/Unsloth, LoRA, compiled}",
        "",
    ),
    (
        "rows with 600 common and 50 own tokens (SmolLM2-135M): TRL tuned, Unsloth float32, LitGPT",
        "{prefix-smollm2-response/TRL, tuned}, {prefix-smollm2-response/Unsloth, float32}, "
        "{prefix-smollm2-response/LitGPT}; equal losses",
        "",
    ),
    (
        "transformers 5.23, batches of 22 (SmolLM2-135M)",
        "",
        f"{{smollm2/{HF}}}, to the end tokens {{smollm2-end/{HF}}}; the same tokens",
    ),
    ("the same, continuous batching", "", "{best smollm2/transformers, continuous}; the same tokens"),
    (
        "vLLM 0.32, built for a CPU (SmolLM2-135M): float32; bfloat16, beside ours in it",
        "",
        "{least smollm2/vLLM/vLLM, eager}; the same tokens; {least smollm2/vLLM bf16/vLLM bf16, eager}",
    ),
    (
        "llama.cpp (SmolLM2-135M): F32 one at a time, best slots",
        "",
        "{smollm2/llama.cpp F32, one at a time}, {best smollm2/llama.cpp F32}",
    ),
    ("llama.cpp Q4, best slots", "", "{best smollm2/llama.cpp Q4}"),
)


def collected(files: Sequence[Path]) -> tuple[dict[str, Any], dict[str, str]]:
    """Ratios and memory by "case/contender", a value for each file; and processor and dates of the files.

    Where files of one kind have the same case with more and with fewer rounds, all of them count that have the most.
    """
    found: dict[str, list[dict[str, float]]] = {}
    processors, dates = set(), set()
    for file in files:
        told = json.loads(Path(file).read_text(encoding="utf-8"))
        processors.add(_processor(told["hardware"]))
        dates.add(told["date"])
        cases = {f"dpo-{name}": one for name, one in told.get("models", {}).items()} or told["cases"]
        data = str(told.get("settings", {}).get("data", ""))
        if is_common(data):  # rows of another kind under the same names of cases
            cases = {f"{data.partition(':')[0]}-{name}": one for name, one in cases.items()}
        for case, one in cases.items():
            for row in one["rows"]:
                if (ratio := _ratio(row)) is not None:
                    contender = row.get("contender", row.get("answerer"))
                    values = {
                        "ratio": round(ratio, 3),
                        "rounds": row["rounds"],
                        "peak_gb": round(row["peak_gb"] or 0, 3),
                    }
                    found.setdefault(f"{case}/{contender}", []).append(values)
    for rows in found.values():
        most = max(row["rounds"] for row in rows) if rows[0]["rounds"] else 0
        rows[:] = [row for row in rows if row["rounds"] >= min(most, 2)]
    return found, {"processor": "; ".join(sorted(processors)), "date": " to ".join(sorted({min(dates), max(dates)}))}


def speed_table(values: Mapping[str, Sequence[Mapping[str, float]]], where: str) -> str:
    """The table of README; a row of which nothing has been measured is left out."""
    lines = [
        "The same rows, batches and weights, medians of rounds, beside instil with the same mathematics",
        f"({where}); the files in [benchmarks/results](benchmarks/results/README.md) have all",
        "figures, and `make bench-train`, `make bench-prefer` and `make bench-answer` measure them anew.",
        "",
        "| times as fast as | training | answering, 110 prompts |",
        "| --- | --- | --- |",
    ]
    for name, *cells in TABLE:
        training, answering = (re.sub(r"\{([^}]*)\}", lambda match: _cell(match[1], values), cell) for cell in cells)
        if all(_cell(wanted, values) == NOT for cell in cells for wanted in re.findall(r"\{([^}]*)\}", cell)):
            continue
        lines.append(f"| {name} | {training} | {answering} |".replace("|  |", "| |"))
    return "\n".join(lines)


def _ratio(row: Mapping[str, Any]) -> float | None:
    if "whole_ratios" in row:
        ratios = sorted(row["whole_ratios"])
        return float(ratios[len(ratios) // 2]) if ratios else None
    found = row.get("same_mathematics_times_as_fast", row.get("instil_times_as_fast"))
    return None if found is None else float(found)


def _cell(wanted: str, values: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """A ratio or its range over cases and files.

    Of ``best`` the least of all that begin so, of ``least`` that of those that are named, of ``memory`` a share.
    """
    kind, _, rest = wanted.partition(" ")
    if kind == "memory":
        case, ours, theirs = rest.split("/")
        shares = [
            one["peak_gb"] / other["peak_gb"]
            for one, other in zip(
                _of(f"{case}/{ours}", values)[::-1], _of(f"{case}/{theirs}", values)[::-1], strict=False
            )
        ]
        return _range([100 * share for share in shares], 0) + " %"
    if kind == "least":
        case, *names = rest.split("/")
        measured = [min(row["ratio"] for row in rows) for name in names if (rows := _of(f"{case}/{name}", values))]
        return _range([min(measured)] if measured else [])
    if kind == "best":
        ratios = [row["ratio"] for key, rows in values.items() if key.startswith(rest) for row in rows]
        return _range([min(ratios)] if ratios else [])
    cases, _, contender = wanted.partition("/")
    return _range([row["ratio"] for case in cases.split() for row in _of(f"{case}/{contender}", values)])


def _of(key: str, values: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Mapping[str, float]]:
    return list(values.get(key, ()))


def _range(found: Iterable[float], digits: int = 1) -> str:
    """The least and the greatest, if they differ as they are shown.

    >>> _range([3.79, 3.77]), _range([7.2, 8.63]), _range([41.4]), _range([])
    ('3.8', '7.2 to 8.6', '41', 'not measured')
    """
    shown = [f"{value:.{0 if value >= 20 else digits}f}" for value in sorted(found)]
    if not shown:
        return NOT
    return shown[0] if shown[0] == shown[-1] else f"{shown[0]} to {shown[-1]}"


def _processor(told: Mapping[str, Any]) -> str:
    zen = {25: " (Zen 3 or 4)", 26: " (Zen 5)"}.get(told.get("cpu_family") or 0, "")
    return f"{told['cpu']}{zen if 'AMD' in told['cpu'] else ''}, {told['cores']} cores"
