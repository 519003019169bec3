"""What would more rows bring? The same run on a quarter and on half of its rows, and a power law through the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instil.data.sources import IN_MEMORY
from instil.errors import DataError, UserError, counted
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.files import json_text, make_folder, write_whole
from instil.model.load import file_hash
from instil.recipes.more.law import Law, law_of
from instil.recipes.rows_of_run import rows_of_run
from instil.recipes.sweep.sweep import sweep
from instil.runs.answers import find_answers, read_verdicts
from instil.runs.folder import RUN_FILE, RunFolder
from instil.screen import Screen
from instil.settings.asking import ScoreOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER, NAME = "more", "more.json"
SHARES = (("a quarter", 4, 1), ("another quarter", 4, 2), ("half", 2, 1))  # name, part of the rows, seed
FEWEST = 40  # training rows of which a quarter teaches anything


@dataclass(frozen=True, slots=True)
class More:
    """What the run and the smaller ones came to."""

    run: Path
    law: Law
    runs: dict[str, Path]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"run": str(self.run), **self.law.as_json(), "runs": {name: str(at) for name, at in self.runs.items()}}

    def lines(self) -> list[str]:
        """The sentence, and what it rests on."""
        points = sorted(zip(self.law.sizes, self.law.scores, strict=True))
        told = ", ".join(f"{score:.1f} after {size:,}" for size, score in points)
        return [
            self.law.sentence(),
            f"scores of {counted(self.law.rows, 'held-out row')} by training rows: {told}",
            f"the error falls with the power {self.law.exponent:.2f} of the number of rows; {FOLDER}/more.png shows it",
        ]


def more(run: str | Path, *, screen: Screen | None = None) -> More:
    """Train on a quarter of a run's rows, on another, and on half of them, and say what twice as many would bring.

    The runs lie in ``RUN/more``; the same command goes on where it was stopped.

    Args:
        run: a finished run with answers.
        screen: where progress is shown; stderr by default.

    Raises:
        UserError: it is no such run, its data or its base are not at hand, or there are too few rows.
        DataError: a file of it is damaged.
    """
    folder, screen = RunFolder(Path(run)), screen or Screen()
    if not (folder.path / RUN_FILE).is_file():
        raise UserError(f"{run}: no {RUN_FILE} in it, so it is not a run folder")
    facts = folder.read_settings()
    own = _scores(folder)
    rows = len(rows_of_run(folder.path, "train"))
    if rows < FEWEST:
        raise UserError(f"{run} was trained on {counted(rows, 'row')}; of fewer than {FEWEST} a quarter says nothing")
    model = folder.base()
    if file_hash(model) != facts["hashes"].get("model"):
        raise UserError(f"{model} is another model by now than the one that was tuned")
    place = folder.path / FOLDER
    make_folder(place)
    write_whole(place / "more.toml", _sweep_of(facts, model, rows, place))
    made = sweep(place / "more.toml", screen=screen)
    made.check()
    runs = {row.name: Path(row.folder) for row in made.table.rows}
    sizes, scores = [rows], [own]
    for name, part, _ in SHARES:
        sizes.append(rows // part)
        scores.append(_scores(RunFolder(runs[name])))
    known = [at for at in own if all(at in one for one in scores)]
    if not known:
        raise DataError(f"{run}: no held-out row has a score in all runs")
    law = law_of(sizes, [[one[at] for at in known] for one in scores])
    found = More(folder.path, law, runs)
    write_whole(place / NAME, json_text(found.as_json()))
    draw_law(law, place / "more.png")
    return found


def _scores(folder: RunFolder) -> dict[int, float]:
    """The offline scores after training, by row."""
    tuned = next((one for one in find_answers(folder.path, only=("tuned",)) if one.which == "tuned"), None)
    if tuned is None:
        raise UserError(f"{folder.path}: the run has no answers of its tuned model, so there are no scores to go by")
    verdicts = read_verdicts(tuned.verdicts_at(OFFLINE, ScoreOptions()))
    return {one.row: one.score for one in verdicts if one.score is not None}


def _sweep_of(facts: dict[str, Any], model: str, rows: int, place: Path) -> str:
    """The file of a sweep that makes the smaller runs."""
    import tomli_w

    data = facts.get("data_path") or facts["data"]
    if data == IN_MEMORY:
        raise UserError("the run was made from rows in memory, which are not at hand; give instil run a file")
    settings = {section: dict(values) for section, values in facts["settings"].items() if section != "log"}
    runs = []
    for name, part, seed in SHARES:
        own: dict[str, Any] = {"data": {"max_train_samples": rows // part, "sample_seed": seed}}
        if settings["train"].get("max_steps"):
            own["train"] = {"max_steps": max(1, settings["train"]["max_steps"] // part)}
        runs.append({"name": name, "settings": own})
    return tomli_w.dumps(
        {"data": data, "model": str(model), "out": str(place.resolve() / "runs"), "settings": settings, "run": runs}
    )


def draw_law(law: Law, path: Path) -> None:
    """The scores by the number of rows, and the law with its interval up to twice as many."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axis: Axes = figure.subplots()
    at, middle, low, high = zip(*law.curve, strict=True)
    axis.fill_between(at, low, high, color="#2f6f9f", alpha=0.15, linewidth=0)
    axis.plot(at, middle, color="#2f6f9f", linewidth=1.8)
    axis.plot(law.sizes, law.scores, "o", color="#c8553d", markersize=5)
    axis.set(xscale="log", xlabel="training rows", ylabel="score of held-out rows, 0 to 100")
    ticks: Sequence[int] = sorted({*law.sizes, 2 * max(law.sizes)})
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    figure.savefig(path, dpi=120)
