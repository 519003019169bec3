"""Where a training is, and what is written down of every step."""

from __future__ import annotations

from collections.abc import Sequence

from instil.train.evaluation import Evaluation
from instil.train.metrics import StepRecord
from instil.train.observer import Observer
from instil.train.state import TrainState


class Ledger:
    """Where training is, and the record of every step; the seconds are those of training alone."""

    def __init__(self, in_an_epoch: int, observers: Sequence[Observer]) -> None:
        self._in_an_epoch, self._observers = in_an_epoch, observers
        self.records: list[StepRecord] = []
        self.done = self.tokens_seen = 0
        self.spent = self._speed = 0.0

    def take_up(self, state: TrainState) -> None:
        """Go on from there; nobody is told of its records again."""
        at, self.records = state.progress, list(state.records)
        self.done, self.tokens_seen, self.spent = at.done, at.tokens_seen, at.seconds

    def add(self, tokens: int, seconds: float) -> None:
        """A step is done."""
        self.done, self.tokens_seen, self.spent = self.done + 1, self.tokens_seen + tokens, self.spent + seconds
        self._speed = tokens / seconds if seconds else 0.0

    def report(
        self,
        train_loss: float | None,
        rate: float,
        evaluation: Evaluation | None,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Write it down, with the evaluation after it if there was one."""
        record = StepRecord(
            step=self.done,
            epoch=self.done / self._in_an_epoch,
            tokens_seen=self.tokens_seen,
            train_loss=train_loss,
            val_loss=evaluation.validation if evaluation else None,
            learning_rate=rate,
            seconds=round(self.spent, 3),
            tokens_per_second=round(self._speed, 1),
            eval_train_loss=evaluation.train if evaluation else None,
            metrics=metrics or None,
            val_metrics=(evaluation.metrics or None) if evaluation else None,
        )
        self.records.append(record)
        for observer in self._observers:
            observer.on_step(record)
