"""A third task, in a file of its own: plain texts, learnt whole, under a loss that counts rare tokens twice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torch import Tensor

from instil.batches import Batch
from instil.data.collate import RowCollator
from instil.data.sources import Source
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer
from instil.model.decoder import Decoder
from instil.records import Encoded, Example
from instil.screen import Screen
from instil.tasks.task import Data, Prepared, Task
from instil.train.losses import log_probs
from instil.train.metrics import StepRecord
from instil.train.objective import Measure, Objective
from instil.train.observer import Observer
from instil.train.ranks import ALONE, Ranks

RARE = 1000  # ids from which a token counts twice


class Texts(Task[Encoded]):
    """Rows are texts; all of a text is learnt."""

    collator = RowCollator

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.asked_for: list[str] = []

    def read(self, data: Data) -> Source:
        assert not isinstance(data, str)
        examples = tuple(Example(row["text"], row["text"], row=index) for index, row in enumerate(data))  # type: ignore[arg-type,call-overload,index]
        digest = hashlib.sha256("".join(row.output for row in examples).encode())
        return Source("texts", examples, digest.hexdigest())

    def encode(
        self, source: Source, examples: Sequence[Example], template: Template, tokenizer: Tokenizer
    ) -> list[Encoded]:
        rows = []
        for example in examples:
            ids = (*tokenizer.encode(example.output), tokenizer.eos_id)
            rows.append(Encoded(ids, (True,) * len(ids), row=example.row))
        return rows

    def usable(self, rows: Sequence[Encoded], max_length: int) -> list[Encoded]:
        return [row for row in rows if len(row.ids) > 1]

    def answer(self, row: Encoded) -> Encoded:
        return row

    def objective(self) -> Objective:
        return RareCountTwice()

    def check(self, *args: object) -> list[str]:
        return ["these are texts"]

    def ready(self, prepared: Prepared, decoder: Decoder, screen: Screen, **how: object) -> Prepared:
        self.asked_for.append("ready")
        return prepared

    def observers(self, screen: Screen) -> list[Observer]:
        return [Watching(self)]

    def shown(self, record: StepRecord) -> str:
        return f"  rare {record.val_metrics['rare']:.2f}" if record.val_metrics else ""


class Watching(Observer):
    """Notes that it was told."""

    def __init__(self, task: Texts) -> None:
        self._task = task

    def on_step(self, record: StepRecord) -> None:
        self._task.asked_for.append(f"step {record.step}")


class RareCountTwice:
    """The likelihood of all targets, in which rare ones count twice; its metric is their share."""

    def count(self, batch: Batch) -> int:
        return batch.trained_tokens

    def measure(self, batches: Sequence[Batch], ranks: Ranks = ALONE) -> Measure:
        return _Measure()


class _Measure:
    def __init__(self) -> None:
        self._rare, self._all = 0.0, 0.0

    def begin(self, decoder: Decoder) -> None:
        pass

    def __call__(self, decoder: Decoder, batch: Batch, grad_hook: object = None) -> Tensor:
        rare_S = (batch.targets_S >= RARE).float()
        self._rare += float((rare_S * batch.weights_S).sum())
        self._all += float(batch.weights_S.sum())
        return -(log_probs(decoder, batch) * batch.weights_S * (1 + rare_S)).sum()

    def metrics(self) -> dict[str, float]:
        return {"rare": self._rare / self._all}
