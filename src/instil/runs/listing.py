"""The runs below a folder: which there are, how far each is, and what came of it; also while they train.

Nothing here writes, and nothing trusts what it reads: a damaged run is listed with what is wrong with it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from instil.errors import DataError
from instil.evaluate.comparison import Outcome, compare_verdicts
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.statistics import Interval, interval
from instil.files import is_file, record_of
from instil.runs.answers import read_verdicts
from instil.runs.facts import read_facts
from instil.runs.folder import FACTS, RUN_FILE, RunFolder
from instil.runs.report.scores import LABELS
from instil.runs.status import State, read_status
from instil.train.metrics import StepRecord

DEEPEST = 3  # folders between the root and a run, that one included
MOST_FOLDERS = 5000  # looked into for runs
QUIET = 600.0  # seconds without a change after which a run without a status that is not done counts as stopped
MOST_BYTES = 8_000_000  # of a file of metrics that are read at once
POINTS = 400  # of a curve that is drawn


@dataclass(frozen=True, slots=True)
class Scored:
    """What one judge said before and after; ``sentence`` is the verdict as the report has it."""

    judge: str
    before: Interval | None
    after: Interval | None
    outcome: Outcome
    sentence: str


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run in a list. What is not known, or not yet, is None or empty.

    ``why`` says why it was stopped or failed, or why it is finished after fewer steps than were planned; ``pid`` and
    ``host`` are those of the process that worked on it last. ``steps`` of a run that is running is what it takes if
    nothing ends it early. ``problem`` says what of its files cannot be read.
    """

    name: str
    state: State
    model: str = ""
    data: str = ""
    method: str = ""
    objective: str = ""
    created: str = ""
    step: int | None = None
    steps: int | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    scores: tuple[Scored, ...] = ()
    report: bool = False
    problem: str = ""
    why: str = ""
    pid: int | None = None
    host: str = ""

    def as_json(self) -> dict[str, Any]:
        """For ``--json`` and for pages."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Curve:
    """Losses by step, as pairs; of many steps, the training loss is a mean over neighbours."""

    train: list[tuple[int, float]] = field(default_factory=list)
    val: list[tuple[int, float]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For pages."""
        return asdict(self)


def find_runs(root: Path) -> dict[str, Path]:
    """The run folders at or below a folder, by their names, which are their paths below it; the last changed first.

    Links are not followed, and nothing is looked for inside of a run.
    """
    if is_file(root / RUN_FILE):
        return {root.resolve().name or "run": root}
    found = {path.relative_to(root).as_posix(): path for path in _runs_in(root, DEEPEST, [MOST_FOLDERS])}
    return dict(sorted(found.items(), key=lambda one: -_changed(one[1] / RUN_FILE)))


def _runs_in(folder: Path, depth: int, left: list[int]) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            below = sorted(one.name for one in entries if one.is_dir(follow_symlinks=False))
    except OSError:
        return
    for name in below:
        left[0] -= 1
        if left[0] < 0:
            return
        if name.startswith(".") or not _has_utf8(name):
            continue
        if is_file(folder / name / RUN_FILE):  # not in a folder that is another user's
            yield folder / name
        elif depth > 1:
            yield from _runs_in(folder / name, depth - 1, left)


def _has_utf8(name: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in name)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def state_of(run: RunFolder) -> State:
    """Whether a run is running, stopped, finished or failed, as its status says."""
    return state_and_why(run)[0]


def state_and_why(run: RunFolder) -> tuple[State, str]:
    """The same, and why it was stopped or failed, or is finished before its last step; empty where nothing says it."""
    status = read_status(run.path)
    return (status.state, status.why) if status is not None else (_without_status(run), "")


def _without_status(run: RunFolder) -> State:
    """What is known of a run of an earlier version.

    It is finished when it has written its facts. One that has not is running as long as one of its files changed
    within the last ten minutes.
    """
    if (run.path / FACTS).is_file():
        return "finished"
    watched = [run.path / RUN_FILE, run.metrics, run.samples]
    watched += [run.path / name for name in ("responses", "scores", "checkpoints", "model", "adapter")]
    return "running" if time.time() - max(map(_changed, watched)) < QUIET else "stopped"


def summary_of(name: str, path: Path) -> RunSummary:
    """What a list says of a run."""
    run = RunFolder(path)
    status = read_status(path)
    state = status.state if status is not None else _without_status(run)
    problems: list[str] = []
    about: dict[str, Any] = {}
    options: Mapping[str, Any] = {}
    try:
        facts = run.read_settings()
        options = facts["settings"].get("train", {})
        about = {
            "model": _short(str(facts.get("model", ""))),
            "data": _short(facts["data"]),
            "created": str(facts.get("created", "")),
            "method": str(options.get("method", "")),
            "objective": str(options.get("objective", "")),
        }
    except DataError as error:
        problems.append(_without(error, path))
    records, _ = new_records(run.metrics, 0)
    train, val = _losses(records)
    last = records[-1].step if records else None
    steps = planned(records, options)
    if status is not None:
        last, steps = status.done if last is None else last, status.planned or steps
    if state == "finished":
        try:
            steps = read_facts(run).steps
        except DataError as error:
            problems.append(_without(error, path))
    return RunSummary(
        name=name,
        state=state,
        **about,
        step=last,
        steps=steps,
        train_loss=train[-1][1] if train else None,
        val_loss=val[-1][1] if val else None,
        scores=tuple(_scores(run, problems)),
        report=own_file(run.report) is not None,
        problem="; ".join(problems),
        why=status.why if status is not None else "",
        pid=status.pid if status is not None else None,
        host=status.host if status is not None else "",
    )


def _short(name: str) -> str:
    """A name without the folders of this machine."""
    return Path(name).name if Path(name).is_absolute() else name


def _without(error: DataError, path: Path) -> str:
    return str(error).replace(f"{path}{os.sep}", "").replace(str(path), path.name)


def own_file(file: Path) -> Path | None:
    """A file of a run, if it is there and lies where its name says: no link leads out of the folder."""
    real = file.resolve()
    return real if file.is_file() and real.parent == file.parent.resolve() else None


def planned(records: list[StepRecord], options: Mapping[str, Any]) -> int | None:
    """How many steps a run takes, seen from the share of epochs that its last one came to."""
    epochs, most = options.get("epochs"), options.get("max_steps")
    if not records or not isinstance(epochs, int) or records[-1].epoch <= 0:
        return most if isinstance(most, int) and most > 0 else None
    steps = round(records[-1].step / records[-1].epoch) * epochs
    return min(steps, most) if isinstance(most, int) and most > 0 else steps


def _scores(run: RunFolder, problems: list[str]) -> Iterator[Scored]:
    """What every judge said that scored both sides, the offline one first."""
    found = {file.name.removeprefix("tuned.").removesuffix(".jsonl") for file in run.path.glob("scores/tuned.*.jsonl")}
    for judge in sorted(found, key=lambda name: (name != OFFLINE, name)):
        files = [run.path / "scores" / f"{which}.{judge}.jsonl" for which in ("base", "tuned")]
        if any(own_file(file) is None for file in files):
            continue
        try:
            base, tuned = (read_verdicts(file) for file in files)
            told = compare_verdicts(base, tuned)
        except DataError as error:
            problems.append(_without(error, run.path))
            continue
        before, after = (interval([one.score for one in side if one.score is not None]) for side in (base, tuned))
        yield Scored(LABELS.get(judge, judge), before, after, told.outcome, told.sentence("before", "after"))


def new_records(file: Path, start: int) -> tuple[list[StepRecord], int]:
    """The whole lines of a file of metrics from a byte on, and the byte after them; a damaged line is passed over.

    What is being written has no end of line yet, and is left for the next time.
    """
    if own_file(file) is None:
        return [], 0
    records: list[StepRecord] = []
    try:
        with file.open("rb") as lines:
            size = lines.seek(0, os.SEEK_END)
            first = max(start, size - MOST_BYTES)
            lines.seek(first)
            text = lines.read(MOST_BYTES)
    except OSError:
        return [], start
    whole = text[: text.rfind(b"\n") + 1]
    parts = whole.split(b"\n")[1:] if first > start else whole.split(b"\n")
    for line in filter(None, parts):
        try:
            records.append(record_of(StepRecord, json.loads(line), strict=False))
        except (ValueError, RecursionError):
            continue
    return records, first + len(whole)


def _losses(records: list[StepRecord]) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Finite losses by step; what diverged is none that can be drawn, or said in JSON."""
    train, val = ([(one.step, one.train_loss) for one in records], [(one.step, one.val_loss) for one in records])
    finite = [
        [(step, loss) for step, loss in side if loss is not None and math.isfinite(loss)] for side in (train, val)
    ]
    return finite[0], finite[1]


def curve_of(records: list[StepRecord], points: int = POINTS) -> Curve:
    """The losses to be drawn, not more than so many of a kind."""
    train, val = _losses(records)
    size = max(1, math.ceil(len(train) / points))
    groups = [train[at : at + size] for at in range(0, len(train), size)]
    means = [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]
    stride = max(1, math.ceil(len(val) / points))
    return Curve(means, sorted({*val[::stride], *val[-1:]}))
