"""``python -m tests.fuzz [TARGET...] [-seconds=N] [-OPTION=VALUE...]``: look for inputs that break a promise.

Without a target all are taken in turn, each for so many seconds (60). Other options are libFuzzer's. What is found lies
in ``build/fuzz/TARGET``: an input for each kind of fault, beside its traceback; the inputs that reach more code than
others stay in ``build/fuzz/TARGET/corpus`` and are gone on with the next time. Ends with 1 if there is any finding.
"""

from __future__ import annotations

import importlib.util
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.names import MODULES

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
DONE = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


def main(given: list[str]) -> int:
    """Run targets, each in a process of its own, which is begun anew where an input ended it."""
    if importlib.util.find_spec("atheris") is None:
        print("fuzzing needs atheris, which is not installed: pip install 'instil[fuzz]'", file=sys.stderr)
        return 2
    names = [one for one in given if not one.startswith("-")] or list(MODULES)
    options = [one for one in given if one.startswith("-")]
    seconds = next((float(one.partition("=")[2]) for one in options if one.startswith("-seconds=")), 60.0)
    options = [one for one in options if not one.startswith("-seconds=")]
    if unknown := [name for name in names if name not in MODULES]:
        print(f"no target {unknown[0]!r}; there are: {', '.join(MODULES)}", file=sys.stderr)
        return 2
    return max(_looked(name, seconds, options) for name in names)


def _looked(name: str, seconds: float, options: list[str]) -> int:
    place = BUILD / name
    (place / "corpus").mkdir(parents=True, exist_ok=True)
    before = set(place.iterdir())
    end, count, used = time.monotonic() + seconds, 0, _used()
    while (left := end - time.monotonic()) > 1:
        command = [sys.executable, "-m", "tests.fuzz.look", name, f"-max_total_time={int(left) + 1}", *options]
        begun = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        found = DONE.search(done.stderr)
        count += int(found[1]) if found else 0
        (place / "last.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        if found is None and time.monotonic() - begun < 5:
            print(done.stdout[-3000:] + done.stderr[-3000:], file=sys.stderr)
            return 1
    last = (place / "last.txt").read_text(encoding="utf-8")
    reached = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", last)
    shown = "places {}, features {}, inputs {}".format(*reached[-1]) if reached else "nothing told"
    new = sorted(
        path.name
        for path in set(place.iterdir()) - before
        if path.name not in ("corpus", "last.txt", "words.txt") and path.suffix != ".txt"
    )
    spent = f"{count:,} executions in {_used() - used:.0f} s of the processor"
    print(f"{name}: {spent}; {shown}; findings: {', '.join(new) or 'none'}", flush=True)
    return 1 if new else 0


def _used() -> float:
    """Seconds of the processor that the processes have taken which were started here and have ended."""
    took = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took.ru_utime + took.ru_stime


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
