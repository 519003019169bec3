"""Preference tuning side by side: instil and TRL's DPOTrainer on the same pairs, batches and weights.

``make bench-prefer``, or ``python -m benchmarks.prefer --help``. As `benchmarks.train` does it: a process each, all in
turn, ratios within a round. Two times are told: the whole of one epoch over the job's pairs, the reference's
log-probabilities included; and the steps alone, the first few not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import common_rows, is_common
from benchmarks.contenders import Contender
from benchmarks.environments import ROOT
from benchmarks.inputs import build_model
from benchmarks.machine import hardware, slug
from benchmarks.table import DIGITS, Session
from benchmarks.train import run, say
from instil.data.sources import read_source
from instil.data.templates import template_named
from instil.data.tokenizers import load_tokenizer
from instil.model.load import read_spec
from instil.tasks.pairs.encoding import encode_pair
from instil.tasks.pairs.source import PairSource, pairs_from, read_pairs

MODELS = ("gpt2", "smollm2")
CONTENDERS = (
    Contender("instil", "pairs_ours", "shared", MODELS, "full", "instil"),
    Contender("instil, padded", "pairs_ours", "padded", MODELS, "full", "instil"),
    Contender("instil, LoRA", "pairs_ours", "lora", MODELS, "", "instil, LoRA"),
    Contender("instil, bf16", "pairs_ours", "bf16", MODELS, "", "instil"),
    Contender("TRL, tuned", "pairs_trl", "tuned", MODELS, "full", "instil", "trl"),
    Contender("TRL, precomputed", "pairs_trl", "precomputed", MODELS, "full", "instil", "trl"),
    Contender("TRL with PEFT, tuned", "pairs_trl", "lora", MODELS, "", "instil, LoRA", "peft"),
)


def made_pairs(data: str) -> PairSource:
    """Pairs of a file; of ``starter`` the wanted answer against the same one said rudely."""
    if data != "starter":
        return read_pairs(data, skip_bad=True)
    rows = [
        {**row.as_json(), "chosen": row.output, "rejected": f"{row.output} As anyone should know."}
        for row in read_source(data).examples
    ]
    return pairs_from(rows, data)


def make(model: str, asked: argparse.Namespace) -> Path:
    """The job of one model: for each step its pairs, chosen and rejected in turn."""
    folder = build_model(model, asked.work, tiny=asked.tiny)
    tokenizer, template = load_tokenizer(folder), template_named("alpaca")
    if is_common(asked.data):  # two answers to each of them are two rows
        common = common_rows(asked.data, asked.steps, 2 * asked.batch, read_spec(folder).vocab_size)
        steps = [[(row.ids, row.trained) for row in step] for step in common]
    else:
        pairs = made_pairs(asked.data).pairs[: asked.steps * asked.batch]
        encoded = [encode_pair(pair, template, tokenizer) for pair in pairs]
        rows = [(row.ids, row.trained) for one in encoded for row in (one.chosen, one.rejected)]
        steps = [rows[at : at + 2 * asked.batch] for at in range(0, len(rows), 2 * asked.batch)]
    job: dict[str, Any] = {
        "model": model,
        "folder": str(folder),
        "steps": steps,
        "batch_size": asked.batch,
        "max_length": 1024,
        "pad_id": tokenizer.eos_id,
        "learning_rate": 5e-6,
        "weight_decay": 0.1,
        "scratch": str(asked.work),
        "extra": {},
    }
    path: Path = asked.work / f"job-{model}-pairs{'-tiny' if asked.tiny else ''}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    return path


def whole(session: Session) -> float | None:
    """Seconds from the beginning, reference included, to the end of the last step."""
    return session.at[-1] - session.begin if session.at and session.begin is not None else None


def rows_of(sessions: Sequence[Session], asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Figures of each contender: medians, and the ratios to its counterpart within each round."""
    by_name = {one.name: [s for s in sessions if s.contender == one.name and s.at] for one in CONTENDERS}
    found = []
    for one in CONTENDERS:
        own = by_name[one.name]
        if not own:
            continue
        ours = {s.round: s for s in by_name[one.counterpart]}
        count = asked.batch * (asked.steps - asked.warmup)
        row: dict[str, Any] = {
            "contender": one.name,
            "rounds": len(own),
            "whole_seconds": median(whole(s) or 0.0 for s in own),
            "pairs_per_second": median(count / (s.seconds(asked.warmup) or 1.0) for s in own),
            "peak_gb": median(s.end.get("peak_bytes", 0) for s in own) / 1e9,
            "first_loss": own[0].losses[0],
            "last_loss": own[0].losses[-1],
        }
        for name, measure in (("whole", whole), ("steps", lambda s: s.seconds(asked.warmup))):
            ratios = [
                there / here
                for s in own
                if s.round in ours and (there := measure(s)) and (here := measure(ours[s.round]))
            ]
            row[f"{name}_ratios"] = ratios
        found.append(row)
    return found


def unequal(sessions: Sequence[Session]) -> list[str]:
    """Where those of the same mathematics did not log the same losses."""
    same = {one.name for one in CONTENDERS if one.mathematics}
    wanted: dict[int, float] = {}
    wrong = []
    for session in sessions:
        for step, loss in enumerate(session.losses if session.contender in same else ()):
            if abs(loss - wanted.setdefault(step, loss)) > 10 * DIGITS * abs(
                loss
            ):  # Adam's first steps magnify rounding
                wrong.append(f"step {step + 1}: {session.contender} {loss:.6g}, others {wanted[step]:.6g}")
    return wrong


def table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        "| | whole epoch, s | pairs/s in steps | peak GB | instil is faster, whole | in steps | loss, first and last |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ratios = [
            f"{median(values):.2f}x ({min(values):.2f} to {max(values):.2f})" if values else ""
            for values in (row["whole_ratios"], row["steps_ratios"])
        ]
        lines.append(
            f"| {row['contender']} | {row['whole_seconds']:.1f} | {row['pairs_per_second']:.2f} "
            f"| {row['peak_gb']:.2f} | {ratios[0]} | {ratios[1]} | {row['first_loss']:.5f} {row['last_loss']:.5f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if losses differ, or if one of ours failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefer", description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="only these (default: all that are installed)")
    parser.add_argument(
        "--data",
        default="starter",
        help="pairs: a file; starter: made of its rows; prefix:600,50: such rows (benchmarks/common.py)",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one contender in one round")
    parser.add_argument("--tiny", action="store_true", help="a tiny GPT-2: to see that all runs")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    asked = parser.parse_args(arguments)
    if not 0 <= asked.warmup < asked.steps:
        parser.error(f"--warmup {asked.warmup} leaves none of {asked.steps} steps to count")
    if is_common(asked.data) and not asked.data.startswith("prefix:"):
        parser.error(f"--data {asked.data}: two answers to one prompt are wanted, such as prefix:600,50 has")
    asked.work = asked.work.resolve()
    asked.work.mkdir(parents=True, exist_ok=True)
    asked.models = ["gpt2"] if asked.tiny else asked.models
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    chosen = [one for one in CONTENDERS if (not asked.contenders or one.name in asked.contenders) and one.there]
    machine, date = hardware(), datetime.now(UTC).date().isoformat()
    text = [
        f"# Preference tuning side by side, {date}",
        "",
        f"- {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB; load before the run {load:.2f}",
        f"- pairs of `{Path(asked.data).name}`, {asked.batch} in a batch, {asked.rounds} rounds of {asked.steps} "
        f"steps, {asked.warmup} of them not counted in steps; the whole counts all, and the reference's share",
    ]
    stored: dict[str, Any] = {"date": date, "hardware": machine, "load_before": round(load, 2), "models": {}}
    bad = False
    for model in asked.models:
        job = make(model, asked)
        sessions: list[Session] = []
        for number in range(asked.rounds):
            for contender in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
                session = run(contender, job, number, asked)
                sessions.append(session)
                said = session.failure[-300:] or f"{whole(session):.1f} s"
                say(f"{model}  round {number + 1}/{asked.rounds}  {contender.name:22}  {said}")
        rows, wrong = rows_of(sessions, asked), unequal(sessions)
        bad = bad or bool(wrong) or any(s.failure and s.contender.startswith("instil") for s in sessions)
        stored["models"][model] = {"rows": rows, "unequal_losses": wrong}
        equal = "Losses of the same mathematics are equal to three digits." if not wrong else "LOSSES DIFFER: "
        text += ["", f"## {model}", "", table(rows), "", equal + "; ".join(wrong)]
    of_rows = f"-{re.sub(r'[^a-z0-9]+', '-', asked.data)}" if is_common(asked.data) else ""
    name = f"{date}-prefer-{slug(machine)}{of_rows}{'-tiny' if asked.tiny else ''}"
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / f"{name}.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    (asked.out / f"{name}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
