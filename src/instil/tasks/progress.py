"""What people see of a training: a bar, a line at each evaluation, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from instil.model.decoder import Decoder
from instil.screen import Advance, Screen, clock
from instil.tasks.task import Prepared
from instil.train.metrics import StepRecord
from instil.train.observer import Observer, TrainResult
from instil.train.schedule import planned_steps
from instil.train.state import TrainState


class Progress(Observer):
    """Says how training goes; see `progress`."""

    def __init__(self, screen: Screen, steps: int, advance: Advance, shown: Callable[[StepRecord], str]) -> None:
        self._screen, self._steps, self._advance, self._shown = screen, steps, advance, shown
        self._records: list[StepRecord] = []
        self._at = 0  # where the bar is

    def on_resume(self, state: TrainState) -> None:
        self._records = list(state.records)
        self._advance(steps=state.progress.done - self._at)
        self._at = state.progress.done

    def on_step(self, record: StepRecord) -> None:
        self._records.append(record)
        if record.step:
            loss = "no rows" if record.train_loss is None else f"loss {record.train_loss:.3f}"
            self._advance(f"{loss}  {record.tokens_per_second:.0f} tokens/s")
            self._at = record.step
        if record.val_loss is not None or record.step == self._steps:
            self._screen.say(progress_line(self._records, self._steps, self._shown(record)))

    def on_train_end(self, decoder: Decoder, result: TrainResult) -> None:
        if result.diverged:
            self._screen.say(f"  training diverged at {result.diverged}", "yellow")
        if result.best_step is not None:
            kept = f"kept the model of step {result.best_step}, validation loss {result.validation_loss:.3f}"
            self._screen.say(f"  {kept}")
        if warning := worse(result):
            self._screen.say(f"  {warning}", "yellow")


@contextmanager
def progress(prepared: Prepared, screen: Screen) -> Iterator[Progress]:
    """A bar over all steps of a training, and the observer that moves it."""
    steps = planned_steps(len(prepared.training), prepared.settings.train)
    with screen.bar("training", steps) as advance:
        yield Progress(screen, steps, advance, prepared.task.shown)


def progress_line(records: Sequence[StepRecord], steps: int, shown: str = "") -> str:
    """Where training is: the mean of the last losses, the validation loss, speed and time left."""
    last = records[-1]
    line = f"  step {last.step:>4}/{steps}  epoch {last.epoch:.2f}"
    recent = [record.train_loss for record in records[-20:] if record.train_loss is not None]
    if last.eval_train_loss is not None:  # the book's way: what it prints instead
        line += f"  train {last.eval_train_loss:.3f}"
    elif recent:
        line += f"  train {sum(recent) / len(recent):.3f}"
    if last.val_loss is not None:
        line += f"  validation {last.val_loss:.3f}{shown}"
    if last.step:
        line += f"  {last.tokens_seen / last.seconds:.0f} tokens/s"
        left = last.seconds / last.step * (steps - last.step)
        line += f"  {clock(left)} left" if left else f"  took {clock(last.seconds)}"
    return line


def worse(result: TrainResult) -> str:
    """A warning where training has led away from the held-out rows; nothing otherwise."""
    before, after = result.records[0].val_loss, result.validation_loss
    if before is None or after is None or not after > before:
        return ""
    return f"the validation loss is {after:.3f}, above {before:.3f} before training; lower train.learning_rate"
