"""What is known of each step, and the file it is written to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from instil.files import records_in


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One line of ``metrics.jsonl``.

    ``eval_train_loss`` is the training loss of the book's way of evaluating, if that was asked for.
    ``step`` counts finished optimizer steps (0 is before training), ``epoch`` is the share of passes
    done, ``tokens_seen`` counts real tokens without padding. ``train_loss`` is the mean over the
    targets of this step (before its update), ``val_loss`` is there on steps that were validated.
    ``preference`` and ``val_preference`` are there in preference tuning: means over the pairs of the step, and
    of the validation rows (`instil.tasks.pairs.losses`).
    """

    step: int
    epoch: float
    tokens_seen: int
    train_loss: float | None
    val_loss: float | None
    learning_rate: float
    seconds: float
    tokens_per_second: float
    eval_train_loss: float | None = None
    preference: dict[str, float] | None = None
    val_preference: dict[str, float] | None = None

    def as_json(self) -> dict[str, object]:
        """One line of the file; what is of preference tuning only where there is any."""
        line = asdict(self)
        return {key: value for key, value in line.items() if value is not None or not key.endswith("preference")}


class MetricsFile:
    """Appends records, each line complete on disk before the next step."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, record: StepRecord) -> None:
        """Append one line."""
        self._file.write(json.dumps(record.as_json()) + "\n")
        self._file.flush()


def read_metrics(path: Path) -> list[StepRecord]:
    """The records of a run.

    Raises:
        DataError: the file is absent or damaged.
    """
    return records_in(path, StepRecord)
