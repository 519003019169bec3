"""Answers before training, once for all runs that ask the same: another run's are taken over where nothing differs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from instil.ask.journal import key_of
from instil.errors import DataError
from instil.evaluate.likelihood import VERSION as LIKELIHOOD_VERSION
from instil.evaluate.offline import VERSION as OFFLINE_VERSION
from instil.files import read_json
from instil.machine import device_for
from instil.records import Completion
from instil.runs.answers import JOURNAL, find_answers, read_verdicts
from instil.runs.facts import Before, read_facts
from instil.runs.folder import FACTS, RunFolder
from instil.tasks.task import Prepared
from instil.version import __version__

VERDICTS = ("base.offline.jsonl", "base.likelihood.jsonl")


def base_answers_key(prepared: Prepared, model_hash: str) -> str:
    """The hash of all that shapes the answers before training and their verdicts."""
    return key_of(
        __version__,
        LIKELIHOOD_VERSION,
        OFFLINE_VERSION,
        str(prepared.model_path.resolve()),
        model_hash,
        prepared.template.hash,
        prepared.own_template.hash if prepared.own_template else "",
        prepared.settings.generate.model_dump(mode="json"),
        device_for(prepared.settings.train.device),
        prepared.max_length,
        [[example.row, example.as_json()] for example in prepared.held_out[1]],
    )


def reusable_run(key: str, runs: Sequence[Path]) -> Path | None:
    """The first of these runs whose answers before training have this key, and are whole."""
    for run in runs:
        try:
            if RunFolder(run).read_settings()["hashes"].get("before") == key:
                form = read_facts(RunFolder(run)).forms
                rows = [answer.row for answer in _answers(run)]
                scored = [*VERDICTS, *([f"{form.answers}.offline.jsonl"] if form else [])]
                if form and [answer.row for answer in _answers(run, form.answers)] != rows:
                    continue
                if all([verdict.row for verdict in read_verdicts(run / "scores" / name)] == rows for name in scored):
                    return run
        except DataError:
            continue  # not finished, or damaged: then they are made anew
    return None


def copy_base_answers(earlier: Path, folder: RunFolder) -> tuple[dict[str, list[Completion]], Before | None]:
    """Take over the answers, their verdicts, and what judges said of them.

    Returns:
        the answers (without ids) in each form, and which form counts as before where there are two.
    """
    form = read_facts(RunFolder(earlier)).forms
    answers = {which: _answers(earlier, which) for which in ("base", *([form.answers] if form else []))}
    names = [*VERDICTS, *(f"{which}.offline.jsonl" for which in answers if which != "base")]
    names += [JOURNAL] if (earlier / "scores" / JOURNAL).is_file() else []
    for which in answers:
        shutil.copyfile(earlier / "responses" / f"{which}.json", folder.path / "responses" / f"{which}.json")
    for name in names:
        shutil.copyfile(earlier / "scores" / name, folder.path / "scores" / name)
    return answers, form


def _answers(run: Path, which: str = "base") -> list[Completion]:
    """The answers of a finished run before training, with how each ended.

    Raises:
        DataError: they are not there, or damaged.
    """
    file = run / FACTS
    try:
        endings = read_json(file)["finish"][which]
        base = next(answered for answered in find_answers(run, only=(which,)) if answered.which == which)
        return [
            Completion(text, finish=ending, row=example.row)
            for text, ending, example in zip(base.answers, endings, base.examples, strict=True)
        ]
    except (DataError, OSError, RecursionError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise DataError(f"{file}: no answers before training") from error
