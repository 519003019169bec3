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
from instil.train.evaluation import Evaluation, Evaluator, HeldOut
from instil.train.losses import LossSum
from instil.train.metrics import StepRecord
from instil.train.objective import Likelihood, Objective, look
from instil.train.optimizer import Updates
from instil.train.options import TrainOptions
from instil.train.schedule import learning_rate
from instil.train.touched import TouchedRows


class Steps(Protocol):
    """What the loop asks of a loader: the micro-batches of each step of an epoch, in order."""

    def __len__(self) -> int: ...

    def steps(self, epoch: int = 0, start: int = 0) -> Iterator[list[Batch]]:
        """The steps of an epoch."""


class Keeper(Protocol):
    """Where the best model is kept while training goes on (`train.patience`)."""

    def save(self, decoder: Decoder) -> None:
        """Keep what is trained, as it is now."""

    def restore(self, decoder: Decoder) -> None:
        """Put back what was kept last."""


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
    updates = Updates(decoder.parameters(), weight_decay=options.weight_decay, clip=options.clip)
    total = planned_steps(len(loader), options)
    objective = objective or Likelihood()
    evaluator = evaluator or HeldOut(validation, options.eval_every, options.eval_batches, objective)
    records: list[StepRecord] = []
    done = tokens_seen = 0
    spent = 0.0  # seconds of training alone, without validation and samples
    best = _Best(keeper if options.patience else None, options, objective)
    diverged, step = None, list[Batch]()

    def evaluate() -> Evaluation:
        with _aside(decoder, touched):
            found = evaluator(decoder)
        if found.validation is not None and not math.isfinite(found.validation):
            raise best.diverged(f"step {done}: the validation loss is {found.validation}", done)
        return found

    def sample() -> None:
        if on_sample:
            with _aside(decoder, touched):
                on_sample(done)

    def report(
        train_loss: float | None,
        rate: float,
        tokens: int,
        seconds: float,
        found: Evaluation | None,
        metrics: dict[str, float],
    ) -> None:
        record = StepRecord(
            step=done,
            epoch=done / len(loader),
            tokens_seen=tokens_seen,
            train_loss=train_loss,
            val_loss=found.validation if found else None,
            learning_rate=rate,
            seconds=round(spent, 3),
            tokens_per_second=round(tokens / seconds, 1) if seconds else 0.0,
            eval_train_loss=found.train if found else None,
            preference=metrics or None,
            val_preference=(found.metrics or None) if found else None,
        )
        records.append(record)
        on_record(record)

    try:
        last = evaluate()
        report(None, 0.0, 0, 0.0, last, {})
        if options.sample == "evaluation":
            sample()
        for epoch in range(math.ceil(total / len(loader))):
            started = time.perf_counter()  # making a batch is part of a step
            for step in islice(loader.steps(epoch), total - done):
                rate = updates.rate = learning_rate(done, total, options)
                loss, tokens, metrics = _step(decoder, step, updates, objective, options.precision)
                if not math.isfinite(loss.total):
                    rows = [row for batch in step for row in batch.examples]
                    raise best.diverged(f"step {done + 1}: the loss is {loss.total}; rows {rows}", done)
                if touched is not None and loss.tokens:
                    touched.step(rate)
                seconds = time.perf_counter() - started
                done, tokens_seen, spent = done + 1, tokens_seen + tokens, spent + seconds
                ends_epoch = done == total or done % len(loader) == 0
                due = evaluator.due(done, ends_epoch)
                if due:
                    last = evaluate()
                report(loss.mean, rate, tokens, seconds, last if due else None, metrics)
                if due if options.sample == "evaluation" else ends_epoch:
                    sample()
                if due:
                    with _aside(decoder, touched):
                        best.saw(decoder, last, done)
                    if best.enough:
                        break
                started = time.perf_counter()
            if best.enough:
                break
        if not due:  # the result is of the model as it ends, whatever the rhythm of evaluations
            last = evaluate()
            with _aside(decoder, touched):
                best.saw(decoder, last, done)
    except TrainingDiverged as error:
        diverged = error
    finally:
        decoder.eval()
        updates.close()
        if touched is not None:
            touched.settle()
    said = best.end(decoder, step, done, diverged)
    loss_at_end = last.validation if best.step is None else best.loss
    return TrainResult(tuple(records), done, tokens_seen, spent, loss_at_end, best.step, trained, said)


class _Best:
    """The lowest validation loss so far, and for how many validations there was none lower."""

    def __init__(self, keeper: Keeper | None, options: TrainOptions, objective: Objective) -> None:
        self._keeper, self._options, self._objective = keeper, options, objective
        self.loss = math.inf
        self.step: int | None = None
        self._worse = 0

    @property
    def enough(self) -> bool:
        """Whether to stop."""
        return self._keeper is not None and self._worse >= self._options.patience

    def saw(self, decoder: Decoder, found: Evaluation, step: int) -> None:
        """A validation."""
        if self._keeper is None or found.validation is None:
            return
        if found.validation < self.loss:
            self.loss, self.step, self._worse = found.validation, step, 0
            self._keeper.save(decoder)
        else:
            self._worse += 1

    def diverged(self, what: str, done: int) -> TrainingDiverged:
        """What there is to say when it cannot go on."""
        kept = "Nothing was saved" if self.step is None else f"The model of step {self.step} is kept"
        clip = "" if self._options.clip else " or set train.clip=1"
        advice = f"{kept}. Lower train.learning_rate (now {self._options.learning_rate:g}){clip}"
        if not done:
            advice = "That is before the first update, so the model itself or its rows are at fault; nothing was saved"
        return TrainingDiverged(f"{what}. {advice}")

    def end(self, decoder: Decoder, step: Sequence[Batch], done: int, diverged: TrainingDiverged | None) -> str:
        """Leave the best model where one was kept; returns how training diverged, or nothing.

        Raises:
            TrainingDiverged: there is no model with a loss.
        """
        if diverged is None and not _usable(
            decoder, step, self._objective
        ):  # no later step shows what the last update did
            self.step = None if self.step == done else self.step  # this very model is no use
            diverged = self.diverged(f"step {done}: the last update left a model without a loss", done)
        if self._keeper is not None and self.step is not None and (diverged is not None or self.step != done):
            self._keeper.restore(decoder)
        if diverged is not None and self.step is None:
            raise diverged
        if diverged is not None and not _usable(decoder, step, self._objective):
            raise TrainingDiverged(f"{diverged}. But that model has no loss on these rows either, and was not saved")
        return str(diverged or "")


def _usable(decoder: Decoder, step: Sequence[Batch], objective: Objective) -> bool:
    """Whether a model has numbers and a loss; its weights can be finite but too large to compute with.

    Their extremes tell it without a second table in memory, and are no numbers where anything is none.
    """
    finite = all(torch.isfinite(torch.stack(parameter.aminmax())).all() for parameter in decoder.parameters())
    return finite and math.isfinite(look(objective, decoder, step[:1])[0].total)


@contextmanager
def _aside(decoder: Decoder, touched: TouchedRows | None) -> Iterator[None]:
    """Something other than a training step: the model whole, and not in training mode."""
    decoder.eval()
    with touched.whole() if touched is not None else nullcontext():
        yield
    decoder.train()


def _step(
    decoder: Decoder, step: Sequence[Batch], updates: Updates, objective: Objective, precision: str
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
        receiver = updates.receiver(decoder.head.weight) if last else None
        with torch.autocast(decoder.device.type, torch.bfloat16, enabled=precision == "bf16"):
            total = measure(decoder, batch.to(decoder.device), receiver)
        loss += LossSum(float(total.detach()), objective.count(batch))
        if not math.isfinite(loss.total):
            return loss, tokens, {}
        updates.backward(total / count, last=last)
        tokens += batch.real_tokens
    updates.finish()
    return loss, tokens, measure.metrics()
