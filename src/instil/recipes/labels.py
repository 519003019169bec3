"""A judge calibrated against people: ``instil score --check JUDGE --labels FILE``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instil.ask.journal import Journal
from instil.ask.named import opened
from instil.data.files.rows import read_rows
from instil.data.words import words
from instil.errors import DataError, UserError, counted, listed
from instil.evaluate.judging import judge_answers
from instil.evaluate.likelihood import JUDGE as LIKELIHOOD
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.offline import score_offline
from instil.evaluate.pairwise import judge_pairwise
from instil.evaluate.people import ChoosesLikePeople, LikePeople, Scale, like_people, points_of
from instil.recipes.score import check_failed
from instil.records import Example, Verdict
from instil.runs.answers import answered_rows
from instil.screen import Screen
from instil.settings.asking import ScoreOptions
from instil.tasks.pairs.source import read_pairs

WORDS = {  # labels in words, and what they count
    **dict.fromkeys(("right", "good", "correct", "yes", "true", "up", "+"), 1.0),
    **dict.fromkeys(("wrong", "bad", "incorrect", "no", "false", "down", "-"), 0.0),
}
WANTED = "wanted 'label' (or 'labels', a list, one of each person): right/wrong, 0/1, 1 to 5, or 0 to 100"


def check_labels(
    judge: str, file: Path, options: ScoreOptions, screen: Screen | None = None
) -> LikePeople | ChoosesLikePeople:
    """How far a judge agrees with people about the answers of a file.

    Rows have an answer (``model_response``) and a ``label``, or they are preference pairs in any of the shapes that
    training takes, of which people prefer the chosen one. What the judge says is kept beside the file.

    Raises:
        DataError: the file cannot be read, or its labels cannot be used.
        UserError: the judge gives no scores, or cannot choose.
        JudgeError, StoppedEarly: see `instil.score`.
    """
    screen = screen or Screen(quiet=True)
    if judge == LIKELIHOOD:
        raise UserError("likelihoods are of a model's own references and cannot be taken of other answers")
    rows = read_rows(file)
    if any(isinstance(row, dict) and ("label" in row or "labels" in row) and "model_response" in row for row in rows):
        return _scores(judge, file, rows, options, screen)
    if any(isinstance(row, dict) and "model_response" in row for row in rows):
        raise DataError(f"{file}: no row has a label; {WANTED}")
    return _choices(judge, file, options, screen)


def _scores(judge: str, file: Path, rows: Sequence[Any], options: ScoreOptions, screen: Screen) -> LikePeople:
    examples, answers = answered_rows(rows, name=str(file))
    scale, labels = labels_of(rows, str(file))
    verdicts = _judged(judge, file, examples, answers, options, screen)
    return like_people(
        judge,
        scale,
        [sum(one) / len(one) for one in labels],
        [verdict.score for verdict in verdicts],
        [len(words(answer)) for answer in answers],
        [(one[0], one[1]) for one in labels if len(one) > 1],
    )


def _judged(
    judge: str, file: Path, examples: Sequence[Example], answers: Sequence[str], options: ScoreOptions, screen: Screen
) -> Sequence[Verdict]:
    if judge == OFFLINE:
        return score_offline(examples, answers, embeddings=options.embeddings)
    with (
        opened(judge, options, screen.warn) as asked,
        Journal(_journal(file)) as journal,
        screen.bar(f"{asked.name} judges", len(examples) * options.repeats) as advance,
    ):
        judged = judge_answers(asked, examples, answers, options, journal, advance, empty_is_zero=False)
    check_failed(judge, judged.failed)
    return judged.verdicts


def _choices(judge: str, file: Path, options: ScoreOptions, screen: Screen) -> ChoosesLikePeople:
    if judge == OFFLINE:
        raise UserError(
            f"{file} holds pairs, and {OFFLINE} gives scores and does not choose; name a model (ollama:llama3), or "
            "give rows with model_response and label"
        )
    pairs = read_pairs(file).pairs
    a, b = [pair.rejected for pair in pairs], [pair.chosen for pair in pairs]
    with (
        opened(judge, options, screen.warn) as asked,
        Journal(_journal(file)) as journal,
        screen.bar(f"{asked.name} chooses", 2 * len(pairs)) as advance,
    ):
        verdicts = judge_pairwise(asked, [pair.example for pair in pairs], a, b, options, journal, advance)
    check_failed(judge, verdicts.failed)
    return ChoosesLikePeople(judge, verdicts)


def _journal(file: Path) -> Path:
    return file.with_name(f"{file.name}.journal")


def labels_of(rows: Sequence[Any], name: str) -> tuple[Scale, list[list[float]]]:
    """The scale of all labels, and each row's, one or more, in points of 0 to 100.

    >>> labels_of([{"label": "right"}, {"labels": [1, 0]}], "rows")
    ('right or wrong', [[100.0], [100.0, 0.0]])
    >>> labels_of([{"label": 5}, {"label": 2}], "rows")
    ('1 to 5', [[100.0], [25.0]])

    Raises:
        DataError: a row has none, or one that is of no scale.
    """
    found, bad = [], []
    for at, row in enumerate(rows):
        given = row.get("labels", row.get("label"))
        each = [_number(one) for one in (given if isinstance(given, list) else [given])]
        if not each or None in each:
            bad.append(f"row {at}: {given!r} is no label")
        found.append([one for one in each if one is not None])
    if bad:
        raise DataError(f"{name}: {counted(len(bad), 'row')} without a label:\n{listed(bad)}\n{WANTED}")
    every = [one for each in found for one in each]
    scale = _scale(every)
    if scale is None:
        raise DataError(f"{name}: labels from {min(every):g} to {max(every):g}; {WANTED}")
    return scale, [[points_of(one, scale) for one in each] for each in found]


def _number(label: Any) -> float | None:
    if isinstance(label, bool):
        return float(label)
    if isinstance(label, str) and label.strip().lower() in WORDS:
        return WORDS[label.strip().lower()]
    try:
        value = float(label)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _scale(labels: Sequence[float]) -> Scale | None:
    kinds = set(labels)
    if kinds <= {0.0, 1.0}:
        return "right or wrong"
    if kinds <= {1.0, 2.0, 3.0, 4.0, 5.0}:
        return "1 to 5"
    return "0 to 100" if all(0 <= one <= 100 for one in kinds) else None
