"""Does the cost stay a line? Time and peak memory against row length, batch, rows of the data, and size of the model.

``python -m benchmarks.scaling`` trains and answers with random weights (the shapes of SmolLM2, and of larger models),
each point in a process of its own, whose peak of resident memory is told above what it held when the model was loaded.
Along each axis it fits a line in logarithms: a slope of 1 is a cost that grows as the axis does. With ``--picture``
the curves are drawn.

================  =======================================================================================
axis              what grows
================  =======================================================================================
``length``        tokens of a row in training, batch and model as they are; and of a prompt in answering
``batch``         rows of a step
``rows``          rows of an epoch: the time is that of a step among so many, the memory the whole loader's
``model``         parameters
================  =======================================================================================
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import hardware

MODELS = {  # layers, width, heads, heads of keys and values, width of the MLP, vocabulary
    "135M": (30, 576, 9, 3, 1536, 49_152),
    "360M": (32, 960, 15, 5, 2560, 49_152),
    "600M": (28, 1024, 16, 8, 3072, 151_936),
    "1.2B": (16, 2048, 32, 8, 8192, 128_256),
}
AXES: dict[str, tuple[Any, ...]] = {
    "length": (64, 128, 256, 512, 1024, 2048, 4096),
    "batch": (1, 2, 4, 8, 16, 32),
    "rows": (1_000, 10_000, 100_000, 1_000_000),
    "model": ("135M", "360M", "600M", "1.2B"),
}
USUAL: dict[str, Any] = {"length": 128, "batch": 4, "rows": 1_000, "model": "135M"}
ANSWERED = ("length", "batch", "model")
STEPS, WARM = 4, 1
NEW_TOKENS = 16
LEAST = (("seconds", 1e-9), ("bytes", 1e6))  # what is measured, and what of it has a logarithm worth looking at


def point(work: str, at: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step (or of an answer's token) and bytes above the model, in this process."""
    import torch

    from instil.model.decoder import Decoder
    from instil.model.spec import DecoderSpec

    layers, width, heads, kv_heads, mlp_width, vocabulary = MODELS[at["model"]]
    spec = DecoderSpec(
        family="llama",
        vocab_size=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=width // heads,
        mlp_width=mlp_width,
        context=max(8192, at["length"] + NEW_TOKENS),
        norm="rms",
        norm_eps=1e-5,
        mlp="swiglu",
        positions="rope",
        tied=True,
    )
    torch.manual_seed(1)
    decoder = Decoder(spec)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(0.0, 0.02)
        decoder.embed.weight.normal_()  # scores lie apart, as a trained model's: near ties are computed once more
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    before = _peak()
    seconds = _trained(decoder, at) if work == "train" else _answered(decoder, at)
    return {"seconds": seconds, "bytes": float(_peak() - before), "parameters": float(parameters)}


def _trained(decoder: Any, at: dict[str, Any]) -> float:
    import numpy as np

    from instil.data.loader import Loader
    from instil.data.subset import Lazy
    from instil.records import Encoded
    from instil.settings.options import TrainOptions
    from instil.train.loop import train
    from instil.train.observer import OnStep

    length, draw = at["length"], np.random.default_rng(1)
    ids = draw.integers(decoder.spec.vocab_size, size=(64, length + 1))
    half = length // 2

    class Rows(Lazy[Encoded]):
        """As many as are asked for, each made when it is wanted; a half is a prompt of its own."""

        def __len__(self) -> int:
            return int(at["rows"])

        def __getitem__(self, number: Any) -> Any:
            if isinstance(number, slice):
                return self.subset(range(len(self))[number])
            row = range(len(self))[number]
            trained = (False,) * half + (True,) * (length + 1 - half)
            return Encoded(tuple(ids[row % 64].tolist()), trained, prompt_length=half, row=row)

    loader = Loader(Rows(), at["batch"], pad_id=0, max_length=length, shuffle=True, seed=1)
    options = TrainOptions(max_steps=STEPS, eval_every=0, batch_size=at["batch"])
    marks: list[float] = []
    train(decoder, loader, options, observers=[OnStep(lambda record: marks.append(time.perf_counter()))])
    return float(np.median(np.diff(marks)[WARM:]))


def _answered(decoder: Any, at: dict[str, Any]) -> float:
    import numpy as np

    from instil.generate.prompts import generate

    decoder.eval()
    draw = np.random.default_rng(1)
    prompts = draw.integers(decoder.spec.vocab_size, size=(at["batch"], at["length"])).tolist()
    started = time.perf_counter()
    generate(decoder, prompts, max_new_tokens=NEW_TOKENS, stop_ids=frozenset(), batch_size=at["batch"])
    return time.perf_counter() - started


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def slope(at: list[float], values: list[float]) -> float:
    """Of a line through the logarithms, by least squares.

    >>> round(slope([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    x, y = [math.log(one) for one in at], [math.log(max(one, 1e-9)) for one in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def measured(axis: str, work: str, places: list[Any], rounds: int) -> list[dict[str, Any]]:
    """Every point of an axis, the best of several rounds, each in a process of its own."""
    found = []
    for place in places:
        at = {**USUAL, axis: place}
        said = []
        for _ in range(rounds):
            command = [sys.executable, "-m", "benchmarks.scaling", "--one", work, json.dumps(at)]
            result = subprocess.run(command, check=False, capture_output=True, text=True)
            if result.returncode:
                print(f"{axis} {place}, {work}: {result.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                break
            said.append(json.loads(result.stdout.splitlines()[-1]))
        if said:
            best = min(said, key=lambda one: float(one["seconds"]))
            found.append({"at": place, "x": best["parameters"] if axis == "model" else place, **best})
            print(f"{axis} {place}, {work}: {best['seconds']:.3f} s, {best['bytes'] / 1e6:.0f} MB", file=sys.stderr)
    return found


def table(axis: str, work: str, found: list[dict[str, Any]]) -> str:
    """One axis in Markdown, with its slopes over all points and over the upper half."""
    what = "a step" if work == "train" else f"a prompt and {NEW_TOKENS} tokens"
    lines = [f"| {axis} | s for {what} | MB above the model |", "| ---: | ---: | ---: |"]
    for one in found:
        lines.append(f"| {one['at'] if axis == 'model' else format(one['at'], ',')} | {one['seconds']:.3f} "
                     f"| {one['bytes'] / 1e6:,.0f} |")  # fmt: skip
    for name, part in (("slope", found), ("slope of the upper half", found[len(found) // 2 :])):
        if len(part) > 1:
            slopes = [slope([one["x"] for one in part], [max(one[key], least) for one in part]) for key, least in LEAST]
            lines.append(f"| {name} | {slopes[0]:.2f} | {slopes[1]:.2f} |")
    return "\n".join(lines)


def kept(path: Path | None) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The points of a file, by axis and work; none where there is no file."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path and path.exists() else ():
        one = json.loads(line)
        found.setdefault((one.pop("axis"), one.pop("work")), []).append(one)
    return found


def joined(before: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points in their order, those found now in place of those from before."""
    return sorted({one["at"]: one for one in (*before, *found)}.values(), key=lambda one: one["x"])


def keep(every: dict[tuple[str, str], list[dict[str, Any]]], path: Path) -> None:
    """Write all points to a file."""
    points = [{"axis": axis, "work": work, **one} for (axis, work), found in every.items() for one in found]
    path.write_text("".join(f"{json.dumps(one)}\n" for one in points), encoding="utf-8")


def draw_curves(every: dict[tuple[str, str], list[dict[str, Any]]], path: Path) -> None:
    """Time and memory of each axis, in logarithms."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(axis for axis, _ in every))
    figure = Figure(figsize=(3.2 * len(axes), 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(axes), squeeze=False)
    for column, axis in enumerate(axes):
        for work, colour in (("train", "#2f6f9f"), ("answer", "#c8553d")):
            found = every.get((axis, work), [])
            for row, (key, unit) in enumerate((("seconds", 1.0), ("bytes", 1e6))):
                shown = [(one["x"], one[key] / unit) for one in found if one[key] > 0]
                if shown:
                    grid[row][column].loglog(*zip(*shown, strict=True), "o-", color=colour, markersize=3, label=work)
        grid[0][column].set(title=axis, ylabel="seconds" if not column else "")
        grid[1][column].set(xlabel=axis, ylabel="MB above the model" if not column else "")
        for plot in (one[column] for one in grid):
            _make_readable(plot, {one["x"]: str(one["at"]) for one in every.get((axis, "train"), [])})
    grid[0][0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def _make_readable(plot: Any, places: dict[float, str]) -> None:
    """A tick for each place, and no less than a factor of ten from bottom to top, so that noise looks like noise."""
    from matplotlib.ticker import NullFormatter

    plot.set_xticks(list(places), labels=[*places.values()], rotation=40)
    for side in (plot.xaxis, plot.yaxis):
        side.set_minor_formatter(NullFormatter())
    low, high = plot.get_ylim()
    if 0 < high < 10 * low:
        middle = math.sqrt(low * high)
        plot.set_ylim(middle / math.sqrt(10), middle * math.sqrt(10))


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="*", choices=list(AXES), default=list(AXES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--most", type=int, default=0, help="points of each axis, the first ones; 0: all")
    parser.add_argument("--only", choices=("train", "answer"))
    parser.add_argument("--keep", type=Path, help="a file of points; what is measured now takes their places there")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("WORK", "POINT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(point(chosen.one[0], json.loads(chosen.one[1]))))
        return
    told = hardware()
    print(f"{told['cpu']} ({told['architecture']}), {told['cores']} cores; otherwise {USUAL}\n")
    every = kept(chosen.keep)
    for axis in chosen.axes:  # what is measured is kept at once
        for work in ("train", *(["answer"] if axis in ANSWERED else [])):
            if chosen.only in (None, work):
                found = measured(axis, work, list(AXES[axis])[: chosen.most or None], chosen.rounds)
                every[axis, work] = joined(every.get((axis, work), []), found)
                print(table(axis, work, every[axis, work]), end="\n\n", flush=True)
                if chosen.keep:
                    keep(every, chosen.keep)
    if chosen.picture:
        draw_curves(every, chosen.picture)


if __name__ == "__main__":
    main()
