"""``python -m tests.kills [--kills N] [--seed N] [--minutes N]``: kill small runs, and print a table of it in Markdown.

Ends with 1 if any of them ended otherwise than a run that was never killed; what it left stays and is named.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ["INSTIL_GEMM"] = "torch"  # so that runs can be compared with one another

from tests.conftest import make_tinier
from tests.kills.killing import KINDS, PHASES, Killer


def main() -> int:
    """All kinds, so many kills together."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no other run after so many")
    chosen = parser.parse_args()
    place, begun = Path(tempfile.mkdtemp(prefix="instil-kills-")), time.monotonic()
    make_tinier(place / "model")
    killers = [Killer(kind, place / "model", place / kind, random.Random(f"{chosen.seed} {kind}")) for kind in KINDS]
    shares = {
        kind: chosen.kills * (number + 1) // len(KINDS) - chosen.kills * number // len(KINDS)
        for number, kind in enumerate(KINDS)
    }
    while left := [one for one in killers if one.killed.total() < shares[one.kind]]:
        if time.monotonic() - begun > 60 * chosen.minutes:
            break
        for killer in left:  # in turn, so that something is known of each kind however early it ends
            killer.go(shares[killer.kind], runs=1)
        done = ", ".join(f"{one.kind} {one.killed.total()}" for one in killers)
        wrong = sum(len(one.wrong) for one in killers)
        print(f"{time.monotonic() - begun:.0f} s: {done}; {wrong} wrong", file=sys.stderr)
    print(f"| killed while | {' | '.join(KINDS)} | together |")
    print("| --- |" + " ---: |" * (len(KINDS) + 1))
    for phase in PHASES:
        counts = [killer.killed[phase] if phase in KINDS[killer.kind].phases else None for killer in killers]
        cells = ["" if count is None else str(count) for count in counts]
        print(f"| {phase} | {' | '.join(cells)} | {sum(count or 0 for count in counts)} |")
    for name, counted in (
        ("kills", [killer.killed.total() for killer in killers]),
        ("runs", [killer.runs for killer in killers]),
        ("runs that ended otherwise", [len(killer.wrong) for killer in killers]),
    ):
        print(f"| **{name}** | {' | '.join(map(str, counted))} | {sum(counted)} |")
    wrong = [line for killer in killers for line in killer.wrong]
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        shutil.rmtree(place)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
