"""The learning rate of each step."""

from __future__ import annotations

import math

from instil.settings.options import TrainOptions


def learning_rate(step: int, steps: int, options: TrainOptions) -> float:
    """The rate of optimizer step ``step`` (from 0) out of ``steps``.

    It rises in a straight line over the warmup share, then stays (constant), or falls to zero in a
    straight line or along half a cosine (Loshchilov and Hutter, 2017).

    >>> options = TrainOptions(learning_rate=1.0, warmup=0.5, schedule="linear")
    >>> [learning_rate(step, 8, options) for step in range(8)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    peak = options.learning_rate
    warmup = int(options.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if options.schedule == "constant":
        return peak
    done = (step - warmup) / max(1, steps - warmup)
    if options.schedule == "linear":
        return peak * (1 - done)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def planned_steps(loader_length: int, options: TrainOptions) -> int:
    """How many optimizer steps a run takes."""
    steps = loader_length * options.epochs
    return min(steps, options.max_steps) if options.max_steps else steps
