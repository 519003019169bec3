"""Whether what a run says of itself is so: its files, its figures, and some of its answers, made once more."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from instil.assistant.assistant import Assistant, load
from instil.data.templates import OWN
from instil.errors import InstilError, UserError, counted
from instil.evaluate.offline import JUDGE, score_offline, trivial_baseline
from instil.files import others_than, read_json
from instil.generate.answer import answer
from instil.recipes.base_of_run import base_of
from instil.records import Completion, Verdict
from instil.runs.answers import AnsweredRows, find_answers, read_verdicts
from instil.runs.facts import read_facts
from instil.runs.folder import KEEP, RUN_FILE, RunFolder
from instil.runs.general import SIDES, differing_rows, figures, read_general, read_measured
from instil.runs.verdict import NAME, RunVerdict, figures_of, files_of, read_verdict, settings_hash
from instil.screen import Screen
from instil.settings.asking import ScoreOptions

SAME = 1e-9  # by which a figure may be another where sums are added up by another version of Python
ANOTHER = Completion(text="", ids=(), finish="no_room", prompt_tokens=0, row=-1)  # in the place of a row not asked


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at, and what is not as the run says; ``untold`` is what could not be looked at, and why."""

    run: Path
    verdict: str
    files: int
    figures: int
    answered: dict[str, int]
    differs: list[str] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether all that was looked at is as the run says."""
        return not self.differs

    def lines(self) -> list[str]:
        """What was looked at, and what is not as the run says."""
        answered = ", ".join(f"{counted(number, 'row')} by {_called(which)}" for which, number in self.answered.items())
        looked = f"{counted(self.files, 'file')} and {counted(self.figures, 'figure')} compared"
        lines = [f"{looked}{f'; answered once more: {answered}' if answered else ''}", *self.untold]
        if self.good:
            return [*lines, f"all of it is as the run says: {self.verdict}"]
        return [*lines, *(f"differs: {line}" for line in self.differs)]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "run": str(self.run),
            "good": self.good,
            "verdict": self.verdict,
            "files": self.files,
            "figures": self.figures,
            "answered": self.answered,
            "differs": self.differs,
            "untold": self.untold,
        }


def verify(run: str | Path, *, rows: int = 10, seed: int = 0, screen: Screen | None = None) -> Verified:
    """Look at a run as somebody would who does not believe it.

    Every file that the verdict hangs on is compared with its hash, every score and figure is computed from the answers
    again (and what was lost outside of the rows from its measurements), and some rows are answered once more, by the
    tuned model and, where it is still there, by its base.

    Args:
        run: a run folder.
        rows: how many rows are answered once more; 0 for none.
        seed: which ones.
        screen: where progress is shown; nowhere by default.

    Raises:
        UserError: it is no run folder.
        DataError: it has no verdict, or its answers cannot be read.
    """
    folder, screen = RunFolder(Path(run)), screen or Screen(quiet=True)
    if not (folder.path / RUN_FILE).is_file():
        raise UserError(f"{run}: no {RUN_FILE} in it, so it is not a run folder")
    said = read_verdict(folder)
    differs = [*_files(folder, said), *_general(folder)]
    answered = {one.which: one for one in find_answers(folder.path, only=("base", "tuned"))}
    lacking = [which for which in ("base", "tuned") if which not in answered]
    if lacking:
        raise UserError(f"{run}: no answers {' and '.join(lacking)} in it, so there are no figures to check")
    differs += _figures(said, answered)
    chosen = sorted(random.Random(seed).sample(range(len(answered["tuned"].answers)), _at_most(rows, answered)))
    untold: list[str] = []
    made: dict[str, int] = {}
    for which in ("tuned", "base") if chosen else ():
        try:
            assistant = load(folder.path) if which == "tuned" else _base(folder)
            found = _again(assistant, answered[which], chosen, screen)
        except InstilError as error:
            untold.append(f"no row is answered by {_called(which)} again: {error}")
            continue
        made[which], differs = len(chosen), differs + found
    figures = sum(len(one) for one in said.figures.values())
    return Verified(folder.path, said.verdict, len(said.files), figures, made, differs, untold)


def _at_most(rows: int, answered: dict[str, AnsweredRows]) -> int:
    return min(rows, *(len(one.answers) for one in answered.values()))


def _files(folder: RunFolder, said: RunVerdict) -> list[str]:
    """Files that are not those that the verdict is of."""
    found = others_than(folder.path, said.files, "the verdict")
    facts = folder.read_settings()
    if settings_hash(facts) != said.settings:
        found.append(f"{RUN_FILE} has other settings than those that the verdict is of")
    hashes = facts.get("hashes", {})
    found += [
        f"{RUN_FILE} has another hash of the {what} than the verdict"
        for what, kept in (("data", said.data), ("model", said.base))
        if hashes.get(what) != kept
    ]
    added = sorted(str(name) for name in files_of(folder) if str(name) not in said.files)
    return found + [f"{name} was added since" for name in added if name.startswith("model/")]


def _figures(said: RunVerdict, answered: dict[str, AnsweredRows]) -> list[str]:
    """Scores and figures that do not come of the answers."""
    found, verdicts = [], dict[str, Sequence[Verdict]]()
    for which, one in answered.items():
        verdicts[which] = score_offline(one.examples, one.answers, no_room=one.no_room)
        written = read_verdicts(one.verdicts_at(JUDGE, ScoreOptions()))
        if [one.row for one in written] != [one.row for one in verdicts[which]]:
            found.append(f"the scores {which} are of other rows than the answers")
            continue
        others = [
            str(own.row) for own, kept in zip(verdicts[which], written, strict=True) if not _near(own.score, kept.score)
        ]
        if others:
            found.append(f"the scores {which} of {counted(len(others), 'row')} are others: {', '.join(others[:10])}")
    verdicts["echo"] = trivial_baseline(answered["tuned"].examples)
    figures, comparison, sentence = figures_of(verdicts)
    for which, metrics in figures.items():
        for name, value in metrics.items():
            kept = said.figures.get(which, {}).get(name)
            if not _near(value, kept):
                found.append(f"{name} {which} is {value:.6g}, and {NAME} has {kept}")
    if sentence != said.verdict:
        found.append(f"the verdict is: {sentence} {NAME} has: {said.verdict}")
    elif comparison.outcome != said.outcome:
        found.append(f"the outcome is {comparison.outcome}, and {NAME} has {said.outcome}")
    return found


def _general(folder: RunFolder) -> list[str]:
    """What ``keep.json`` says that does not come of the measurements beside it."""
    kept = read_general(folder)
    if kept is None:
        return []
    if found := differing_rows(folder, kept):
        return found
    told = read_json(folder.path / KEEP)
    own = figures(*(read_measured(folder, side) for side in SIDES))
    for change, sentence in zip(own["changes"], own["sentences"], strict=True):
        title = change["title"]
        there = next((one for one in told.get("changes", ()) if one.get("part") == change["part"]), None)
        if there is None or not _alike(there, change):
            found.append(f"{KEEP} has other figures of {title} than its measurements give")
        elif sentence not in kept.sentences:
            found.append(f"{KEEP} has another sentence on {title} than its measurements give")
    if len(kept.sentences) != len(own["sentences"]) or kept.warnings != own["warnings"]:
        found.append(f"{KEEP} says other things than its measurements give")
    return found


def _alike(one: Any, other: Any) -> bool:
    """Whether two parts of what JSON holds are the same but for rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if type(one) is float and type(other) is float:
        return _near(one, other)
    return bool(one == other)


def _near(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= SAME * max(1.0, abs(one))


def _base(folder: RunFolder) -> Assistant:
    """The model that was tuned, asked in the form that counts as before.

    Raises:
        UserError: it is not there any more, or is another one by now.
    """
    forms, settings = read_facts(folder).forms, folder.read_settings()["settings"]
    own = forms is not None and forms.form == OWN
    _, loaded = base_of(folder, OWN if own else None, **settings.get("generate", {}))
    return loaded if own else replace(loaded, template=folder.template())


def _again(assistant: Assistant, rows: AnsweredRows, chosen: Sequence[int], screen: Screen) -> list[str]:
    """Rows that are answered otherwise now."""
    others = {index: ANOTHER for index in range(len(rows.answers)) if index not in chosen}
    with screen.bar(f"answering {rows.which} again", len(chosen)) as advance:
        made = answer(
            assistant.decoder,
            assistant.tokenizer,
            assistant.template,
            rows.examples,
            assistant.options,
            advance,
            known=others,
        )
    apart = [index for index in chosen if made[index].text != rows.answers[index]]
    return [
        f"row {rows.examples[index].row} is answered otherwise by {_called(rows.which)}: "
        f"{made[index].text[:60]!r} in place of {rows.answers[index][:60]!r}"
        for index in apart
    ]


def _called(which: str) -> str:
    return "the tuned model" if which == "tuned" else "the base"
