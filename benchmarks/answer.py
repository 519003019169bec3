"""Answering side by side: instil, the book's own code, transformers, vLLM and llama.cpp, same prompts and weights.

``make bench-answer``, or ``python -m benchmarks.answer --help``. Each answerer runs in a process of its own, all of
them in turn, for several rounds; ratios are taken within a round and their median is reported. Answers that are to be
the same, because both sides compute in float32, are counted token by token. Results go to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.answerers import ANSWERERS, Answerer
from benchmarks.contenders.track import MARK
from benchmarks.environments import ROOT, python_of
from benchmarks.machine import hardware, slug
from benchmarks.table import set_to
from benchmarks.train import module, say

STARTER = "starter"


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked: a model, rows, and how long answers are."""

    model: str
    new: int
    to_the_end: bool = False
    rows: int = 110
    split: str = "test"


CASES = {
    "gpt2": Case("gpt2", 16),
    "smollm2": Case("smollm2", 16),
    "smollm2-end": Case("smollm2", 256, to_the_end=True),
    "many": Case("smollm2", 16, rows=1000, split="all"),
}


@dataclass(slots=True)
class Said:
    """What one answerer told in one round."""

    name: str
    round: int
    loaded: float | None = None
    first: float | None = None
    seconds: float | None = None
    ids: list[list[int]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)
    failure: str = ""

    @property
    def per_second(self) -> float | None:
        """Answers per second."""
        return len(self.ids) / self.seconds if self.seconds else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if one of ours failed."""
    asked = parsed(arguments)
    asked.work.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    told: dict[str, list[Said]] = {}
    for name in asked.cases:
        job, count = prepare(name, asked)
        told[name] = []
        for number in range(asked.rounds):
            taken = answerers(name, asked)
            for one in taken[number % len(taken) :] + taken[: number % len(taken)]:
                found = run(one, job, max(1, round(count * one.share)), number, asked)
                told[name].append(found)
                rate = f"{found.per_second:.2f} answers/s" if found.per_second else f"failed: {found.failure[-300:]}"
                say(f"{name}  round {number + 1}/{asked.rounds}  {one.name:30} {rate}")
    return report(told, load, asked)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answer", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--answerers", nargs="+", metavar="NAME", help="only these (default: all that are installed)")
    parser.add_argument("--data", default=STARTER, help="rows whose test split is asked: a name or a file")
    parser.add_argument("--many", default=STARTER, help="rows of the case of that name: a name or a file")
    parser.add_argument("--folder", type=Path, help="a tuned model instead of the plain one; llama.cpp is left out")
    parser.add_argument("--rows", type=int, help="prompts of each case, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=900, help="seconds for one answerer in one round")
    parser.add_argument("--tiny", action="store_true", help="a tiny GPT-2: to see that all runs")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where models and jobs are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    asked = parser.parse_args(arguments)
    known = [one.name for one in ANSWERERS]
    if unknown := set(asked.answerers or ()) - set(known):
        parser.error(f"no answerer is called {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    if asked.tiny or asked.folder:
        asked.cases = [case for case in asked.cases if CASES[case].model == ("gpt2" if asked.tiny else "smollm2")]
    asked.work = asked.work.resolve()
    return asked


def answerers(case: str, asked: argparse.Namespace) -> list[Answerer]:
    """Who takes part in a case: those asked for whose packages are there."""
    return [
        one
        for one in ANSWERERS
        if CASES[case].model in one.models
        and (not asked.answerers or one.name in asked.answerers)
        and not (asked.folder and one.module == "llama")
        and one.there
    ]


def prepare(name: str, asked: argparse.Namespace) -> tuple[Path, int]:
    """The job of a case, made in a process of its own, and the number of its prompts."""
    case = CASES[name]
    rows = min(case.rows, asked.rows or case.rows)
    command = ["benchmarks.questions", case.model, name, "--data", asked.many if case.split == "all" else asked.data]
    command += ["--split", case.split, "--rows", str(rows), "--new", str(case.new), "--work", str(asked.work)]
    command += ["--to-the-end"] * case.to_the_end + ["--tiny"] * asked.tiny
    command += ["--folder", str(asked.folder.resolve())] if asked.folder else []
    path = Path(module(command).strip().splitlines()[-1])
    return path, len(json.loads(path.read_text(encoding="utf-8"))["prompts"])


def run(one: Answerer, job: Path, count: int, number: int, asked: argparse.Namespace) -> Said:
    """One answerer, one round; ended when its time is up."""
    command = [str(python_of(one.home)), "-m", f"benchmarks.answerers.{one.module}", str(job), str(count), one.variant]
    found = Said(one.name, number)
    with (asked.work / f"answerer-{one.module}-{one.variant or 'only'}.log").open("w+", encoding="utf-8") as errors:
        started = time.monotonic()
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            timer = threading.Timer(asked.limit, process.kill)
            timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    hear(found, json.loads(line.removeprefix(MARK)), started)
            code = process.wait()
            out_of_time = not timer.is_alive()
            timer.cancel()
        errors.seek(0)
        tail = errors.read()[-2000:]
    found.failure = f"ended after {asked.limit:g} s" if out_of_time else f"exit {code}: {tail}" if code else ""
    return found


def hear(found: Said, told: dict[str, Any], started: float) -> None:
    """Take note of one event."""
    if told["event"] == "loaded":
        found.loaded = told["at"] - started
    elif told["event"] == "first":
        found.first = told["at"] - started - (found.loaded or 0.0)
    elif told["event"] == "answered":
        found.seconds, found.ids = told["seconds"], told["ids"]
    else:
        found.end = {name: value for name, value in told.items() if name != "event"}


def summary(taken: Sequence[Answerer], said: Sequence[Said]) -> list[dict[str, Any]]:
    """A row for each answerer: medians over rounds, and how many times as fast instil is."""
    ours = {one.round: one for one in said if one.name == "instil"}
    rows = []

    def times(done: Sequence[Said], name: str) -> list[float]:
        """How many times as fast that one of ours was, in each round that both have."""
        own = {one.round: one.per_second for one in said if one.name == name}
        return [(own.get(one.round) or 0.0) / one.per_second for one in done if one.per_second and own.get(one.round)]

    for answerer in taken:
        rounds = [one for one in said if one.name == answerer.name]
        done = [one for one in rounds if one.per_second]
        ratios, alike = times(done, "instil"), times(done, answerer.counterpart)
        wanted = next((one.ids for one in ours.values() if one.ids), [])
        rows.append(
            {
                "answerer": answerer.name,
                "rounds": len(done),
                "prompts": len(done[0].ids) if done else 0,
                "new_tokens": sum(map(len, done[0].ids)) if done else 0,
                "answers_per_second": _median([one.per_second for one in done]),
                "seconds": _median([one.seconds for one in done]),
                "instil_times_as_fast": _median(ratios),
                "range": [min(ratios), max(ratios)] if ratios else None,
                "same_mathematics_times_as_fast": _median(alike),
                "loaded_s": _median([one.loaded for one in rounds]),
                "first_token_s": _median([one.first for one in rounds]),
                "peak_gb": _median([one.end["peak_bytes"] / 1e9 for one in rounds if "peak_bytes" in one.end]),
                "exact": answerer.exact,
                "same_answers": _share([a == b for a, b in zip(done[0].ids, wanted, strict=False)]) if done else None,
                "same_tokens": _same_tokens(done[0].ids, wanted) if done else None,
                "failures": [one.failure for one in rounds if one.failure],
            }
        )
    return rows


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _share(same: Sequence[bool]) -> float | None:
    return sum(same) / len(same) if same else None


def _same_tokens(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> float | None:
    """The share of tokens up to the first that differs, of all that instil said to the same prompts."""
    agreed = total = 0
    for a, b in zip(found, wanted, strict=False):
        total += len(b)
        agreed += next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return agreed / total if total else None


def report(told: dict[str, list[Said]], load: float, asked: argparse.Namespace) -> int:
    """Print tables, write files."""
    machine, now = hardware(), datetime.now(UTC)
    settings = {
        name: (Path(value).name if name in ("data", "many", "folder") and value else value)
        for name, value in vars(asked).items()
        if name not in ("work", "out")
    }
    stored: dict[str, Any] = {
        "date": now.date().isoformat(),
        "hardware": machine,
        "load_before": round(load, 2),
        "settings": settings,
        "not_installed": (absent := [one.name for one in ANSWERERS if not one.there]),
        "cases": {},
    }
    text = [
        f"# Answering side by side, {stored['date']}",
        "",
        f"- {machine['cpu']}, {machine['cores']} cores ({', '.join(machine['features'])}), {machine['system']}, "
        f"{machine['memory_gb']} GB; load before the run {stored['load_before']}",
        f"- greedy, {asked.rounds} rounds, medians; ratios taken within a round; rows of `{settings['data']}`"
        + (f", model `{settings['folder']}`" if settings["folder"] else ""),
        "- loaded: from the start of the process; first token: of one prompt alone, after that",
        *([f"- not installed, so left out: {', '.join(absent)}"] if absent else []),
    ]
    bad = False
    for name, said in told.items():
        rows = summary(answerers(name, asked), said)
        bad = bad or any(row["failures"] for row in rows if row["answerer"] == "instil")
        stored["cases"][name] = {"rows": rows, "ends": {one.name: one.end for one in said}}
        text += ["", f"## {name}", "", table(rows)]
        text += [f"- {row['answerer']}: {failure}" for row in rows for failure in row["failures"]]
        text += ["", *set_to(answerers(name, asked))]
    base = f"{stored['date']}-answer-{slug(machine)}{'-tiny' if asked.tiny else ''}{'-tuned' if asked.folder else ''}"
    asked.out.mkdir(parents=True, exist_ok=True)
    for ending, content in ((".json", json.dumps(stored, indent=1, default=str)), (".md", "\n".join(text))):
        (asked.out / f"{base}{ending}").write_text(_without_paths(content) + "\n", encoding="utf-8")
    print(_without_paths("\n".join(text)))
    return 1 if bad else 0


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table."""

    def number(value: float | None, form: str = ".2f") -> str:
        return "-" if value is None else f"{value:{form}}"

    lines = [
        "| answerer | prompts | new tokens | answers/s | instil is x times as fast | range | ours in the same numbers "
        "| loaded s | first token s | peak GB | same answers | same tokens |",
        "| --- |" + " ---: |" * 11,
    ]
    for row in rows:
        spread = "-" if row["range"] is None else f"{row['range'][0]:.2f} to {row['range'][1]:.2f}"
        cells = [
            row["answerer"] + ("" if row["exact"] else " (not exact)"),
            str(row["prompts"]),
            str(row["new_tokens"]),
            number(row["answers_per_second"]),
            number(row["instil_times_as_fast"]),
            spread,
            number(row["same_mathematics_times_as_fast"]),
            number(row["loaded_s"]),
            number(row["first_token_s"], ".3f"),
            number(row["peak_gb"]),
            number(row["same_answers"], ".1%"),
            number(row["same_tokens"], ".1%"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _without_paths(text: str) -> str:
    for path in (str(ROOT), sys.prefix, str(Path.home())):
        text = text.replace(path, "...")
    return text


if __name__ == "__main__":
    sys.exit(main())
