"""One target with atheris; started by ``python -m tests.fuzz``."""

from __future__ import annotations

import hashlib
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any

SLOW = 5.0  # seconds of the processor that an input may take
ROOM = 1 << 30  # bytes beyond those of a process that has read all seeds
LAST = 30  # seconds after which libFuzzer ends an input that does not end


def kind_of(error: BaseException) -> str:
    """By what two findings are told apart: the error, and the last place in the project that it went through."""
    place = "elsewhere"
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "/instil/" in name:
            place = f"{Path(name).stem}-{trace.tb_frame.f_code.co_name}-{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}-{place}"


def main() -> None:
    """Fuzz the target that is named first; the rest are libFuzzer's options."""
    import atheris

    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["instil"]):
        from tests.fuzz.__main__ import BUILD
        from tests.fuzz.names import target
        from tests.fuzz.promise import keep

        chosen = target(name)
        seeds = list(chosen.seeds())
        for seed in seeds:  # what is imported late is instrumented, too, and what is made once is made
            keep(chosen, seed)
    place = BUILD / name
    place.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (place / "corpus" / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    words = place / "words.txt"
    words.write_text("".join(f'"{"".join(f"{chr(92)}x{b:02x}" for b in word)}"\n' for word in chosen.words))
    _limit()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)

    def found(kind: str, given: bytes, said: str) -> None:
        file = place / kind
        if not file.exists() or len(given) < file.stat().st_size:
            file.write_bytes(given)
            file.with_name(f"{kind}.txt").write_text(said, errors="replace")

    def one(given: bytes) -> None:
        begun = time.process_time()
        try:
            keep(chosen, given)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            found(kind_of(error), given, traceback.format_exc())
        took = time.process_time() - begun
        if took > SLOW:
            found(f"slow-{int(took // 5) * 5}", given, f"{took:.1f} s")

    def mutated(given: bytes, longest: int, seed: int) -> bytes:
        draw = Random(seed)
        if chosen.mutate is None or draw.random() < 0.1:
            return bytes(atheris.Mutate(given, longest))
        return chosen.mutate(given, draw, lambda part, most: bytes(atheris.Mutate(part, most)))[:longest]

    arguments = [
        sys.argv[0],
        str(place / "corpus"),
        f"-artifact_prefix={place}/",
        f"-timeout={LAST}",
        "-rss_limit_mb=4096",
        f"-max_len={chosen.longest}",
        "-print_final_stats=1",
        "-reload=0",
        "-len_control=0",
        *([f"-dict={words}"] if chosen.words else []),
        *options,
    ]
    custom: Any = {} if chosen.mutate is None else {"custom_mutator": mutated}
    atheris.Setup(arguments, one, **custom)
    atheris.Fuzz()


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
