"""What a run of a sweep left behind: whether it is finished, and its row of the table. All is read from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from instil.errors import DataError
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.statistics import Interval, interval
from instil.recipes.compare import Compared, compare_scored
from instil.recipes.score import Scored, score_path
from instil.recipes.sweep.table import Status, SweepRow
from instil.runs.answers import OWN, AnsweredRows, find_answers, read_verdicts
from instil.runs.facts import read_facts
from instil.runs.folder import RUN_FILE, RunFolder
from instil.screen import Screen
from instil.settings.asking import ScoreOptions
from instil.settings.options import Settings
from instil.tasks.prepare import TASKS
from instil.train.metrics import StepRecord, read_metrics

LAST = 20  # steps whose mean training loss is shown
# What a validation loss is a loss of, as people call it, by its setting.
LOSS_OF = {
    "targets": ("data", "train_on"),
    "max_length": ("data", "max_length"),
    "split": ("data", "split"),
    "split seed": ("data", "split_seed"),
    "way of evaluating": ("train", "evaluation"),
    "number of batches": ("train", "eval_batches"),
    "objective": ("train", "objective"),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """The answers of a run's tuned model with their scores, as the next one is compared with them."""

    answered: AnsweredRows
    scored: Scored


def measure(folder: RunFolder, judge: str, settings: Settings, screen: Screen) -> dict[str, Measured]:
    """Scores of the answers of a run, before and after; empty where no rows were held out.

    Raises:
        DataError: its files are damaged.
        JudgeError, StoppedEarly, RunFolderTaken: see `instil.score`.
    """
    if not folder.held_out_rows():
        return {}
    found = {one.which: one for one in find_answers(folder.path, only=OWN) if one.which in OWN}
    if judge == OFFLINE:
        files = {which: one.verdicts_at(judge, ScoreOptions()) for which, one in found.items()}
        scored = {which: Scored(which, judge, tuple(read_verdicts(file))) for which, file in files.items()}
    else:
        scored = score_path(folder.path, judge, settings.score, screen)
    for which, one in found.items():
        if [verdict.row for verdict in scored[which].verdicts] != [example.row for example in one.examples]:
            file = one.verdicts_at(judge, ScoreOptions() if judge == OFFLINE else settings.score)
            raise DataError(f"{file}: damaged, its verdicts are not those of the {len(one.examples)} answers")
    return {which: Measured(one, scored[which]) for which, one in found.items()}


def row_of(name: str, folder: RunFolder, status: Status, measured: dict[str, Measured]) -> SweepRow:
    """The row of a finished run, but for its comparison with the first.

    Raises:
        DataError: its files are damaged.
    """
    facts = folder.read_settings()
    if not isinstance(facts.get("model"), str):
        raise DataError(f"{folder.path / RUN_FILE}: damaged, it has no 'model'")
    records, report = read_metrics(folder.metrics), read_facts(folder)
    return SweepRow(
        name=name,
        folder=str(folder.path),
        status=status,
        model=facts["model"],
        data=facts["data"],
        steps=report.steps,
        trained=report.trained_parameters,
        train_seconds=report.train_seconds,
        seconds=round(sum(report.seconds.values()), 2),
        peak_memory_gb=report.peak_memory_gb,
        own_peak=report.own_peak,
        train_loss=training_loss(records),
        validation_loss=report.validation_loss,
        before=measured["base"].scored.mean() if measured else None,
        after=measured["tuned"].scored.mean() if measured else None,
        exact_match=_exact_match(folder) if measured else None,
        before_from=report.before_from,
        loss_of=loss_of(facts),
    )


def against(first: Measured, other: Measured, names: tuple[str, str], judge: str) -> Compared | None:
    """The paired comparison with the first run, on the rows that both answered; None where there are none."""
    try:
        return compare_scored((first.answered, other.answered), (first.scored, other.scored), names, judge)
    except DataError:
        return None


def training_loss(records: Sequence[StepRecord]) -> float | None:
    """The training loss at the end: the mean of the last steps, or what the book's way of evaluating found."""
    evaluated = [record.eval_train_loss for record in records if record.eval_train_loss is not None]
    steps = [record.train_loss for record in records if record.train_loss is not None]
    return evaluated[-1] if evaluated else mean(steps[-LAST:]) if steps else None


def _exact_match(folder: RunFolder) -> Interval | None:
    file = folder.path / "scores" / f"tuned.{OFFLINE}.jsonl"
    verdicts = read_verdicts(file)
    if any(one.score is not None and "exact_match" not in one.metrics for one in verdicts):
        raise DataError(
            f"{file}: damaged, a verdict has no 'exact_match' among its metrics; instil score writes it anew"
        )
    return interval([100.0 * one.metrics["exact_match"] for one in verdicts if one.score is not None])


def loss_of(facts: dict[str, Any]) -> dict[str, Any]:
    """What the validation loss is a loss of; a run's model counts because its tokens are its own."""
    settings, hashes = facts["settings"], facts["hashes"]
    found = {what: settings.get(section, {}).get(name) for what, (section, name) in LOSS_OF.items()}
    found |= TASKS.get(str(found["objective"]), TASKS["sft"]).loss_settings(settings)
    return {"model": hashes.get("model"), "rows": hashes.get("data"), "template": hashes.get("template"), **found}
