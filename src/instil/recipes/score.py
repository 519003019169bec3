"""Scores for answers that lie in a run folder or a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from instil.data.sources import examples_from, parse_rows
from instil.errors import DataError, SettingsError
from instil.evaluate.offline import JUDGE, score_offline
from instil.recipes.run_folder import RUN_FILE, RunFolder
from instil.records import Verdict


def score(rows: Sequence[dict[str, Any]], judge: str = JUDGE, *, numbers: Sequence[int] | None = None) -> list[Verdict]:
    """Verdicts for rows with ``instruction``, ``input``, ``output`` and ``model_response``.

    Args:
        rows: the answered rows.
        judge: who scores.
        numbers: the rows' numbers in their data set, by which the verdicts are keyed; by default their
            places in this list.

    Raises:
        SettingsError: the judge is not known here.
        DataError: a row lacks an answer or cannot be used; the message names it.
    """
    if judge != JUDGE:
        raise SettingsError(f"no judge named {judge!r}; known: {JUDGE}")
    answers = []
    for index, row in enumerate(rows):
        said = row.get("model_response") if isinstance(row, dict) else None
        if not isinstance(said, str):
            raise DataError(f"row {index}: no text under 'model_response'; instil respond writes such rows")
        answers.append(said)
    examples = examples_from(list(rows)).examples
    if numbers is not None:
        examples = tuple(replace(example, row=number) for example, number in zip(examples, numbers, strict=True))
    return score_offline(examples, answers)


def score_path(path: Path, judge: str = JUDGE) -> dict[str, list[Verdict]]:
    """Score a file of answered rows, or every ``responses/*.json`` of a run, and write the run's verdicts.

    Raises:
        DataError: there is nothing to score, or a row cannot be used.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or run folder")
    if not path.is_dir():
        return {path.stem: score(parse_rows(path.read_bytes(), str(path)), judge)}
    if not (path / RUN_FILE).is_file():
        raise DataError(f"{path}: no {RUN_FILE} in it, so it is not a run folder; wanted one, or a JSON file")
    folder = RunFolder(path)
    numbers = folder.held_out_rows()
    found = {}
    for file in sorted((path / "responses").glob("*.json")):
        rows = parse_rows(file.read_bytes(), str(file))
        if len(rows) != len(numbers):
            raise DataError(f"{file}: {len(rows)} rows, but the run held out {len(numbers)}; it belongs to another run")
        found[file.stem] = score(rows, judge, numbers=numbers)
    if not found:
        raise DataError(f"{path}: the run holds no answers; instil respond {path} makes them")
    for which, verdicts in found.items():
        folder.write_verdicts(f"{which}.{judge}", verdicts)
    return found
