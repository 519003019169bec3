"""Mixtures of a run's base and tuned model, as ``blend.json`` has them: what each gains, and what it loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instil.errors import DataError
from instil.files import read_json_object, record_of
from instil.runs.folder import BLEND, BLEND_PICTURE, RunFolder

FORMAT = 2  # the first told gains by likelihoods alone
KEPT = 0.98  # share of the gain that is to be kept


@dataclass(frozen=True, slots=True)
class Point:
    """One mixture.

    Attributes:
        share: of the tuned model, from 0 (the base) to 1.
        score: mean agreement of its answers to the validation rows with their references, 0 to 100.
        gain: how much of the tuned model's gain there it has; 1 is all of it.
        loss: mean nats a token of these references, which may be least where answers are not yet the best.
        bits: mean bits a byte on general texts.
        lost: by how much that is more than the base's.
    """

    share: float
    score: float
    gain: float
    loss: float
    bits: float
    lost: float


@dataclass(frozen=True, slots=True)
class Blend:
    """All mixtures of a run; ``chosen`` is the number of that which keeps the gain with the least loss, or None."""

    points: tuple[Point, ...]
    chosen: int | None
    rows: int
    texts: int
    sentence: str

    @property
    def best(self) -> Point | None:
        """The chosen one."""
        return None if self.chosen is None else self.points[self.chosen]

    def as_json(self) -> dict[str, Any]:
        """For ``blend.json``."""
        return {"format": FORMAT, **asdict(self)}


def chosen_of(points: Sequence[Point]) -> int | None:
    """Which point keeps 98 % of the gain with the least loss; of equals the one nearest to the base.

    None where the last, the tuned model, has gained nothing.

    >>> points = [Point(0, 20, 0.0, 2, 1, 0.0), Point(0.5, 59.6, 0.99, 1, 1.1, 0.1), Point(1, 60, 1.0, 1.1, 1.3, 0.3)]
    >>> chosen_of(points)
    1
    """
    if not points or points[-1].score <= points[0].score:
        return None
    able = [number for number, point in enumerate(points) if point.gain >= KEPT]
    return min(able, key=lambda number: (points[number].lost, number))


def write_blend(folder: RunFolder, blend: Blend, picture: bool = True) -> None:
    """Write ``blend.json``, and draw it.

    Raises:
        OSError: it cannot be written.
    """
    folder.write_json(BLEND, blend.as_json())
    if picture:
        plot_blend(blend, folder.path / BLEND_PICTURE)


def read_blend(folder: RunFolder) -> Blend | None:
    """``blend.json``; None of a run that has none, or one by an earlier version, which knew nothing of answers.

    Raises:
        DataError: it is damaged, or of another version.
    """
    file = folder.path / BLEND
    if not file.is_file():
        return None
    found = read_json_object(file, error=DataError)
    if found.get("format") == 1:
        return None
    if found.get("format") != FORMAT:
        raise DataError(f"{file}: has format {found.get('format')}, and {FORMAT} is read here")
    try:
        points = tuple(record_of(Point, one) for one in found["points"])
        rest = {name: found[name] for name in ("chosen", "rows", "texts", "sentence")}
        blend = Blend(points, **rest)
        blend.best  # noqa: B018  # damaged, it is told now
        return blend
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: damaged: {error}; instil blend writes it anew") from error


def plot_blend(blend: Blend, path: Path) -> None:
    """Gain kept against bits lost, a dot for each mixture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    lost, gains = [point.lost for point in blend.points], [100 * point.gain for point in blend.points]
    axis.axhline(100 * KEPT, color="#9aa7b4", linewidth=0.8, linestyle="--")
    axis.plot(lost, gains, color="#2f6f9f", linewidth=1.8, marker="o", markersize=4)
    for point in blend.points[:: 2 if len(blend.points) > 6 else 1]:
        at = (point.lost, 100 * point.gain)
        axis.annotate(f"{point.share:.1f}", at, textcoords="offset points", xytext=(6, -11), fontsize=8)
    if blend.best is not None:
        axis.plot(
            [blend.best.lost], [100 * blend.best.gain], color="#c8553d", marker="o", markersize=8,
            linestyle="", label=f"chosen: {blend.best.share:.1f} of the way",
        )  # fmt: skip
        axis.legend(frameon=False, loc="best")
    axis.set_xlabel("bits a byte more than the base on general texts")
    axis.set_ylabel("% of the gain in answers to validation rows")
    axis.grid(alpha=0.2)
    axis.spines[["right", "top"]].set_visible(False)
    figure.savefig(path, dpi=150)
