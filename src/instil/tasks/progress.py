"""The progress line of a training."""

from __future__ import annotations

from collections.abc import Sequence

from instil.screen import clock
from instil.tasks.pairs.fading import measures
from instil.train.metrics import StepRecord


def _progress_line(records: Sequence[StepRecord], steps: int) -> str:
    """Where training is: the mean of the last losses, the validation loss, speed and time left."""
    last = records[-1]
    line = f"  step {last.step:>4}/{steps}  epoch {last.epoch:.2f}"
    recent = [record.train_loss for record in records[-20:] if record.train_loss is not None]
    if last.eval_train_loss is not None:  # the book's way: what it prints instead
        line += f"  train {last.eval_train_loss:.3f}"
    elif recent:
        line += f"  train {sum(recent) / len(recent):.3f}"
    if last.val_loss is not None:
        line += f"  validation {last.val_loss:.3f}{measures(last)}"
    if last.step:
        line += f"  {last.tokens_seen / last.seconds:.0f} tokens/s"
        left = last.seconds / last.step * (steps - last.step)
        line += f"  {clock(left)} left" if left else f"  took {clock(last.seconds)}"
    return line


def _short(text: str, width: int = 100) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
