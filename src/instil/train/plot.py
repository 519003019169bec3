"""Loss curves as chapter 7.6 draws them: epochs below, tokens seen above."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instil.train.metrics import StepRecord


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
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    if trained:
        epochs, losses = zip(*trained, strict=True)
        axis.plot(epochs, losses, color="#2f6f9f", alpha=0.25, linewidth=0.8)
        axis.plot(epochs, _running_mean(losses), color="#2f6f9f", linewidth=1.8, label="training")
    if validated:
        epochs, losses = zip(*validated, strict=True)
        axis.plot(epochs, losses, color="#c8553d", linewidth=1.8, marker="o", markersize=3.5, label="validation")
    axis.set_xlabel("epochs")
    axis.set_ylabel("loss (nats per target token)")
    axis.xaxis.set_major_locator(MaxNLocator(nbins=8))
    axis.set_ylim(bottom=0)
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
    figure.savefig(folder / "loss.png", dpi=150)
    figure.savefig(folder / "loss.pdf")


def _thousands(value: float, _: int) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def _running_mean(values: Sequence[float], span: int = 15) -> list[float]:
    """The mean of each value and up to ``span - 1`` before it.

    >>> _running_mean([1.0, 3.0, 5.0], span=2)
    [1.0, 2.0, 4.0]
    """
    means = []
    for end in range(1, len(values) + 1):
        window = values[max(0, end - span) : end]
        means.append(sum(window) / len(window))
    return means
