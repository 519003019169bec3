"""Loss curves as chapter 7.6 draws them: epochs below, tokens seen above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from instil.train.metrics import StepRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_losses(records: Sequence[StepRecord], folder: Path) -> None:
    """Write ``loss.png`` and ``loss.pdf``.

    The training loss of single steps is drawn faintly, with its running mean on top, because batches
    of eight rows differ more from one another than the model changes between them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    trained = [(record.epoch, record.train_loss) for record in records if record.train_loss is not None]
    validated = [(record.epoch, record.val_loss) for record in records if record.val_loss is not None]
    prefers = any(_has_margin(record.metrics) for record in records)
    figure = Figure(figsize=(7.2, 6.4 if prefers else 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis, *below = figure.subplots(2, 1, squeeze=False)[:, 0] if prefers else [figure.subplots()]
    if trained:
        epochs, losses = zip(*trained, strict=True)
        axis.plot(epochs, losses, color="#2f6f9f", alpha=0.25, linewidth=0.8)
        axis.plot(epochs, _running_mean(losses, _span(losses)), color="#2f6f9f", linewidth=1.8, label="training")
    if validated:
        epochs, losses = zip(*validated, strict=True)
        axis.plot(epochs, losses, color="#c8553d", linewidth=1.8, marker="o", markersize=3.5, label="validation")
    axis.set_xlabel("epochs")
    axis.set_ylabel("loss of a pair" if prefers else "loss (nats per target token)")
    axis.xaxis.set_major_locator(MaxNLocator(nbins=8))
    _set_floor(axis)
    axis.grid(alpha=0.2)
    axis.spines[["right"]].set_visible(False)
    if trained or validated:
        axis.legend(frameon=False)
    last = records[-1]
    tokens_per_epoch = last.tokens_seen / last.epoch if last.epoch else 0.0
    if tokens_per_epoch:
        above = axis.secondary_xaxis(
            "top",
            functions=(lambda epoch: epoch * tokens_per_epoch, lambda tokens: tokens / tokens_per_epoch),  # type: ignore[operator]
        )
        above.set_xlabel("tokens seen")
        above.xaxis.set_major_formatter(FuncFormatter(_thousands))
    for axis in below:
        _margins(axis, records)
    figure.savefig(folder / "loss.png", dpi=150)
    figure.savefig(folder / "loss.pdf")


def _has_margin(metrics: Mapping[str, float] | None) -> TypeGuard[Mapping[str, float]]:
    """Whether a second picture has anything to show."""
    return metrics is not None and "margin" in metrics


def _margins(axis: Axes, records: Sequence[StepRecord]) -> None:
    """How far the chosen answers are ahead, and in what share of the pairs."""
    trained = [(record.epoch, record.metrics) for record in records if _has_margin(record.metrics)]
    held_out = [(record.epoch, record.val_metrics) for record in records if _has_margin(record.val_metrics)]
    share = axis.twinx()
    epochs, margins = zip(*((epoch, found["margin"]) for epoch, found in trained), strict=True)
    axis.plot(epochs, margins, color="#2f6f9f", alpha=0.25, linewidth=0.8)
    axis.plot(epochs, _running_mean(margins, _span(margins)), color="#2f6f9f", linewidth=1.8, label="margin, training")
    if held_out:
        epochs, margins, right = zip(
            *((epoch, found["margin"], found["accuracy"]) for epoch, found in held_out), strict=True
        )
        axis.plot(
            epochs, margins, color="#c8553d", linewidth=1.8, marker="o", markersize=3.5, label="margin, validation"
        )
        share.plot(epochs, right, color="#6b6b6b", linewidth=1.2, linestyle="--", label="accuracy, validation")
    axis.set_xlabel("epochs")
    axis.set_ylabel("margin of the rewards")
    share.set_ylabel("share of pairs with chosen ahead")
    share.set_ylim(0, 1.03)
    axis.grid(alpha=0.2)
    lines = [*axis.get_lines()[1:], *share.get_lines()]
    axis.legend(handles=lines, frameon=False, loc="best")


COLOURS = ("#2f6f9f", "#c8553d", "#2d7d46", "#8b5fa8", "#b8860b", "#4a5764", "#d0699a", "#3aa0a0")
LINES = ("-", "--", ":", "-.")  # when the colours have been used up


def plot_runs(runs: Mapping[str, Sequence[StepRecord]], path: Path) -> None:
    """Write the losses of several runs as one picture: of training (running means) beside those of validation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for number, (name, records) in enumerate(runs.items()):
        look: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": LINES[number // len(COLOURS) % len(LINES)],
            "linewidth": 1.6,
        }
        trained = [(record.epoch, record.train_loss) for record in records if record.train_loss is not None]
        validated = [(record.epoch, record.val_loss) for record in records if record.val_loss is not None]
        if trained:
            epochs, losses = zip(*trained, strict=True)
            left.plot(epochs, _running_mean(losses, _span(losses)), **look)
        epochs, losses = zip(*validated, strict=True) if validated else ((), ())
        right.plot(epochs, losses, marker="o", markersize=3, label=name.replace("$", r"\$"), **look)
    for axis, title in ((left, "training"), (right, "validation")):
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("epochs")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=7))
        axis.grid(alpha=0.2)
        axis.spines[["right", "top"]].set_visible(False)
    _set_floor(left, right)
    left.set_ylabel("loss (nats per target token)")
    if runs:
        rows = min(len(runs), 12)
        figure.legend(*right.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=min(rows, 4))
    figure.savefig(path, dpi=150)


def plot_rates(rounds: Mapping[int, Sequence[tuple[float, float | None]]], untrained: float, path: Path) -> None:
    """Write the validation loss at each learning rate, a line for each number of steps; crosses have diverged."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.set_xscale("log")
    axis.axhline(untrained, color="#9aa7b4", linewidth=1, linestyle="--", label="before training")
    shown = [untrained]
    for number, (steps, found) in enumerate(rounds.items()):
        kept = [(rate, min(loss, 2 * untrained)) for rate, loss in found if loss is not None]
        if kept:
            rates, losses = zip(*kept, strict=True)
            shown += losses
            axis.plot(rates, losses, color=COLOURS[number % len(COLOURS)], marker="o", label=f"{steps} steps")
    top, bottom = max(shown), min(shown)
    room = max(0.08 * (top - bottom), 0.01)
    axis.set_ylim(bottom - room, top + 2 * room)
    lost = sorted({rate for found in rounds.values() for rate, loss in found if loss is None})
    if lost:
        axis.plot(lost, [top + room] * len(lost), "x", color="#b4472f", markersize=8, label="diverged")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("validation loss (nats per target token)")
    axis.grid(alpha=0.2)
    axis.spines[["right", "top"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _set_floor(*axes: Axes) -> None:
    """Begin at 0 where losses come down to a third of the largest; else 0 would press the curves to the upper edge."""
    lines = [line for axis in axes for line in axis.get_lines()]
    drawn = [loss for line in lines for loss in np.asarray(line.get_ydata(), dtype=float).tolist()]
    from_zero = not drawn or 0 <= min(drawn) <= max(drawn) / 3  # of all or of none, as they stand side by side
    for axis in axes:
        axis.ticklabel_format(axis="y", useOffset=False)  # 10.82 rather than 0.02 and, in a corner, +1.08e1
        if from_zero:
            axis.set_ylim(bottom=0)


def _thousands(value: float, _: int) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def _span(values: Sequence[float]) -> int:
    """How many values to take the mean of: few where there are few."""
    return max(1, min(15, len(values) // 8))


def _running_mean(values: Sequence[float], span: int) -> list[float]:
    """The mean of each value and up to ``span - 1`` before it.

    >>> _running_mean([1.0, 3.0, 5.0], span=2)
    [1.0, 2.0, 4.0]
    """
    means = []
    for end in range(1, len(values) + 1):
        window = values[max(0, end - span) : end]
        means.append(sum(window) / len(window))
    return means
