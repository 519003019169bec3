"""The report of a run, written from what lies in its folder, so that it can be written anew when a judge has scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from instil.errors import DataError, counted
from instil.evaluate.likelihood import JUDGE as LIKELIHOOD
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.offline import trivial_baseline
from instil.files import records_in
from instil.records import Completion, Example, Verdict
from instil.runs.answers import OWN, find_answers, read_verdicts
from instil.runs.blend import read_blend
from instil.runs.facts import Before, Facts, read_facts
from instil.runs.folder import BLEND_PICTURE, FACTS, RunFolder
from instil.runs.report.general import general_of
from instil.runs.report.leaks import beside
from instil.runs.report.made_of import ReportData
from instil.runs.report.page import write_report
from instil.tasks.rejected import RejectedRow


def refresh_report(folder: RunFolder) -> None:
    """Write ``report.html`` from what lies in the folder; nothing is done for a run that kept no facts for it.

    Raises:
        DataError: a file of the run is damaged.
    """
    if not (folder.path / FACTS).is_file():
        return
    settings = folder.read_settings()
    from jinja2 import TemplateError

    try:
        write_report(_data(folder, settings, read_facts(folder)), folder.report)
    except DataError as error:
        raise DataError(f"{error}; the report is left as it was") from error
    except (KeyError, TypeError, ValueError, AttributeError, TemplateError) as error:
        lacks = "its files lack something that the report shows"
        raise DataError(f"{folder.path}: damaged: {lacks}; the report is left as it was") from error


def _data(folder: RunFolder, settings: dict[str, Any], facts: Facts) -> ReportData:
    names = [*OWN, *([facts.forms.answers] if facts.forms else [])]
    found = {one.which: one for one in find_answers(folder.path, only=names)} if facts.finish else {}
    examples: tuple[Example, ...] = ()
    answers: dict[str, Sequence[Completion]] = {}
    for which, endings in facts.finish.items():
        one = found.get(which)
        if one is None:
            raise DataError(f"{folder.path}: damaged: no responses/{which}.json in it")
        for name, values in (("'tasks'", facts.tasks), (f"'finish' of {which}", endings)):
            if len(values) != len(one.examples):
                wanted = f"{counted(len(one.examples), 'answer')} in {one.file.name}"
                raise DataError(f"{folder.path / FACTS}: damaged: {name} has {len(values)} for {wanted}")
        examples = tuple(replace(row, task=task) for row, task in zip(one.examples, facts.tasks, strict=True))
        answers[which] = [
            Completion(text, finish=ending, row=row.row)
            for text, ending, row in zip(one.answers, endings, one.examples, strict=True)
        ]
    blend = read_blend(folder)
    return ReportData(
        title=f"{settings['model']} on {Path(settings['data']).name}",
        facts=settings,
        preflight=facts.preflight,
        part=facts.part,
        examples=examples,
        answers=answers,
        verdicts=_verdicts(folder, examples, facts.forms) if answers else {},
        before=facts.forms,
        leaks=folder.read_leaks() or (),
        steps=facts.steps,
        tokens_seen=facts.tokens_seen,
        train_seconds=facts.train_seconds,
        seconds=facts.seconds,
        peak_memory_gb=facts.peak_memory_gb,
        peak_gpu_memory_gb=facts.peak_gpu_memory_gb,
        samples=folder.samples,
        loss_picture=folder.path / "loss.png",
        unended=dict(facts.unended),
        outlook=facts.outlook,
        diverged=facts.diverged,
        card=folder.read_card(),
        rejected=list(records_in(folder.rejected, RejectedRow)) if folder.rejected.is_file() else (),
        beside=beside(facts.leaks),
        general=general_of(folder),
        blend=blend.sentence if blend else "",
        blend_picture=folder.path / BLEND_PICTURE if blend else None,
    )


def _verdicts(
    folder: RunFolder, examples: Sequence[Example], before: Before | None
) -> dict[str, dict[str, Sequence[Verdict]]]:
    """Every finished set of verdicts on these rows: by judge, then by what was judged; the offline ones first."""
    rows = [example.row for example in examples]
    by_judge: dict[str, dict[str, Sequence[Verdict]]] = {OFFLINE: {}, LIKELIHOOD: {}}
    for file in sorted((folder.path / "scores").glob("*.jsonl")):
        which, _, rest = file.stem.partition(".")
        verdicts = read_verdicts(file)
        if which in ("base", "tuned") and [verdict.row for verdict in verdicts] == rows:
            prompt = next((f" ({name})" for name in ("book-verbose", "book") if rest.endswith(f"+{name}")), "")
            by_judge.setdefault(verdicts[0].judge + prompt, {})[which] = verdicts
        elif before and which == before.answers and rest == OFFLINE:
            by_judge[OFFLINE]["other"] = verdicts
    if by_judge[OFFLINE]:
        by_judge[OFFLINE]["echo"] = trivial_baseline(examples)
    return {judge: found for judge, found in by_judge.items() if found}
