"""The loop: batches in, a tuned decoder and its records out.

It knows nothing of files, screens or generation: whoever wants to know something of a training hands in an
`instil.train.observer.Observer`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice

import torch

from instil.errors import SettingsError, TrainingDiverged, TrainingStopped
from instil.model.decoder import Decoder
from instil.model.frozen import FrozenLinear
from instil.model.int8 import refuse_int8
from instil.model.lora import LoraLinear, trained_parameters
from instil.records import Batch
from instil.settings.options import TrainOptions
from instil.train.best import Best, BestCheckpoint
from instil.train.evaluation import Evaluation, Evaluator, HeldOut
from instil.train.ledger import Ledger
from instil.train.losses import LossSum
from instil.train.objective import Likelihood, Objective
from instil.train.observer import Observer, Pause, TrainResult
from instil.train.optimizer import AdamWInBackward
from instil.train.proof import Proof, Steps, loss_of_next
from instil.train.schedule import learning_rate
from instil.train.state import Progress, TrainState, named_tensors, put_back, random_states, set_random_states
from instil.train.touched import TouchedRows


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
    observers: Sequence[Observer] = (),
    seen_ids: Sequence[int] = (),
    best: BestCheckpoint | None = None,
    objective: Objective | None = None,
    resume: TrainState | None = None,
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
        observers: who is told of steps, evaluations and pauses, in this order.
        seen_ids: every id the loader will give, if known: of an untied embedding only their rows are trained,
            and the others decay, which is the same (`instil.train.touched`).
        best: keeps the model with the lowest validation loss, which is the one that remains; needed for
            ``options.patience``.
        objective: what is made smaller; the negative log-likelihood of the targets by default.
        resume: the state of such a training, from which this one goes on to the same end (E0, on one machine with the
            same number of threads); everything else has to be as it was, and the decoder as it was before training.

    Raises:
        SettingsError: weights that are to be trained are held in fewer than 32 bits, or there are none; or ``resume``
            is of a training with another number of steps.
        ModelError: ``resume`` is of another model, or of a training of other weights of it.
        TrainingDiverged: a loss, that after the last update included, is not finite, and no best model was kept.
        TrainingStopped: an observer wanted it to stop.
    """
    _check_weights(decoder)
    objective = objective or Likelihood()
    evaluator = evaluator or HeldOut(validation, options.eval_every, options.eval_batches, objective)
    training = _Training(decoder, loader, options, evaluator, observers, seen_ids, best, objective)
    diverged: TrainingDiverged | None = None
    try:
        for observer in observers:
            observer.on_train_begin(decoder, training.total)
        training.run(resume)
    except TrainingDiverged as error:
        diverged = error
    finally:
        training.close()
    result = training.result(diverged)
    del training, diverged  # the optimizer's moments and the last batches, which observers are not to find in memory
    for observer in observers:
        observer.on_train_end(decoder, result)
    return result


def _check_weights(decoder: Decoder) -> None:
    """SettingsError for weights that are not there to be trained, or would lose updates.

    bfloat16 drops those below a 256th of a weight, which is most of what a step changes, and no loss tells. A copy in
    float32 beside them would take as much memory as weights in float32 do.
    """
    refuse_int8(decoder)
    if not any(parameter.requires_grad for parameter in decoder.parameters()):
        raise SettingsError("nothing of this decoder is to be trained: no parameter requires a gradient")
    kinds = {type(module) for module in decoder.modules()}
    if FrozenLinear in kinds and LoraLinear not in kinds:
        raise SettingsError(
            "the linear layers of this decoder are frozen in few bits, and there are no adapters, so embeddings and "
            "norms alone would be trained; call add_lora, or load the model anew"
        )
    for name, parameter in decoder.named_parameters():
        if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise SettingsError(
                f"{name} is to be trained and is held in {kind}, in which most updates would be rounded away. Load the "
                "model in float32 (load_decoder(model, dtype=torch.float32), the default), adapters included; "
                "train.precision=bf16 computes products in bfloat16 all the same, and lora.base=int8 or nf4 holds a "
                "frozen base in fewer bits"
            )
    if len(kinds_held := {str(parameter.dtype).removeprefix("torch.") for parameter in decoder.parameters()}) > 1:
        raise SettingsError(
            f"the weights of this decoder are held in {' and '.join(sorted(kinds_held))}, which cannot be multiplied "
            "with one another; load the model in float32 (load_decoder(model, dtype=torch.float32), the default)"
        )


_Rest = tuple[int, Iterator[list[Batch]] | None, bool]  # an epoch, its steps, if begun; whether there was a look


class _Training:
    """One training under way."""

    def __init__(
        self,
        decoder: Decoder,
        loader: Steps,
        options: TrainOptions,
        evaluator: Evaluator,
        observers: Sequence[Observer],
        seen_ids: Sequence[int],
        best: BestCheckpoint | None,
        objective: Objective,
    ) -> None:
        self.decoder, self.loader, self.options = decoder, loader, options
        self.evaluator, self.observers, self.objective = evaluator, observers, objective
        self.touched: TouchedRows | None = None
        if seen_ids and not decoder.spec.tied and decoder.embed.weight.requires_grad:
            self.touched = TouchedRows(decoder, seen_ids, weight_decay=options.weight_decay)
        self.trained = trained_parameters(decoder)
        decoder.gradient_checkpointing = options.gradient_checkpointing
        self.optimizer = AdamWInBackward(decoder.parameters(), weight_decay=options.weight_decay, clip=options.clip)
        self.total = planned_steps(len(loader), options)
        self.ledger = Ledger(len(loader), observers)
        self.best = Best(best if options.patience else None, options, objective)
        self.last = Evaluation(None)  # the latest evaluation
        self.step: list[Batch] = []  # the latest step
        self.epoch_random: dict[str, str] = {}  # the generators as they were when its epoch began

    def run(self, state: TrainState | None) -> None:
        """Evaluate, take every step of every epoch until there is enough, and leave with an evaluation of the end.

        Raises:
            TrainingDiverged: a loss is not finite.
        """
        rest: _Rest = self._begin() if state is None else self._take_up(state)
        first, steps, due = rest
        if self.best.enough():
            return
        for epoch in range(first, math.ceil(self.total / len(self.loader))):
            started = time.perf_counter()  # making a batch is part of a step
            if steps is None:
                self.epoch_random = random_states()
                steps = self.loader.steps(epoch)
            for step in islice(steps, self.total - self.ledger.done):
                due = self._take(step, started)
                if self.best.enough():
                    return
                started = time.perf_counter()
            steps = None
        if not due:  # the result is of the model as it ends, whatever the rhythm of evaluations
            self._evaluate()
            self._consider_best()

    def _begin(self) -> _Rest:
        """Everything before the first step."""
        self._evaluate()
        self.best.before = self.last.validation
        self.ledger.report(None, 0.0, self.last)
        self._pause(evaluated=True, ends_epoch=False)
        return 0, None, False

    def _take_up(self, state: TrainState) -> _Rest:
        """Be where another training was.

        Raises:
            SettingsError, ModelError: it was of another length, or of other weights.
        """
        at, in_an_epoch = state.progress, len(self.loader)
        if (at.planned, at.in_an_epoch) != (self.total, in_an_epoch):
            raise SettingsError(
                f"the state is of a training of {at.planned} steps, {at.in_an_epoch} an epoch, and this one has "
                f"{self.total}, {in_an_epoch} an epoch; rows, batch size, epochs and train.max_steps must not change"
            )
        put_back(state.tensors, self.decoder, self.optimizer, self.touched)
        if self.touched is not None:
            self.touched.decayed = at.decayed
        self.ledger.take_up(state)
        self.best.take_up(state)
        self.last = Evaluation(at.validation, at.train, at.metrics)
        epoch, steps = 0, None
        if at.done:  # the rest of an epoch, also one that is empty, begins with the last step done: the end looks at it
            epoch, done = divmod(at.done - 1, in_an_epoch)
            self.epoch_random = at.epoch_random
            set_random_states(at.epoch_random)
            steps = self.loader.steps(epoch, done)
            self.step = next(steps)
        self.decoder.train()
        set_random_states(at.random)
        proof = Proof(at.done, at.planned, at.next_loss, self._next_loss())
        for observer in self.observers:
            observer.on_proof(proof)
        for observer in self.observers:
            observer.on_resume(state)
        set_random_states(at.random)
        return epoch, steps, at.evaluated

    def _next_loss(self) -> float:
        where = self.ledger.done, self.total, self.epoch_random
        return loss_of_next(self.decoder, self.objective, self.loader, *where)

    def _state(self, *, evaluated: bool) -> TrainState:
        progress = Progress(
            done=self.ledger.done,
            planned=self.total,
            in_an_epoch=len(self.loader),
            tokens_seen=self.ledger.tokens_seen,
            seconds=self.ledger.spent,
            evaluated=evaluated,
            validation=self.last.validation,
            train=self.last.train,
            metrics=self.last.metrics,
            before=self.best.before,
            best_loss=None if math.isinf(self.best.loss) else self.best.loss,
            best_step=self.best.step,
            worse=self.best.worse,
            decayed=1.0 if self.touched is None else self.touched.decayed,
            epoch_random=self.epoch_random,
            random=random_states(),
            next_loss=self._next_loss(),
        )
        tensors = named_tensors(self.decoder, self.optimizer, self.touched)
        return TrainState(progress, tuple(self.ledger.records), tensors, self.best.kept())

    def _take(self, step: list[Batch], started: float) -> bool:
        """One optimizer step and what is due after it; whether that was an evaluation."""
        self.step = step
        rate = self.optimizer.learning_rate = learning_rate(self.ledger.done, self.total, self.options)
        loss, tokens, metrics = _step(self.decoder, step, self.optimizer, self.objective, self.options.precision)
        if not math.isfinite(loss.total):
            rows = [row for batch in step for row in batch.examples]
            done = self.ledger.done
            raise self.best.diverged(f"step {done + 1}: the loss is {loss.total}; rows {rows}", done)
        if self.touched is not None and loss.tokens:
            self.touched.step(rate)
        self.ledger.add(tokens, time.perf_counter() - started)

        ends_epoch = self.ledger.done == self.total or self.ledger.done % len(self.loader) == 0
        due = self.evaluator.due(self.ledger.done, ends_epoch)
        if due:
            self._evaluate()
        self.ledger.report(loss.mean, rate, self.last if due else None, metrics)
        if due:
            self._consider_best()
        self._pause(evaluated=due, ends_epoch=ends_epoch, ends=self.ledger.done == self.total or self.best.enough())
        return due

    def _evaluate(self) -> None:
        with _aside(self.decoder, self.touched):
            started = time.perf_counter()
            self.last = self.evaluator(self.decoder)
            seconds = time.perf_counter() - started
        for observer in self.observers:
            observer.on_evaluation(self.last, seconds)
        loss, done = self.last.validation, self.ledger.done
        if loss is not None and not math.isfinite(loss):
            raise self.best.diverged(f"step {done}: the validation loss is {loss}", done)

    def _pause(self, *, evaluated: bool, ends_epoch: bool, ends: bool = False) -> None:
        pause = Pause(self.ledger.done, evaluated, ends_epoch, ends)
        wanted = [observer for observer in self.observers if observer.wants_pause(pause)]
        if wanted:
            with _aside(self.decoder, self.touched):
                for observer in wanted:
                    observer.on_pause(pause, self.decoder)
        stops = any(observer.wants_stop() for observer in self.observers)
        pause = replace(pause, stops=stops)
        keeping = [observer for observer in self.observers if observer.wants_state(pause)]
        if keeping:
            state = self._state(evaluated=evaluated)
            for observer in keeping:
                observer.on_state(state)
        if stops:
            raise TrainingStopped(f"stopped after step {self.ledger.done:,} of {self.total:,}")

    def _consider_best(self) -> None:
        with _aside(self.decoder, self.touched):
            self.best.saw(self.decoder, self.last, self.ledger.done)

    def close(self) -> None:
        """Leave the decoder as others use it: whole, evaluating, without hooks."""
        self.decoder.eval()
        self.decoder.gradient_checkpointing = False
        self.optimizer.close()
        if self.touched is not None:
            self.touched.settle()

    def result(self, diverged: TrainingDiverged | None) -> TrainResult:
        """What came of it, with the best model in the decoder where one was kept.

        Raises:
            TrainingDiverged: no model with a loss is left.
        """
        how = self.best.end(self.decoder, self.step, self.ledger.done, diverged)
        return TrainResult(
            records=tuple(self.ledger.records),
            steps=self.ledger.done,
            tokens_seen=self.ledger.tokens_seen,
            seconds=self.ledger.spent,
            validation_loss=self.last.validation if self.best.step is None else self.best.loss,
            best_step=self.best.step,
            trained=self.trained,
            diverged=how,
            planned=self.total,
            ended=self.best.ended(),
        )


@contextmanager
def _aside(decoder: Decoder, touched: TouchedRows | None) -> Iterator[None]:
    """Something other than a training step: the model whole, and not in training mode."""
    decoder.eval()
    with touched.whole() if touched is not None else nullcontext():
        yield
    decoder.train()


def _step(
    decoder: Decoder, step: Sequence[Batch], optimizer: AdamWInBackward, objective: Objective, precision: str
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
        grad_hook = optimizer.row_hook(decoder.head.weight) if last else None
        with torch.autocast(decoder.device.type, torch.bfloat16, enabled=precision == "bf16"):
            total = measure(decoder, batch.to(decoder.device), grad_hook)
        loss += LossSum(float(total.detach()), objective.count(batch))
        if not math.isfinite(loss.total):
            return loss, tokens, {}
        optimizer.backward(total / count, last=last)
        tokens += batch.real_tokens
    optimizer.finish()
    return loss, tokens, measure.metrics()
