"""Who watches a training: files, screens, samples and forecasts are observers, and the loop knows none of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from instil.model.decoder import Decoder
from instil.train.evaluation import Evaluation
from instil.train.metrics import StepRecord
from instil.train.proof import Proof
from instil.train.state import TrainState


@dataclass(frozen=True, slots=True)
class Pause:
    """A point between two optimizer steps, after so many ``steps``; 0 is before the first.

    The last one ``ends`` training; where a training ``stops``, it does so here, before its end.
    """

    steps: int
    evaluated: bool
    ends_epoch: bool
    ends: bool = False
    stops: bool = False


class Observer:
    """Watches a training; what a subclass does not override is passed over."""

    def on_train_begin(self, decoder: Decoder, steps: int) -> None:
        """So many optimizer steps are planned."""

    def on_proof(self, proof: Proof) -> None:
        """Training is about to go on from a state (before `on_resume`); who doubts that it is the same raises."""

    def on_resume(self, state: TrainState) -> None:
        """Training goes on from this state, after `on_train_begin`, or once more where it has gone back: what is told
        from here on comes after what its records say.
        """

    def on_evaluation(self, evaluation: Evaluation, seconds: float) -> None:
        """The model was evaluated; before the first step, in between, or at the end."""

    def on_step(self, record: StepRecord) -> None:
        """A step is done, or (record 0) about to be. The embedding is not to be read now, but in `on_pause`."""

    def wants_pause(self, pause: Pause) -> bool:
        """Whether `on_pause` is to be called here; making the model whole costs a little."""
        del pause
        return False

    def on_pause(self, pause: Pause, decoder: Decoder) -> None:
        """Training stands still with the model whole and in evaluation mode."""

    def wants_stop(self) -> bool:
        """Whether training is to stop here, before its end; asked between two steps, after every `on_pause`."""
        return False

    def wants_state(self, pause: Pause) -> bool:
        """Whether `on_state` is to be called here, after every `wants_stop`."""
        del pause
        return False

    shares_state = False
    """Whether `on_state` is called here wherever the first of several processes wants it."""

    def on_state(self, state: TrainState) -> None:
        """Training stands still, and this is its state, from which it can be taken up again.

        The model itself is not to be read now: it need not be whole. (Made whole, an embedding's rows that are never
        read would be rounded once more, and the last bits would depend on when somebody asked for the state.)
        """

    def on_out_of_memory(self, step: int, micro_batch: int) -> None:
        """A step did not fit into memory; from it on so many rows are computed at once."""

    def on_train_end(self, decoder: Decoder, result: TrainResult) -> None:
        """Training has ended with a model that can be used."""


class OnStep(Observer):
    """Calls a function with the record of every step.

    >>> losses = []
    >>> watching = OnStep(lambda record: losses.append(record.train_loss))
    """

    def __init__(self, call: Callable[[StepRecord], None]) -> None:
        self._call = call

    def on_step(self, record: StepRecord) -> None:
        self._call(record)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came of it: every record, and the totals; ``best_step`` is whose model it is, where the best was kept.

    ``steps`` were taken of those ``planned``; where they are fewer, ``ended`` or ``diverged`` says why.
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
    planned: int = 0
    ended: str = ""
