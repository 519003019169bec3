"""How much faster several processes of one thread train than one: ``python -m benchmarks.processes``.

All train the same rows with the same settings, in turn, several rounds; the figure is real tokens a second after the
first steps, as ``metrics.jsonl`` has it, and its median over rounds. That they learn the same is looked at, too: losses
have to be equal to 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import hardware

WARM = 3  # steps that are not counted
WAYS: dict[str, tuple[str, ...]] = {
    "one process": (),
    "two, each with the whole model (DDP)": ("--processes", "2"),
    "two, each with a part of every weight (FSDP2)": ("--processes", "2", "-s", "train.shard=full"),
}


def trained(way: str, out: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The records of a training."""
    how = [
        "-m",
        arguments.model,
        "-o",
        str(out),
        "-s",
        f"train.max_steps={arguments.steps}",
        "-s",
        "train.eval_every=0",
    ]
    more = ["-s", "train.save_every=0", "-s", "train.sample=epoch", *(f"--set={one}" for one in arguments.set)]
    command = [sys.executable, "-m", "instil", "train", arguments.data, *how, *more, *WAYS[way]]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def speed(records: list[dict[str, Any]]) -> float:
    """Real tokens a second over the steps that are counted."""
    first, last = records[WARM], records[-1]
    return float((last["tokens_seen"] - first["tokens_seen"]) / (last["seconds"] - first["seconds"]))


def main() -> None:
    """Train in turn and print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="starter")
    parser.add_argument("--set", action="append", default=["train.batch_size=16"], help="a setting of all of them")
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        for number in range(arguments.rounds):
            for at, way in enumerate(WAYS):
                records = trained(way, Path(place) / f"{number}-{at}", arguments)
                found[way].append(speed(records))
                losses[way] = [record["train_loss"] for record in records[1:]]
                print(f"round {number + 1}: {way}: {found[way][-1]:.0f} tokens/s", file=sys.stderr)
    alone = statistics.median(found["one process"])
    told = hardware()
    where = f"{told['cpu']} ({told['architecture']}, {told['cores']} cores)"
    what = f"{arguments.model}, {arguments.data}, {', '.join(arguments.set)}; {arguments.rounds} rounds"
    print(f"{where}; {what}\n")
    print("| one thread each | tokens a second | times one | largest difference of a step's loss |")
    print("| --- | ---: | ---: | ---: |")
    for way, speeds in found.items():
        apart = max(abs(a - b) for a, b in zip(losses[way], losses["one process"], strict=True))
        middle = statistics.median(speeds)
        print(f"| {way} | {middle:.0f} | {middle / alone:.2f} | {apart:.1e} |")
        if apart > 1e-4:
            sys.exit(f"{way} does not learn what one process does")


if __name__ == "__main__":
    main()
