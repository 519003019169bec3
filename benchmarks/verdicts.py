"""Is the paired verdict to be trusted? How often it is wrong about equals, and how small a difference it sees.

``python -m benchmarks.verdicts RUN`` answers the held-out rows of a run several times by its tuned model, sampling. Two
draws of such answers are of one model and differ by chance alone; so are rows that are drawn with replacement. Of so
many comparisons of the model with itself (`instil.evaluate.comparison.compare_verdicts`, as ``instil compare`` makes
it) the share that ends in "better" or in "worse" is wrong. Then a share of A's answers is replaced by those from
before training: the difference is known, and the share of "better" is the power. Both are told for several numbers of
rows, as tables in Markdown and, with ``--picture``, as curves.

Scores are kept with ``--scores FILE``, which is read instead of answering where it is there.

Shape suffixes: S draws of answers · R rows.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import hardware
from instil.evaluate.comparison import compare_verdicts
from instil.records import Verdict

Floats = NDArray[np.float64]

ROWS = (30, 110, 400, 1000)
DIFFERENCES = (1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)  # points
SEED = 123


def drawn(tuned_SR: Floats, rows: int, draw: np.random.Generator) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Scores of two different draws of answers on rows drawn with replacement, and which rows those are."""
    samples, count = tuned_SR.shape
    at = draw.integers(count, size=rows)
    one = draw.integers(samples, size=rows)
    other = (one + draw.integers(1, samples, size=rows)) % samples
    return tuned_SR[one, at], tuned_SR[other, at], at


def outcome(a: Floats, b: Floats) -> str:
    """What is said of B beside A."""
    one, other = ([Verdict(row, "offline", float(score)) for row, score in enumerate(scores)] for scores in (a, b))
    return compare_verdicts(one, other).outcome


def wrong(tuned_SR: Floats, rows: int, comparisons: int) -> dict[str, float]:
    """Shares of "better" and "worse" where a model is compared with itself."""
    draw = np.random.default_rng(SEED)
    said = [outcome(*drawn(tuned_SR, rows, draw)[:2]) for _ in range(comparisons)]
    return {name: said.count(name) / comparisons for name in ("better", "worse")}


def power(tuned_SR: Floats, base_R: Floats, rows: int, points: float, comparisons: int) -> float | None:
    """Share of "better" where B is better by so many points; None where base and tuned are not so far apart."""
    share = points / (tuned_SR.mean() - base_R.mean())
    if not 0 < share <= 1:
        return None
    draw, found = np.random.default_rng(SEED), 0
    for _ in range(comparisons):
        a, b, at = drawn(tuned_SR, rows, draw)
        a = np.where(draw.random(rows) < share, base_R[at], a)
        found += outcome(a, b) == "better"
    return found / comparisons


def upper(share: float, count: int) -> float:
    """The upper end of Wilson's 95 % interval of a share.

    >>> round(upper(0.05, 1000), 3)
    0.065
    """
    z = 1.96
    middle, width = (
        share + z * z / (2 * count),
        z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)),
    )
    return (middle + width) / (1 + z * z / count)


def scores_of(run: Path, samples: int, temperature: float) -> dict[str, Any]:
    """Scores of sampled answers, [S][R], and of those from before training, [R], on the run's held-out rows."""
    import instil
    from instil.evaluate.offline import score_offline
    from instil.runs.answers import find_answers

    found = {one.which: one for one in find_answers(run, only=("base", "tuned"))}
    assistant, rows = instil.load(run), found["tuned"].examples

    def scored(answers: Sequence[str]) -> list[float]:
        return [one.score or 0.0 for one in score_offline(rows, list(answers))]

    tuned = []
    for seed in range(samples):
        options = assistant.options.changed(temperature=temperature, seed=seed)
        tuned.append(scored([said.text for said in assistant.respond_to(rows, options)]))
        print(f"answered {seed + 1} of {samples} times", flush=True)
    return {
        "rows": len(rows),
        "temperature": temperature,
        "tuned": tuned,
        "base": scored(found["base"].answers),
        "greedy": scored(found["tuned"].answers),
    }


def main() -> None:
    """Answer, compare, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a finished run with answers before and after")
    parser.add_argument("--samples", type=int, default=16, help="draws of an answer to each row")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument(
        "--comparisons", type=int, default=1000, help="of the model with itself, for each number of rows"
    )
    parser.add_argument("--rows", type=int, nargs="*", default=list(ROWS))
    parser.add_argument("--scores", type=Path, help="where the scores of all draws are kept")
    parser.add_argument("--picture", type=Path, help="a PNG of the power curves")
    chosen = parser.parse_args()
    if chosen.scores and chosen.scores.is_file():
        told = json.loads(chosen.scores.read_text())
    elif chosen.run:
        told = scores_of(chosen.run, chosen.samples, chosen.temperature)
        if chosen.scores:
            chosen.scores.write_text(json.dumps(told))
    else:
        parser.error("wanted a run, or --scores with a file that is there")
    tuned_SR, base_R = np.array(told["tuned"]), np.array(told["base"])
    machine = hardware()
    within, between = tuned_SR.std(axis=0, ddof=1).mean(), tuned_SR.mean(axis=0).std(ddof=1)
    print(f"\n{machine['cpu']} ({machine['architecture']}), {machine['cores']} cores")
    print(
        f"{len(base_R)} rows, {len(tuned_SR)} draws at temperature {told['temperature']}: mean {tuned_SR.mean():.1f} "
        f"(before {base_R.mean():.1f}); standard deviation within a row {within:.1f}, between rows {between:.1f}\n"
    )
    print(f"One model with itself, {chosen.comparisons:,} comparisons:\n")
    print("| rows | said to be better | said to be worse | 95 % upper ends |\n| ---: | ---: | ---: | ---: |")
    for rows in chosen.rows:
        shares = wrong(tuned_SR, rows, chosen.comparisons)
        ends = " and ".join(f"{upper(share, chosen.comparisons):.1%}" for share in shares.values())
        print(f"| {rows:,} | {shares['better']:.1%} | {shares['worse']:.1%} | {ends} |", flush=True)
    tries = max(1, chosen.comparisons // 4)
    print(f"\nB is better by so many points, and is said to be ({tries:,} comparisons each):\n")
    print("| rows | " + " | ".join(f"{points:g}" for points in DIFFERENCES) + " |")
    print("| ---: |" + " ---: |" * len(DIFFERENCES))
    curves: dict[int, list[float | None]] = {}
    for rows in chosen.rows:
        curves[rows] = [power(tuned_SR, base_R, rows, points, tries) for points in DIFFERENCES]
        shown = " | ".join("" if value is None else f"{value:.0%}" for value in curves[rows])
        print(f"| {rows:,} | {shown} |", flush=True)
    if chosen.picture:
        draw_power(curves, chosen.picture)


def draw_power(curves: dict[int, list[float | None]], path: Path) -> None:
    """The power curves, one for each number of rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for rows, values in curves.items():
        points = [(at, value) for at, value in zip(DIFFERENCES, values, strict=True) if value is not None]
        if not points:
            continue
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3.5, label=f"{rows:,} rows")
    axis.axhline(0.8, color="#999999", linewidth=0.8, linestyle="--")
    axis.set(xscale="log", xlabel="true difference, points of 100", ylabel='share of "better"', ylim=(0, 1.02))
    axis.set_xticks(DIFFERENCES, [f"{points:g}" for points in DIFFERENCES])
    axis.minorticks_off()
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
