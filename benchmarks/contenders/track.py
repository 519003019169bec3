"""What a contender tells of itself: a line of JSON on stdout for each step, and one at its end."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RANK, ALPHA = 16, 32  # of adapters
MARK = "BENCH "


@dataclass(frozen=True)
class Job:
    """What every contender is given.

    ``steps`` holds for each optimizer step its rows, each as ids and, for each id, whether it is a target. With
    ``evaluate`` their loss is taken once more after the last step, without gradients, as that of validation rows.
    """

    model: str
    folder: Path
    steps: list[list[tuple[list[int], list[bool]]]]
    batch_size: int
    max_length: int
    pad_id: int
    learning_rate: float
    weight_decay: float
    scratch: Path
    extra: dict[str, str]
    evaluate: bool = False

    @staticmethod
    def read(path: Path, steps: int, *, evaluate: bool = False) -> Job:
        """The job of a file, cut to so many steps."""
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored["steps"] = [[(ids, trained) for ids, trained in step] for step in stored["steps"][:steps]]
        return Job(
            **{**stored, "folder": Path(stored["folder"]), "scratch": Path(stored["scratch"]), "evaluate": evaluate}
        )

    def padded(self, step: int) -> tuple[Any, Any]:
        """Inputs and targets of a step as the book's collate has them: [B, T] each, shifted, -100 where untrained."""
        import torch

        rows = self.steps[step]
        length = min(self.max_length, max(len(ids) for ids, _ in rows) - 1)
        inputs = torch.full((len(rows), length), self.pad_id)
        targets = torch.full((len(rows), length), -100)
        for row, (ids, trained) in enumerate(rows):
            count = min(len(ids) - 1, length)
            inputs[row, :count] = torch.tensor(ids[:count])
            labels = [id_ if wanted else -100 for id_, wanted in zip(ids, trained, strict=True)]
            targets[row, :count] = torch.tensor(labels[1 : count + 1])
        return inputs, targets


class Track:
    """Tells when training began and when each step was done, on the machine's monotonic clock."""

    def __init__(self) -> None:
        self._out = sys.stdout
        sys.stdout = sys.stderr  # what libraries print is no report
        self._done = 0

    def begin(self) -> None:
        """Just before the first step."""
        self._say({"event": "begin", "at": time.monotonic()})

    def step(self, loss: float) -> None:
        """An optimizer step is done, its parameters updated; ``loss`` is the mean over its targets."""
        now = time.monotonic()
        self._done += 1
        self._say({"event": "step", "step": self._done, "loss": loss, "at": now})

    def evaluated(self, loss: float, seconds: float) -> None:
        """The pass over all rows without gradients: its loss, and what it took, batches made."""
        self._say({"event": "evaluated", "loss": loss, "seconds": seconds})

    def end(self, **facts: Any) -> None:
        """All is done: peak memory, threads, and what else is to be known."""
        import torch

        facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), **facts}
        self._say({"event": "end", "peak_bytes": peak_bytes(), **facts})

    def _say(self, what: dict[str, Any]) -> None:
        self._out.write(MARK + json.dumps(what) + "\n")
        self._out.flush()


def peak_bytes() -> int:
    """The largest resident size this process had, as the system counts it."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def arguments() -> tuple[Job, str]:
    """The job and the variant from the command line: ``JOB.json STEPS VARIANT [evaluate]``."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    path, steps, variant = sys.argv[1:4]
    return Job.read(Path(path), int(steps), evaluate="evaluate" in sys.argv[4:]), variant
