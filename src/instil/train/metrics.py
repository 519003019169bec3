"""What is known of each step."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from instil.files import records_in


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One line of ``metrics.jsonl``.

    ``eval_train_loss`` is the training loss of the book's way of evaluating, if that was asked for.
    ``step`` counts finished optimizer steps (0 is before training), ``epoch`` is the share of passes
    done, ``tokens_seen`` counts real tokens without padding. ``train_loss`` is the mean over the
    targets of this step (before its update), ``val_loss`` is there on steps that were validated.
    ``metrics`` and ``val_metrics`` are what else the objective knows: means over the items of the step, and of the
    validation rows (`instil.tasks.pairs.losses`). The file calls them ``preference`` and ``val_preference``.
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
    metrics: dict[str, float] | None = field(default=None, metadata={"key": "preference"})
    val_metrics: dict[str, float] | None = field(default=None, metadata={"key": "val_preference"})

    def as_json(self) -> dict[str, object]:
        """One line of the file; what only some objectives know is there where it is known."""
        line = {}
        for known in fields(self):
            value, key = getattr(self, known.name), known.metadata.get("key")
            if value is not None or not key:
                line[key or known.name] = value
        return line


def read_metrics(path: Path) -> list[StepRecord]:
    """The records of a run.

    Raises:
        DataError: the file is absent or damaged.
    """
    return records_in(path, StepRecord)
