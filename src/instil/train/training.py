"""One training under way: its steps, what is due between them, and what is done where it cannot go on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from instil.batches import Batch
from instil.errors import OutOfMemory, RankLost, SettingsError, TrainingDiverged, TrainingStopped
from instil.machine import is_out_of_memory, release
from instil.model.decoder import Decoder
from instil.model.lora import trained_parameters
from instil.settings.options import TrainOptions
from instil.train import rewind
from instil.train.ahead import Ahead, lane_to
from instil.train.best import Best, BestCheckpoint, usable
from instil.train.evaluation import Evaluation, Evaluator
from instil.train.ledger import Ledger
from instil.train.losses import LossSum
from instil.train.objective import Objective
from instil.train.observer import Observer, Pause, TrainResult
from instil.train.optimizer import AdamWInBackward
from instil.train.proof import Proof, Steps, loss_of_next
from instil.train.ranks import Ranks
from instil.train.schedule import learning_rate, planned_steps
from instil.train.state import Progress, TrainState, named_tensors, put_back, random_states, set_random_states
from instil.train.step import aside
from instil.train.step import take_step as _step
from instil.train.touched import TABLE, Rows, TouchedRows

_Rest = tuple[int, Iterator[list[Batch]] | None, bool]  # an epoch, its steps, if begun; whether there was a look


class Training:
    """One training under way (`instil.train.loop.train` says what it is made of)."""

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
        earlier: rewind.Earlier,
        ranks: Ranks,
    ) -> None:
        self.decoder, self.loader, self.options, self.ranks = decoder, loader, options, ranks
        self.evaluator, self.observers, self.objective, self.earlier = evaluator, observers, objective, earlier
        self.seen_ids = seen_ids
        self.touched: TouchedRows | None = None
        if seen_ids and not ranks.sharded and not decoder.spec.tied and decoder.embed.weight.requires_grad:
            self.touched = TouchedRows(decoder, seen_ids, weight_decay=options.weight_decay)
        self.trained = trained_parameters(decoder)
        decoder.gradient_checkpointing = options.gradient_checkpointing
        rates = {"weight_decay": options.weight_decay, "clip": options.clip}
        self.optimizer = AdamWInBackward(decoder.parameters(), **rates, waits=not ranks.alone)
        self.total = planned_steps(len(loader), options)
        self.ledger = Ledger(len(loader), observers)
        self.best = Best(best if options.patience else None, options, objective, ranks)
        self.last = Evaluation(None)  # the latest evaluation
        self.step: list[Batch] = []  # the latest step
        self.before: list[Batch] = []  # and the one before it
        if isinstance(loader, rewind.Adjustable):
            loader.leave_out(row for one in earlier.skipped() for row in one.rows)
        self.epoch_random: dict[str, str] = {}  # the generators as they were when its epoch began
        self.epoch_random_before: dict[str, str] = {}  # and the epoch before it
        self.lane, self.ahead = lane_to(decoder.device), Ahead(iter(()), None)
        self.stepping = False  # whether a step is under way
        self.begun: TrainState | None = None  # the state before the first step, without its tensors

    def run(self, state: TrainState | None) -> None:
        """Evaluate, take every step of every epoch until there is enough, and leave with an evaluation of the end.

        Raises:
            TrainingDiverged: a loss is not finite.
        """
        rest: _Rest = self._begin() if state is None else self._take_up(state)
        while True:
            try:
                return self._go_on(*rest)
            except rewind.GoBack as back:
                rest = self._take_up(back.state, prove=False)

    def _go_on(self, first: int, steps: Iterator[list[Batch]] | None, due: bool) -> None:
        if self.best.enough():
            return
        for epoch in range(first, math.ceil(self.total / len(self.loader))):
            started = time.perf_counter()  # making a batch is part of a step
            if steps is None:
                self.epoch_random_before, self.epoch_random = self.epoch_random, random_states()
                steps = self.loader.steps(epoch)
            self.ahead = Ahead(islice(steps, self.total - self.ledger.done), self.lane)
            for step in self.ahead:
                due = self._take(step, started)
                if self.best.enough():
                    return
                started = time.perf_counter()
            steps = None
        if not due:  # the result is of the model as it ends, whatever the rhythm of evaluations
            self._evaluate()
            self._consider_best()
        if self._rewinds() and not usable(self.decoder, self.step, self.objective, self.ranks):
            done = self.ledger.done
            raise self._diverged(f"step {done}: the last update left a model without a loss", done, self.step)

    def _begin(self) -> _Rest:
        """Everything before the first step."""
        self._evaluate()
        self.best.before = self.last.validation
        self.ledger.report(None, 0.0, self.last)
        self._pause(evaluated=True, ends_epoch=False)
        self.begun = TrainState(self._progress(evaluated=True), tuple(self.ledger.records), {}, {})
        return 0, None, False

    def _take_up(self, state: TrainState, *, prove: bool = True) -> _Rest:
        """Be where another training was, or this one.

        Raises:
            SettingsError, ModelError: it was of another length, or of other weights.
        """
        at, in_an_epoch = state.progress, len(self.loader)
        if (at.planned, at.in_an_epoch) != (self.total, in_an_epoch):
            raise SettingsError(
                f"the state is of a training of {at.planned} steps, {at.in_an_epoch} an epoch, and this one has "
                f"{self.total}, {in_an_epoch} an epoch; rows, batch size, epochs and train.max_steps must not change"
            )
        tensors, rows_differ = state.tensors, (TABLE in state.tensors) != (self.touched is not None)
        if rows_differ and self.seen_ids and not self.decoder.spec.tied:
            tensors = Rows(tensors, self.seen_ids, at.decayed)  # it is of processes that shared weights, or this one
        put_back(tensors, self.decoder, self.optimizer, self.touched, self.ranks)
        if self.touched is not None:
            self.touched.decayed = 1.0 if rows_differ else at.decayed
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
        if prove:
            since = any(one.step > at.done for one in self.earlier.skipped())  # rows that its next step may have had
            proof = Proof(at.done, at.planned, None if since else at.next_loss, self._next_loss())
            for observer in self.observers:
                observer.on_proof(proof)
        for observer in self.observers:
            observer.on_resume(state)
        set_random_states(at.random)
        return epoch, steps, at.evaluated

    def _next_loss(self) -> float:
        where = self.ledger.done, self.total, self.epoch_random
        return loss_of_next(self.decoder, self.objective, self.loader, *where, self.ranks)

    def _progress(self, *, evaluated: bool, in_a_step: bool = False) -> Progress:
        epoch_random, random = self.epoch_random, random_states()
        if in_a_step and self.ledger.done % len(self.loader) == 0:  # an epoch has begun
            epoch_random, random = self.epoch_random_before, self.epoch_random
        return Progress(
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
            epoch_random=epoch_random,
            random=random,
        )

    def _state(self, *, evaluated: bool, in_a_step: bool = False) -> TrainState:
        progress = self._progress(evaluated=evaluated, in_a_step=in_a_step)
        if not in_a_step:  # in which there was no memory for it
            progress = replace(progress, next_loss=self._next_loss())
        tensors = named_tensors(self.decoder, self.optimizer, self.touched)
        return TrainState(progress, tuple(self.ledger.records), tensors, self.best.kept())

    def _earlier(self, before: float = math.inf) -> TrainState | None:
        """The newest state with less than so many steps to go back to; that before the first is made again.

        Which one it is the first of several processes says, who may see others in the folder that they share.
        """
        state = rewind.newest_good(self.earlier, before) if self.ranks.rank == 0 else None
        done = self.ranks.agree(None if state is None else state.progress.done)
        if self.ranks.rank and done is not None:
            state = rewind.state_after(self.earlier, done)
        if state is None and self.begun is not None and (weights := self.earlier.first()) is not None:
            own = named_tensors(self.decoder, self.optimizer, self.touched)
            return rewind.first_state(weights, own, self.touched, self.begun)
        return state

    def _take(self, step: list[Batch], started: float) -> bool:
        """One optimizer step and what is due after it; whether that was an evaluation."""
        self.before, self.step = self.step, step
        rate = self.optimizer.learning_rate = learning_rate(self.ledger.done, self.total, self.options)
        self.stepping = True
        loss, tokens, metrics = self._compute()
        self.stepping = False
        if not math.isfinite(loss.total):
            done, what = self.ledger.done, f"the loss is {loss.total}; rows {self._rows(self.step)}"
            # Weights that are no numbers came of the update before; else these rows are the first to have no loss.
            healthy = rewind.is_finite(self.decoder, self.ranks)
            fault = (done + 1, self.step) if healthy else (done, self.before)
            raise self._diverged(f"step {done + 1}: {what}", *fault)
        if self.touched is not None and loss.tokens:
            self.touched.step(rate)
        self.ledger.add(tokens, time.perf_counter() - started)

        ends_epoch = self.ledger.done == self.total or self.ledger.done % len(self.loader) == 0
        due = self.evaluator.due(self.ledger.done, ends_epoch)
        if due:
            self._evaluate()
        self.ledger.report(loss.mean if loss.tokens else None, rate, self.last if due else None, metrics)
        if due:
            self._consider_best()
        self._pause(evaluated=due, ends_epoch=ends_epoch, ends=self.ledger.done == self.total or self.best.enough())
        return due

    def _evaluate(self) -> None:
        with aside(self.decoder, self.touched):
            started = time.perf_counter()
            self.last = self.evaluator(self.decoder)
            seconds = time.perf_counter() - started
        for observer in self.observers:
            observer.on_evaluation(self.last, seconds)
        loss, done = self.last.validation, self.ledger.done
        if loss is not None and not math.isfinite(loss):
            raise self._diverged(f"step {done}: the validation loss is {loss}", done, self.step)

    def _compute(self) -> tuple[LossSum, int, dict[str, float]]:
        """The step, in smaller pieces if it does not fit into memory: sums over the same rows, divided once (E1)."""
        while True:
            try:
                how = self.optimizer, self.objective, self.options.precision, self.ranks, self.ahead.fetch
                return _step(self.decoder, self.step, *how)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            # Not before the error is forgotten, which holds what was computed.
            if not self.ranks.alone:  # the others wait for what this one cannot compute
                self._keep_before_step()
                raise OutOfMemory(self._too_large("with the rows of this process at a time"))
            self._make_smaller()

    def _make_smaller(self) -> None:
        """Have the step, and those that come, in micro-batches half as large.

        Raises:
            OutOfMemory: they are single rows already.
            rewind.GoBack: some of the step's update is done already.
        """
        clean, done, loader = self.optimizer.abandon(), self.ledger.done, self.loader
        release()
        smaller = loader.halve() if isinstance(loader, rewind.Adjustable) else []
        if smaller and isinstance(loader, rewind.Adjustable):
            self.step = smaller
            for observer in self.observers:
                observer.on_out_of_memory(done + 1, loader.micro_batch)
        state = None if clean or not smaller else self._earlier()
        if state is not None:
            raise rewind.GoBack(state)
        if clean and smaller:
            return
        if clean and done:
            self._save(Pause(done, evaluated=False, ends_epoch=False, stops=True), in_a_step=True)
        at = "with one row at a time" if clean else "in the middle of its update, and there is no state to go back to"
        raise OutOfMemory(self._too_large(at))

    def _too_large(self, at: str) -> str:
        return (
            f"step {self.ledger.done + 1}: out of memory {at} (rows {rewind.rows_of(self.step)}). Set "
            "train.gradient_checkpointing=true, or lower train.micro_batch or data.max_length"
        )

    def lost(self) -> RankLost:
        """What to raise where another process is gone; where this one can, it gives its state to observers before."""
        if self.stepping:
            self._keep_before_step()
        at = f"in step {self.ledger.done + 1:,} of {self.total:,}"
        return RankLost(f"another process of this training is gone, {at}")

    def _keep_before_step(self) -> None:
        """Give the state before a step that cannot be ended to observers, where this process can without others."""
        done = self.ledger.done
        if done and not self.ranks.sharded and self.optimizer.abandon():
            self._save(Pause(done, evaluated=False, ends_epoch=False, stops=True), in_a_step=True, asks=False)

    def _rows(self, step: Sequence[Batch]) -> list[int]:
        return rewind.rows_of(step, self.ranks)

    def _rewinds(self) -> bool:
        return self.options.on_divergence == "rewind"

    def _diverged(self, what: str, number: int, step: Sequence[Batch]) -> Exception:
        """What to raise where a loss is no number: go back, and leave out the rows of a step; or the end."""
        rows = self._rows(step)
        if (
            self._rewinds()
            and rows
            and len(self.earlier.skipped()) < rewind.MOST
            and isinstance(self.loader, rewind.Adjustable)
        ):
            state = self._earlier(before=number)
            if state is not None:
                self.optimizer.abandon()
                self.earlier.skip(rewind.Skipped(number, rows, what, state.progress.done))
                self.loader.leave_out(rows)
                return rewind.GoBack(state)
        return self.best.diverged(what, self.ledger.done)

    def _pause(self, *, evaluated: bool, ends_epoch: bool, ends: bool = False) -> None:
        pause = Pause(self.ledger.done, evaluated, ends_epoch, ends=ends)
        wanted = [observer for observer in self.observers if observer.wants_pause(pause)]
        if wanted:
            with aside(self.decoder, self.touched):
                for observer in wanted:
                    observer.on_pause(pause, self.decoder)
        stops = self.ranks.any(any(observer.wants_stop() for observer in self.observers))
        pause = replace(pause, stops=stops)
        self._save(pause)
        if stops:
            raise TrainingStopped(f"stopped after step {self.ledger.done:,} of {self.total:,}")

    def _save(self, pause: Pause, *, in_a_step: bool = False, asks: bool = True) -> None:
        """Give the state to who wants it; making it takes all processes, but for one in a step."""
        keeping = [observer for observer in self.observers if observer.wants_state(pause)]
        if self.ranks.any(bool(keeping)) if asks else keeping:
            keeping = keeping or [observer for observer in self.observers if observer.shares_state]
            state = self._state(evaluated=pause.evaluated, in_a_step=in_a_step)
            for observer in keeping:
                observer.on_state(state)

    def _consider_best(self) -> None:
        with aside(self.decoder, self.touched):
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
