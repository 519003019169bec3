"""The verdict of a run as others can check it: its figures, and hashes of all that they hang on (``verdict.json``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instil.errors import DataError
from instil.evaluate.comparison import Comparison, compare_verdicts
from instil.evaluate.offline import JUDGE, means
from instil.files import read_json_object, record_of, sha256_of
from instil.records import Verdict
from instil.runs.folder import RunFolder

NAME = "verdict.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """What a run says of itself.

    Attributes:
        format: of this file.
        judge: whose scores they are.
        verdict: the sentence.
        figures: mean metrics by name, of the answers before and after, and of the trivial baseline.
        outcome: of the paired comparison of after with before, which the file has whole, too.
        files: SHA-256 of every file of the run that it hangs on, by their paths in the run's folder.
        settings: SHA-256 of all settings of the run, as ``run.toml`` has them.
        data: SHA-256 of the rows that the run was made of, as ``run.toml`` has it.
        base: SHA-256 of the model that was tuned, as ``run.toml`` has it.
    """

    format: int
    judge: str
    verdict: str
    figures: dict[str, dict[str, float]]
    outcome: str
    files: dict[str, str]
    settings: str
    data: str
    base: str


def figures_of(verdicts: Mapping[str, Sequence[Verdict]]) -> tuple[dict[str, dict[str, float]], Comparison, str]:
    """Means, comparison and sentence of the verdicts before and after (``base``, ``tuned``)."""
    compared = compare_verdicts(verdicts["base"], verdicts["tuned"])
    means_of = {which: means(found) for which, found in sorted(verdicts.items())}
    return means_of, compared, compared.sentence("before", "after")


def write_verdict(folder: RunFolder, verdicts: Mapping[str, Sequence[Verdict]]) -> None:
    """Write down the verdict of a run whose other files are all there.

    Raises:
        OSError, DataError: a file cannot be read or written.
    """
    figures, comparison, sentence = figures_of({which: verdicts[which] for which in ("base", "tuned", "echo")})
    facts = folder.read_settings()
    folder.write_json(
        NAME,
        {
            "format": FORMAT,
            "judge": JUDGE,
            "verdict": sentence,
            "figures": figures,
            "outcome": comparison.outcome,
            "comparison": comparison.as_json(),
            "files": {str(path): sha256_of(folder.path / path) for path in files_of(folder)},
            "settings": settings_hash(facts),
            "data": facts["hashes"]["data"],
            "base": facts["hashes"]["model"],
        },
    )


def read_verdict(folder: RunFolder) -> RunVerdict:
    """What a run has said of itself.

    Raises:
        DataError: it has said nothing, or the file is damaged or of another version.
    """
    file = folder.path / NAME
    if not file.is_file():
        raise DataError(
            f"{file}: not there; runs that answer held-out rows write it at their end, and earlier versions did not"
        )
    try:
        found = record_of(RunVerdict, read_json_object(file, error=DataError), strict=False)
    except ValueError as error:
        raise DataError(f"{file}: damaged: {error}") from error
    if found.format != FORMAT:
        raise DataError(f"{file}: has format {found.format}, and {FORMAT} is read here; another version wrote it")
    return found


def files_of(folder: RunFolder) -> list[Path]:
    """Those that a verdict hangs on: split, the model, answers and scores, by their paths in the folder.

    ``run.toml`` says when the run was made, too, and has no hash of its own (`settings_hash`).
    """
    found = [folder.path / "split.json"]
    found += [one for one in folder.model.glob("*") if one.is_file()]
    found += [*(folder.path / "responses").glob("*.json"), *(folder.path / "scores").glob(f"*.{JUDGE}.jsonl")]
    return sorted(one.relative_to(folder.path) for one in found if not one.name.startswith("."))


def settings_hash(facts: Mapping[str, Any]) -> str:
    """SHA-256 of a run's settings in what ``run.toml`` says."""
    return hashlib.sha256(json.dumps(facts["settings"], sort_keys=True).encode()).hexdigest()
