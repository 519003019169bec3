"""The loop: batches in, a tuned decoder and its records out.

It knows nothing of files, screens or generation: whoever calls hands in what is to happen after a
step (`on_record`) and whenever a sample answer is due (`on_sample`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch

from instil.errors import TrainingDiverged
from instil.model.decoder import Decoder
from instil.model.lora import trained_parameters
from instil.records import Batch
from instil.settings.options import TrainOptions
from instil.train.best import Best, Keeper
from instil.train.evaluation import Evaluation, Evaluator, HeldOut
from instil.train.losses import LossSum
from instil.train.metrics import StepRecord
from instil.train.objective import Likelihood, Objective
from instil.train.optimizer import AdamWInBackward
from instil.train.schedule import learning_rate
from instil.train.touched import TouchedRows


class Steps(Protocol):
    """What the loop asks of a loader: the micro-batches of each step of an epoch, in order."""

    def __len__(self) -> int: ...

    def steps(self, epoch: int = 0, start: int = 0) -> Iterator[list[Batch]]:
        """The steps of an epoch."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came of it: every record, and the totals; ``best_step`` is whose model it is, where the best was kept.

    ``trained`` counts the numbers that were trained.
    ``diverged`` says what happened where training could not go on, and the best model so far is what remains.
    """

    records: tuple[StepRecord, ...]
    steps: int
    tokens_seen: int
    seconds: float
    validation_loss: float | None
    best_step: int | None = None
    trained: int = 0
    diverged: str = ""


def planned_steps(loader_length: int, options: TrainOptions) -> int:
    """How many optimizer steps a run takes."""
    steps = loader_length * options.epochs
    return min(steps, options.max_steps) if options.max_steps else steps


def train(
    decoder: Decoder,
    loader: Steps,
    options: TrainOptions,
    *,
    validation: Sequence[Batch] = (),
    evaluator: Evaluator | None = None,
    on_record: Callable[[StepRecord], None] = lambda record: None,
    on_sample: Callable[[int], None] | None = None,
    seen_ids: Sequence[int] = (),
    keeper: Keeper | None = None,
    objective: Objective | None = None,
) -> TrainResult:
    """Tune a decoder in place with AdamW (Loshchilov and Hutter, 2019).

    The gradient of a step is that of the summed loss of all its micro-batches divided once by the
    number of their targets (or pairs), so micro-batches are exactly one big batch (E1).

    Args:
        decoder: its weights are changed.
        loader: gives the micro-batches of every step.
        options: see `TrainOptions`.
        validation: batches for the periodic validation loss; may be empty.
        evaluator: another way to evaluate than `HeldOut` over ``validation``.
        on_record: called after step 0 (before training) and after every step; the decoder's embedding is not to
            be read then (see ``seen_ids``), but in ``on_sample``.
        on_sample: called with the number of finished steps, between steps, when a sample is due
            (``options.sample``).
        seen_ids: every id the loader will give, if known: of an untied embedding only their rows are trained,
            and the others decay, which is the same (`instil.train.touched`).
        keeper: keeps the model with the lowest validation loss, which is the one that remains; needed for
            ``options.patience``.
        objective: what is made smaller; the negative log-likelihood of the targets by default.

    Raises:
        TrainingDiverged: a loss, that after the last update included, is not finite, and no best model was kept.
    """
    touched = None
    if seen_ids and not decoder.spec.tied and decoder.embed.weight.requires_grad:
        touched = TouchedRows(decoder, seen_ids, weight_decay=options.weight_decay)
    trained = trained_parameters(decoder)
    decoder.gradient_checkpointing = options.gradient_checkpointing
    updates = AdamWInBackward(decoder.parameters(), weight_decay=options.weight_decay, clip=options.clip)
    total = planned_steps(len(loader), options)
    objective = objective or Likelihood()
    evaluator = evaluator or HeldOut(validation, options.eval_every, options.eval_batches, objective)
    ledger = _Ledger(len(loader), on_record)
    best = Best(keeper if options.patience else None, options, objective)
    diverged, step = None, list[Batch]()

    def evaluate() -> Evaluation:
        with _aside(decoder, touched):
            found = evaluator(decoder)
        if found.validation is not None and not math.isfinite(found.validation):
            raise best.diverged(f"step {ledger.done}: the validation loss is {found.validation}", ledger.done)
        return found

    def sample() -> None:
        if on_sample:
            with _aside(decoder, touched):
                on_sample(ledger.done)

    try:
        last = evaluate()
        best.before = last.validation
        ledger.report(None, 0.0, last)
        if options.sample == "evaluation":
            sample()
        for epoch in range(math.ceil(total / len(loader))):
            started = time.perf_counter()  # making a batch is part of a step
            for step in islice(loader.steps(epoch), total - ledger.done):
                rate = updates.learning_rate = learning_rate(ledger.done, total, options)
                loss, tokens, metrics = _step(decoder, step, updates, objective, options.precision)
                if not math.isfinite(loss.total):
                    rows = [row for batch in step for row in batch.examples]
                    raise best.diverged(f"step {ledger.done + 1}: the loss is {loss.total}; rows {rows}", ledger.done)
                if touched is not None and loss.tokens:
                    touched.step(rate)
                ledger.add(tokens, time.perf_counter() - started)
                ends_epoch = ledger.done == total or ledger.done % len(loader) == 0
                due = evaluator.due(ledger.done, ends_epoch)
                if due:
                    last = evaluate()
                ledger.report(loss.mean, rate, last if due else None, metrics)
                if due if options.sample == "evaluation" else ends_epoch:
                    sample()
                if due:
                    with _aside(decoder, touched):
                        best.saw(decoder, last, ledger.done)
                    if best.enough:
                        break
                started = time.perf_counter()
            if best.enough:
                break
        if not due:  # the result is of the model as it ends, whatever the rhythm of evaluations
            last = evaluate()
            with _aside(decoder, touched):
                best.saw(decoder, last, ledger.done)
    except TrainingDiverged as error:
        diverged = error
    finally:
        decoder.eval()
        decoder.gradient_checkpointing = False
        updates.close()
        if touched is not None:
            touched.settle()
    said = best.end(decoder, step, ledger.done, diverged)
    loss_at_end = last.validation if best.step is None else best.loss
    totals = (tuple(ledger.records), ledger.done, ledger.tokens_seen, ledger.spent)
    return TrainResult(*totals, loss_at_end, best.step, trained, said)


class _Ledger:
    """Where training is, and the record of every step; the seconds are those of training alone."""

    def __init__(self, in_an_epoch: int, on_record: Callable[[StepRecord], None]) -> None:
        self._in_an_epoch, self._on_record = in_an_epoch, on_record
        self.records: list[StepRecord] = []
        self.done = self.tokens_seen = 0
        self.spent = self._speed = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """A step is done."""
        self.done, self.tokens_seen, self.spent = self.done + 1, self.tokens_seen + tokens, self.spent + seconds
        self._speed = tokens / seconds if seconds else 0.0

    def report(
        self, train_loss: float | None, rate: float, found: Evaluation | None, metrics: dict[str, float] | None = None
    ) -> None:
        """Write it down, with the evaluation after it if there was one."""
        record = StepRecord(
            step=self.done,
            epoch=self.done / self._in_an_epoch,
            tokens_seen=self.tokens_seen,
            train_loss=train_loss,
            val_loss=found.validation if found else None,
            learning_rate=rate,
            seconds=round(self.spent, 3),
            tokens_per_second=round(self._speed, 1),
            eval_train_loss=found.train if found else None,
            preference=metrics or None,
            val_preference=(found.metrics or None) if found else None,
        )
        self.records.append(record)
        self._on_record(record)


@contextmanager
def _aside(decoder: Decoder, touched: TouchedRows | None) -> Iterator[None]:
    """Something other than a training step: the model whole, and not in training mode."""
    decoder.eval()
    with touched.whole() if touched is not None else nullcontext():
        yield
    decoder.train()


def _step(
    decoder: Decoder, step: Sequence[Batch], updates: AdamWInBackward, objective: Objective, precision: str
) -> tuple[LossSum, int, dict[str, float]]:
    """One optimizer step on the mean loss of all its micro-batches; their summed loss, real tokens, and metrics.

    A loss that is not finite ends it before anything is updated.
    """
    batches = [batch for batch in step if objective.count(batch)]
    count = sum(objective.count(batch) for batch in batches)
    measure = objective.measure(batches)
    loss = LossSum(0.0, 0)
    tokens = 0
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        grad_hook = updates.row_hook(decoder.head.weight) if last else None
        with torch.autocast(decoder.device.type, torch.bfloat16, enabled=precision == "bf16"):
            total = measure(decoder, batch.to(decoder.device), grad_hook)
        loss += LossSum(float(total.detach()), objective.count(batch))
        if not math.isfinite(loss.total):
            return loss, tokens, {}
        updates.backward(total / count, last=last)
        tokens += batch.real_tokens
    updates.finish()
    return loss, tokens, measure.metrics()
