"""Scores for answers: without a judge, or by another model; kept as they come, and never asked for twice."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from instil.ask.client import Client
from instil.ask.journal import Journal
from instil.ask.named import opened
from instil.errors import DataError, InstilError, StoppedEarly, counted, verb
from instil.evaluate.health import Health, check_judge, questions
from instil.evaluate.judging import JudgingResult, judge_answers
from instil.evaluate.likelihood import JUDGE as LIKELIHOOD
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.offline import means, of_other_scripts, score_offline
from instil.evaluate.statistics import Interval, interval
from instil.records import Example, Verdict
from instil.runs.answers import (
    AnsweredRows,
    answered_rows,
    find_answers,
    no_answers_after,
    read_verdicts,
    without_room,
    write_verdicts,
)
from instil.runs.report.report import refresh_report
from instil.screen import Screen
from instil.settings.asking import ScoreOptions


@dataclass(frozen=True, slots=True)
class Scored:
    """The verdicts of one set of answers, and how they came about.

    ``asked`` questions were put now, ``found`` were answered before; ``failed`` rows have no verdict, with the cause.
    ``note`` is what must be known of the scores.
    """

    which: str
    judge: str
    verdicts: tuple[Verdict, ...]
    asked: int = 0
    found: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    note: str = ""

    @property
    def scores(self) -> list[float]:
        """The scores there are."""
        return [verdict.score for verdict in self.verdicts if verdict.score is not None]

    @property
    def coverage(self) -> float:
        """Share of the rows with a score."""
        return len(self.scores) / len(self.verdicts) if self.verdicts else 0.0

    @property
    def unscored(self) -> dict[int, str]:
        """Rows without a score, with the reason."""
        return {verdict.row: verdict.reason for verdict in self.verdicts if verdict.score is None}

    @property
    def flagged(self) -> list[int]:
        """Rows whose answer speaks to a judge."""
        return [verdict.row for verdict in self.verdicts if verdict.metrics.get("speaks_to_judge")]

    @property
    def noise(self) -> float | None:
        """The judge's own spread on one answer, in points, where it was asked several times."""
        spreads = [verdict.metrics["spread"] for verdict in self.verdicts if "spread" in verdict.metrics]
        return mean(spread**2 for spread in spreads) ** 0.5 if spreads else None

    def mean(self) -> Interval | None:
        """Mean over the scored rows, with its interval."""
        return interval(self.scores)

    def bounds(self) -> tuple[float, float]:
        """The mean if every row without a score had 0, and if it had 100."""
        rows, total = max(1, len(self.verdicts)), sum(self.scores)
        return total / rows, (total + 100.0 * len(self.unscored)) / rows

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; the mean metrics stand beside."""
        found = self.mean()
        return {
            "rows": len(self.verdicts),
            "scored": len(self.scores),
            "coverage": self.coverage,
            "score": found.mean if found else None,
            "interval": [found.low, found.high] if found else None,
            "bounds": list(self.bounds()),
            "unscored": {str(row): reason for row, reason in self.unscored.items()},
            "failed": {str(row): reason for row, reason in self.failed.items()},
            "speaks_to_judge": self.flagged,
            "noise": self.noise,
            "asked": self.asked,
            "found": self.found,
            **({"note": self.note} if self.note else {}),
            **(means(self.verdicts) if self.judge == OFFLINE else {}),
        }


def score(
    rows: Sequence[dict[str, Any]],
    judge: str = OFFLINE,
    *,
    numbers: Sequence[int] | None = None,
    journal: str | Path | None = None,
    **settings: Any,
) -> list[Verdict]:
    """Verdicts for rows with ``instruction``, ``input``, ``output`` and ``model_response``, in their order.

    Args:
        rows: the answered rows.
        judge: ``offline``, ``ollama:MODEL``, ``openai:MODEL``, the address of a server, or ``llamacpp:FILE.gguf``.
        numbers: the rows' numbers in their data set, by which the verdicts are keyed; by default their places in
            this list.
        journal: a file that keeps every verdict as it comes, so that the same call goes on where it was stopped.
        **settings: how to ask (``prompt="book"``, ``repeats=3``, ...).

    Raises:
        SettingsError: a setting is not known.
        DataError: a row lacks an answer or cannot be used; the message names it.
        JudgeError: the judge is not there.
        StoppedEarly: it stopped answering.

    Warns:
        UserWarning: what must be known of the scores: most rows are in other scripts than the calibration's, or a
            server does not list the judge.
    """
    examples, answers = answered_rows(rows, numbers)
    options = ScoreOptions().changed(**settings)
    if judge == OFFLINE:
        if note := of_other_scripts(examples):
            _warn(note)
        return score_offline(examples, answers, embeddings=options.embeddings, no_room=without_room(rows, examples))
    with opened(judge, options, _warn) as asked, Journal(Path(journal) if journal else None) as kept:
        no_room = without_room(rows, examples)
        return list(judge_answers(asked, examples, answers, options, kept, no_room=no_room).verdicts)


def _warn(note: str) -> None:
    """Said to the caller of `score`, who has no screen."""
    warnings.warn(note, stacklevel=3)


def score_path(
    path: Path, judge: str = OFFLINE, options: ScoreOptions | None = None, screen: Screen | None = None
) -> dict[str, Scored]:
    """Score a file of answered rows, or every ``responses/*.json`` of a run; a run's report is written anew.

    A file in the run's folder that holds no answers of the run is said and left out, unless it was named itself.

    Raises:
        DataError: there is nothing to score, or a row cannot be used.
        JudgeError, StoppedEarly, RunFolderTaken: see `score`; verdicts that came are kept.
    """
    shown = screen or Screen(quiet=True)
    found = find_answers(path, left_out=shown.warn)
    if path.is_dir() and all(one.which != "tuned" for one in found):
        shown.warn(no_answers_after(path, found))
    scored = score_answers(found, judge, options or ScoreOptions(), shown)
    if found[0].run is not None:
        try:
            refresh_report(found[0].run)
        except DataError as error:  # the scores are there all the same
            (screen or Screen()).say(f"{error}", "yellow")
    return scored


def score_answers(
    found: Sequence[AnsweredRows], judge: str, options: ScoreOptions, screen: Screen, *, keep: bool = True
) -> dict[str, Scored]:
    """Score sets of answers with one judge, which is opened once; write the verdicts to where they belong.

    ``keep=False`` leaves out what can be had again without a question: a run that may only be read is scored, too.
    """
    if judge == OFFLINE:
        return {answered.which: _offline(answered, options, keep=keep) for answered in found}
    if judge == LIKELIHOOD:
        return {answered.which: _likelihood(answered) for answered in found}
    with opened(judge, options, screen.warn) as asked:
        return {answered.which: _judged(asked, answered, options, screen) for answered in found}


def check_outcome(scored: dict[str, Scored], options: ScoreOptions) -> None:
    """Whether the scores may be used.

    Raises:
        StoppedEarly: questions failed that may be answered another time.
        InstilError: too few rows have a score.
    """
    for which, one in scored.items():
        check_failed(which, one.failed)
    for which, one in scored.items():
        if one.verdicts and one.coverage < options.min_coverage:
            row, reason = next(iter(one.unscored.items()))
            raise InstilError(
                f"{which}: only {len(one.scores):,} of {counted(len(one.verdicts), 'row')} "
                f"{verb(len(one.scores), 'has', 'have')} a score (row {row}: {reason}); "
                f"wanted {options.min_coverage:.0%}, or lower score.min_coverage"
            )


def check_failed(which: str, failed: dict[int, str]) -> None:
    """Whether every question got a reply.

    Raises:
        StoppedEarly: some did not.
    """
    if failed:
        row, reason = next(iter(failed.items()))
        raise StoppedEarly(
            f"{which}: {counted(len(failed), 'row')} could not be judged (row {row}: {reason}); "
            "the same command asks for them again"
        )


def _offline(answered: AnsweredRows, options: ScoreOptions, *, keep: bool) -> Scored:
    verdicts = score_offline(
        answered.examples, answered.answers, embeddings=options.embeddings, no_room=answered.no_room
    )
    if answered.run is not None and keep:
        write_verdicts(answered.verdicts_at(OFFLINE, ScoreOptions()), verdicts)
    return Scored(answered.which, OFFLINE, tuple(verdicts), note=of_other_scripts(answered.examples))


def _likelihood(answered: AnsweredRows) -> Scored:
    file = answered.verdicts_at(LIKELIHOOD, ScoreOptions())
    if answered.run is None or not file.is_file():
        raise DataError(f"{answered.file}: likelihoods are taken by instil run, with the model at hand; no {file.name}")
    return Scored(answered.which, LIKELIHOOD, tuple(read_verdicts(file)))


def _judged(judge: Client, answered: AnsweredRows, options: ScoreOptions, screen: Screen) -> Scored:
    with Journal(answered.journal) as journal:
        if journal.damaged:
            screen.say(
                f"{answered.journal}: {counted(journal.damaged, 'damaged line is', 'damaged lines are')} left out",
                "yellow",
            )
        total = len(answered.examples) * options.repeats
        with screen.bar(f"{judge.name} judges {answered.which}", total) as advance:
            judged: JudgingResult = judge_answers(
                judge, answered.examples, answered.answers, options, journal, advance, no_room=answered.no_room
            )
        write_verdicts(answered.verdicts_at(judge.name, options), judged.verdicts)
    return Scored(answered.which, judge.name, judged.verdicts, judged.asked, judged.found, judged.failed)


def check(judge: str, options: ScoreOptions, screen: Screen) -> Health:
    """Judge known-good, known-bad and shuffled answers, and canaries; nothing is kept.

    Raises:
        JudgeError, StoppedEarly: the judge is not there, or stopped answering.
    """
    if judge == OFFLINE:
        return check_judge(judge, score_offline)
    with (
        opened(judge, options, screen.warn) as asked,
        screen.bar(f"checking {asked.name}", questions() * options.repeats) as advance,
    ):

        def score(examples: Sequence[Example], answers: Sequence[str]) -> tuple[Verdict, ...]:
            judged = judge_answers(asked, examples, answers, options, Journal(), advance, empty_is_zero=False)
            return judged.verdicts

        return check_judge(judge, score)
