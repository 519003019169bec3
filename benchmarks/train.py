"""Training side by side: instil, the book's own code, TRL, Unsloth and LitGPT on the same rows, batches and weights.

``make bench-train``, or ``python -m benchmarks.train --help``. Each contender runs in a process of its own, all of
them in turn, for several rounds; the first steps of a round are not counted. Ratios are taken within a round and
their median is reported. Results go to ``benchmarks/results/`` as JSON and as a table.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.contenders.track import MARK
from benchmarks.environments import ROOT, python_of
from benchmarks.floor import Work
from benchmarks.machine import hardware, slug
from benchmarks.table import (
    Session,
    efficiency,
    evaluations,
    loss_table,
    markdown,
    set_to,
    summary,
    unequal_losses,
)

CASES = ("gpt2-all", "gpt2-response", "smollm2-all", "smollm2-response")
BUSY = 0.5  # load average above which a warning is given


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if losses that must be equal are not, or if one of ours failed."""
    asked = parsed(arguments)
    if asked.threads:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(asked.threads)
    asked.work.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > BUSY:
        say(f"the machine is busy (load {load:.1f}); figures taken now mean little")
    jobs = {case: prepare(case, asked) for case in asked.cases}
    peaks = measured_peaks(list(jobs.values()), asked)
    sessions: dict[str, list[Session]] = {case: [] for case in jobs}
    for case, job in jobs.items():
        for number in range(asked.rounds):
            chosen = contenders(case, asked)
            for contender in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
                if contender.slow and number >= asked.slow_rounds:
                    continue
                session = run(contender, job, number, asked)
                sessions[case].append(session)
                say(f"{case}  round {number + 1}/{asked.rounds}  {contender.name:22}  {_said(session)}")
    if not asked.tiny:
        peaks = best_of(peaks, measured_peaks(list(jobs.values()), asked))
    return report(jobs, sessions, peaks, load, asked)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="model and objective")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="only these (default: all that are installed)")
    parser.add_argument("--ours", action="store_true", help="instil alone, in its variants")
    parser.add_argument("--data", default="starter", help="rows: a name, a file, or as benchmarks.common")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of a round")
    parser.add_argument("--warmup", type=int, default=2, help="of these, how many are not counted")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--evaluate", action="store_true", help="and a pass over the rows as of validation rows")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one contender in one round")
    parser.add_argument("--slow-rounds", type=int, default=1, help="rounds for what is known to be slow")
    parser.add_argument("--slow-steps", type=int, default=3)
    parser.add_argument("--slow-limit", type=float, default=600)
    parser.add_argument("--threads", type=int, default=0, help="0: as each contender chooses")
    parser.add_argument("--tiny", action="store_true", help="a tiny GPT-2 and small peaks: to see that all runs")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where models and jobs are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    asked = parser.parse_args(arguments)
    if not 0 <= asked.warmup < asked.steps:
        parser.error(f"--warmup {asked.warmup} leaves none of {asked.steps} steps to count")
    known = [one.name for one in CONTENDERS]
    if unknown := set(asked.contenders or ()) - set(known):
        parser.error(f"no contender is called {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    if asked.tiny:
        asked.cases = [case for case in asked.cases if case.startswith("gpt2")]
    asked.work = asked.work.resolve()
    return asked


def contenders(case: str, asked: argparse.Namespace) -> list[Contender]:
    """Who takes part in a case: those asked for whose packages are there."""
    model = case.partition("-")[0]
    return [
        one
        for one in CONTENDERS
        if model in one.models
        and (not asked.ours or one.ours)
        and (not asked.contenders or one.name in asked.contenders)
        and one.there
    ]


def absent(asked: argparse.Namespace) -> list[str]:
    """Those left out because their package is not installed."""
    return [] if asked.ours else [one.name for one in CONTENDERS if not one.there]


def prepare(case: str, asked: argparse.Namespace) -> Path:
    """The job of a case, made in a process of its own."""
    model, _, objective = case.partition("-")
    command = ["benchmarks.inputs", model, objective, "--data", asked.data, "--steps", str(asked.steps)]
    command += ["--batch", str(asked.batch), "--work", str(asked.work), *(["--tiny"] if asked.tiny else [])]
    path = Path(module(command).strip().splitlines()[-1])
    lit = json.loads(path.read_text(encoding="utf-8"))["extra"].get("lit")
    if lit and not (Path(lit) / "lit_model.pth").is_file() and any(c.module == "lit" for c in contenders(case, asked)):
        module(["benchmarks.contenders.lit", "convert", lit])
    return path


def measured_peaks(jobs: Sequence[Path], asked: argparse.Namespace) -> dict[str, Any]:
    """What the machine can do now."""
    facts = [str(job.with_suffix(".facts.json")) for job in jobs]
    told: dict[str, Any] = json.loads(module(["benchmarks.machine", *facts, *(["--small"] if asked.tiny else [])]))
    return told


def best_of(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The higher of two measurements of each peak, the lower of two times: a peak is what was reached at best."""
    first, second = one["peaks"], other["peaks"]
    higher = {name: max(first[name] or 0.0, second[name] or 0.0) or None for name in ("fma", "sgemm_best", "bandwidth")}
    both = {name: max(speed, second["sgemm"].get(name, 0.0)) for name, speed in first["sgemm"].items()}
    shapes = {name: min((told, other["shapes"][name]), key=_seconds) for name, told in one["shapes"].items()}
    return {"peaks": {**first, **higher, "sgemm": both}, "shapes": shapes}


def _seconds(told: dict[str, Any]) -> float:
    return float(told["seconds"])


def module(command: Sequence[str]) -> str:
    """What a module of ours prints when run from the root of the project."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"python -m {' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def run(contender: Contender, job: Path, number: int, asked: argparse.Namespace) -> Session:
    """One contender, one round; ended when its time is up, with the steps it made by then."""
    steps = min(asked.steps, asked.slow_steps) if contender.slow else asked.steps
    limit = asked.slow_limit if contender.slow else asked.limit
    command = [str(python_of(contender.home)), "-m", f"benchmarks.contenders.{contender.module}", str(job), str(steps)]
    told: list[dict[str, Any]] = []
    log = asked.work / f"{contender.module}-{contender.variant or 'only'}.log"
    with log.open("w+", encoding="utf-8") as errors:
        started = time.monotonic()
        with subprocess.Popen(
            [*command, contender.variant, *(["evaluate"] if getattr(asked, "evaluate", False) else [])],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process:
            timer = threading.Timer(limit, process.kill)
            timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    told.append(json.loads(line.removeprefix(MARK)))
            code = process.wait()
            out_of_time = not timer.is_alive()
            timer.cancel()
        errors.seek(0)
        tail = errors.read()[-2000:]
    failure = f"ended after {limit:g} s" if out_of_time else f"exit {code}: {tail}" if code else ""
    made = [one for one in told if one["event"] == "step"]
    return Session(
        contender=contender.name,
        round=number,
        started=started,
        begin=next((one["at"] for one in told if one["event"] == "begin"), None),
        at=tuple(one["at"] for one in made),
        losses=tuple(one["loss"] for one in made),
        evaluated=next(((one["loss"], one["seconds"]) for one in told if one["event"] == "evaluated"), None),
        end=next((one for one in told if one["event"] == "end"), {}),
        failure=failure,
    )


def report(
    jobs: dict[str, Path],
    sessions: dict[str, list[Session]],
    peaks: dict[str, Any],
    load: float,
    asked: argparse.Namespace,
) -> int:
    """Print tables, write files."""
    machine = hardware()
    now = datetime.now(UTC)
    chosen = {name: value for name, value in vars(asked).items() if name not in ("work", "out", "data")}
    data = Path(asked.data).name  # a path would name the machine
    stored: dict[str, Any] = {
        "date": now.date().isoformat(),
        "hardware": machine,
        "load_before": round(load, 2),
        "settings": {**chosen, "data": data},
        "not_installed": absent(asked),
        **peaks,
        "cases": {},
    }
    text = [f"# Training side by side, {stored['date']}", "", *_heading(stored)]
    bad = False
    for case, job in jobs.items():
        facts = json.loads(job.with_suffix(".facts.json").read_text(encoding="utf-8"))
        work = [Work(**one) for one in facts["work"]]
        taken = contenders(case, asked)
        rows = summary(taken, sessions[case], work, asked.warmup, peaks["peaks"])
        shapes = peaks["shapes"][job.with_suffix(".facts.json").name]["seconds"]
        reached = efficiency(sessions[case], work, asked.warmup, peaks["peaks"], shapes)
        alike = _alike(json.loads(job.read_text(encoding="utf-8"))["steps"])
        wrong = unequal_losses(sessions[case], taken, passes=alike)
        bad = bad or bool(wrong) or any(row["failures"] for row in rows if row["contender"].startswith("instil"))
        ended = {one.contender: _anonymous(one.end) for one in sessions[case] if one.end}
        stored["cases"][case] = {"rows": rows, "instil_reaches": reached, "unequal_losses": wrong, "ends": ended}
        said = "Losses that must be equal are, to four digits." if not wrong else "LOSSES DIFFER: " + "; ".join(wrong)
        failed = [f"- {row['contender']}: {failure}" for row in rows for failure in row["failures"]]
        text += ["", f"## {case}", "", markdown(rows), "", _reached(reached), "", said, "", loss_table(rows), *failed]
        if asked.evaluate:
            text += ["", evaluations(rows)]
        text += ["", *set_to(taken)]
    rows_of = "" if data == "starter" else "-" + re.sub(r"[^A-Za-z0-9]+", "-", Path(data).stem)
    name = f"{stored['date']}-{slug(machine)}{rows_of}{'-tiny' if asked.tiny else ''}"
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / f"{name}.json").write_text(_without_paths(json.dumps(stored, indent=1)) + "\n", encoding="utf-8")
    (asked.out / f"{name}.md").write_text(_without_paths("\n".join(text)) + "\n", encoding="utf-8")
    print(_without_paths("\n".join(text)))
    say(f"written: {asked.out / name}.json and .md")
    return 1 if bad else 0


def _alike(steps: Sequence[Sequence[tuple[Sequence[int], Sequence[bool]]]]) -> bool:
    """Whether all rows have as many targets, so that means of batches are the mean of all."""
    return len({sum(trained[1:]) for step in steps for _, trained in step}) == 1


def _heading(stored: dict[str, Any]) -> list[str]:
    machine, peak, asked = stored["hardware"], stored["peaks"], stored["settings"]
    fma = f"{peak['fma'] / 1e9:.0f} GFLOP/s" if peak["fma"] else "not measured"
    gemm = ", ".join(f"{name} {speed / 1e9:.0f}" for name, speed in peak["sgemm"].items())
    lines = [
        f"- {machine['cpu']}, {machine['cores']} cores ({', '.join(machine['features'])}), {machine['system']}, "
        f"{machine['memory_gb']} GB; load before the run {stored['load_before']}",
        f"- multiply-add peak: {fma} ({peak['fma_how']}); sgemm of {peak['sgemm_side']}^2: {gemm} GFLOP/s; "
        f"copy: {peak['bandwidth'] / 1e9:.1f} GB/s; {peak['threads']} threads",
        f"- rows of `{asked['data']}`, batches of {asked['batch']}, {asked['rounds']} rounds of {asked['steps']} "
        f"steps, {asked['warmup']} of them not counted; medians; ratios taken within a round",
    ]
    if stored["not_installed"]:
        lines.append(f"- not installed, so left out: {', '.join(stored['not_installed'])}")
    return lines


def _reached(reached: dict[str, float | None]) -> str:
    def share(name: str) -> str:
        value = reached[name]
        return "not measured" if value is None else f"{100 * value:.0f} %"

    return (
        f"instil's whole step, in counted minimal operations: {share('of_fma')} of the multiply-add peak, "
        f"{share('of_sgemm')} of the best large sgemm, {share('of_best_at_shapes')} of the best products at its shapes."
    )


def _anonymous(end: Any) -> dict[str, Any]:
    return {name: value for name, value in end.items() if name != "event"}


def _without_paths(text: str) -> str:
    """A failure's trace may name folders of this machine; they are no part of a result."""
    for path in (str(ROOT), sys.prefix, str(Path.home())):
        text = text.replace(path, "...")
    return text


def _said(session: Session) -> str:
    if not session.at:
        return f"failed: {session.failure[-300:]}"
    first = session.first_step
    peak = session.end.get("peak_bytes", 0) / 1e9
    losses = " ".join(f"{loss:.4g}" for loss in session.losses)
    return f"first step {first:.1f} s, peak {peak:.2f} GB, losses {losses} {session.failure[-100:]}"


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
