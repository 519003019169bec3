"""Was tuning needed? The tuned model beside its base, asked as well as can be, and beside other models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from instil.assistant.assistant import Assistant, load
from instil.data.subset import spread
from instil.errors import DataError, InstilError, UserError, counted, listed_names
from instil.evaluate.comparison import Comparison, compare_verdicts
from instil.evaluate.offline import means, score_offline
from instil.evaluate.statistics import holm
from instil.files import make_folder
from instil.model.find import find_model
from instil.recipes.base_of_run import base_of
from instil.recipes.keep.measuring import own_chat
from instil.recipes.rivals.asking import FOLDER, Asked, Asking, Candidate
from instil.recipes.rivals.shots import Nearest, in_the_question, instructed
from instil.recipes.rows_of_run import rows_of_run
from instil.records import Example
from instil.runs.answers import find_answers
from instil.runs.folder import RUN_FILE, RunFolder
from instil.screen import Screen
from instil.settings.options import GenerateOptions

NAME = "rivals.json"
TUNED, BASE, TOLD, SHOWN = "tuned", "base", "base, instructed", "base, with examples"
OWN_BASE = (BASE, TOLD, SHOWN)
INSTRUCTION = "Answer with what is asked for and nothing else: no introduction, no explanation, no closing remark."
SHOTS = (1, 2, 4, 8)  # numbers of examples that are tried on validation rows
TRIED = 40  # validation rows on which they are tried, at most


@dataclass(frozen=True, slots=True)
class Rival:
    """One way to have the rows answered: its mean ``metrics`` (exact match from 0 to 1, chrF and score to 100).

    ``against`` is the tuned model beside it, with a p-value adjusted for the number of rivals; None for the tuned one.
    """

    asked: Asked
    metrics: dict[str, float]
    against: Comparison | None

    @property
    def name(self) -> str:
        """What it is called."""
        return self.asked.name

    @property
    def ahead(self) -> float:
        """Points by which the tuned model is better."""
        return self.against.difference.mean if self.against and self.against.difference else 0.0

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "name": self.name,
            "how": self.asked.how,
            "metrics": self.metrics,
            "tuned_against_it": self.against.as_json() if self.against else None,
            "seconds": self.asked.seconds,
            "prompt_tokens": self.asked.prompt_tokens,
            "memory_bytes": self.asked.memory,
            "answers": str(self.asked.file),
        }


@dataclass(frozen=True, slots=True)
class Rivals:
    """All of them, the tuned model first. ``tried`` are the scores on validation rows of each number of examples."""

    run: Path
    rows: int
    rivals: tuple[Rival, ...]
    tried: dict[int, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Whether tuning was worth it, as far as these rows tell."""
        own = [one for one in self.rivals if one.name in OWN_BASE]
        others = [one for one in self.rivals if one.name not in (TUNED, *OWN_BASE)]
        return " ".join([_worth(own), *_beside(others)])

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "run": str(self.run),
            "verdict": self.sentence(),
            "rows": self.rows,
            "rivals": [one.as_json() for one in self.rivals],
            "examples_tried": {str(count): score for count, score in self.tried.items()},
            "notes": list(self.notes),
        }


def _worth(own: Sequence[Rival]) -> str:
    if not own:
        return "Whether tuning was worth it cannot be told: its base could not be asked."
    if better := _named(own, "worse"):
        return f"Tuning was not worth it: {listed_names(better)} {_are(better)} better than the tuned model."
    if alike := _named(own, "not distinguishable"):
        return (
            "Whether tuning was worth it cannot be told: the tuned model is not distinguishable from its "
            f"{listed_names(alike)}."
        )
    closest = min(own, key=lambda one: one.ahead)
    gap = closest.against.difference.text() if closest.against and closest.against.difference else ""
    return f"Tuning was worth it: it is better than its base however that was asked, by {gap} points ({closest.name})."


def _beside(others: Sequence[Rival]) -> Iterator[str]:
    for outcome, said in (
        ("worse", "better than the tuned model"),
        ("not distinguishable", "not distinguishable from the tuned model"),
        ("better", "worse than the tuned model"),
    ):
        if names := _named(others, outcome):
            yield f"{listed_names(names)} {_are(names)} {said}."


def _named(rivals: Sequence[Rival], outcome: str) -> list[str]:
    """Those beside which the tuned model is so."""
    return [one.name for one in rivals if one.against and one.against.outcome == outcome]


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def rivals(
    run: str | Path,
    *,
    instruction: str = INSTRUCTION,
    shots: Sequence[int] = SHOTS,
    others: Sequence[str] = (),
    screen: Screen | None = None,
) -> Rivals:
    """Have a run's held-out rows answered in other ways than by tuning, and compare.

    The base is asked in its own chat form where it carries one (else in the run's): as it is, with a written
    instruction, and with the nearest training rows as examples, whose number is chosen on validation rows. What was
    answered by an earlier call is not answered again; all of it lies in ``RUN/rivals`` and ``RUN/rivals.json``.

    Args:
        run: a finished run with answers.
        instruction: what the base is told, as a system message where its form has one.
        shots: numbers of examples to choose among.
        others: further models, by name or path.
        screen: where progress is shown; nowhere by default.

    Raises:
        UserError: it is no run, or has no answers to compare with.
        ModelError: another model is not there.
        DataError: a file of the run is damaged.
    """
    folder, screen = RunFolder(Path(run)), screen or Screen(quiet=True)
    if not (folder.path / RUN_FILE).is_file():
        raise UserError(f"{run}: no {RUN_FILE} in it, so it is not a run folder")
    if not shots or min(shots) < 1:
        raise UserError("a number of examples is 1 or more")
    if taken := {TUNED, *OWN_BASE} & set(others):
        raise UserError(f"{min(taken)!r} is what a rival is called; give the other model's path: ./{min(taken)}")
    for name in others:  # what is not there is said before anybody is asked
        find_model(name)
    rows = next((one.examples for one in find_answers(folder.path, only=("tuned",)) if one.which == "tuned"), None)
    if rows is None:
        raise UserError(f"{run}: the run has no answers of its tuned model (responses/tuned.json) to compare with")
    options = GenerateOptions().changed(**folder.read_settings()["settings"].get("generate", {}))
    make_folder(folder.path / FOLDER)
    asking = Asking(folder, rows, options, screen)

    tuned = Candidate(TUNED, folder.path, lambda: load(folder.path))
    asked = [asking.ask(tuned, TUNED, "asked as it was trained")]
    del tuned
    of_base = _Base(folder, asking, instruction, shots)
    for one in of_base.asked():
        asked.append(one)
    for name in others:
        asked.append(asking.ask(Candidate(name, name, partial(load, name)), name, "asked in its usual form"))

    notes = (*of_base.notes, *_room_notes(asked))
    found = Rivals(folder.path, len(rows), _compared(asked, rows), of_base.tried, notes)
    folder.write_json(NAME, found.as_json())
    return found


class _Base:
    """The model before tuning, asked in three ways; ``notes`` say what could not be done."""

    def __init__(self, folder: RunFolder, asking: Asking, instruction: str, shots: Sequence[int]) -> None:
        self._folder, self._asking, self._instruction, self._shots = folder, asking, instruction, shots
        self.tried: dict[int, float] = {}
        self.notes: list[str] = []

    def asked(self) -> Iterator[Asked]:
        """One way after the other, as far as they go."""
        try:
            base = Candidate(BASE, self._folder.base(), lambda: asked_as_itself(self._folder))
            form = "in its own chat form" if base.own else "in the run's form"
            yield self._asking.ask(base, BASE, f"asked {form}")
            yield self._asking.ask(base, TOLD, f"told: {self._instruction}", self._told(base, self._asking.rows))
        except InstilError as error:
            self.notes.append(f"the base is not asked: {error}")
            return
        try:
            nearest = Nearest(rows_of_run(self._folder.path, "train"))
            if not nearest.rows:
                raise DataError("no training row is one question with one answer")
            count = self._count(base, nearest)
            shown = self._with_examples(base, nearest, self._asking.rows, count, told=True)
        except InstilError as error:
            self.notes.append(f"the base is not shown any examples: {error}")
            return
        yield self._asking.ask(base, SHOWN, f"shown the {counted(count, 'nearest training row')}", shown)

    def _told(self, base: Candidate, rows: Sequence[Example]) -> list[Example]:
        """Rows with the instruction, where this form has a place for it."""
        put = instructed(rows, self._instruction)
        try:
            for row in put:
                base.tokens(row)
        except DataError:
            self.notes.append("its form takes no system message here, so the instruction stands before the question")
            return in_the_question(rows, self._instruction)
        return put

    def _count(self, base: Candidate, nearest: Nearest) -> int:
        """The number of examples with the best score on validation rows; the smaller one where two are alike."""
        counts = sorted(set(self._shots))
        try:
            rows = list(spread(rows_of_run(self._folder.path, "validation"), TRIED))
        except DataError:
            middle = counts[len(counts) // 2]
            self.notes.append(f"there are no validation rows to choose a number of examples by, so {middle} are shown")
            return middle
        for count in counts if len(counts) > 1 else ():
            shown = self._with_examples(base, nearest, rows, count)
            said, _ = self._asking.timed(base, shown, f"{count} shown, validation")
            verdicts = score_offline(rows, [one.text for one in said])
            self.tried[count] = means(verdicts).get("score", 0.0)
        return max(counts, key=lambda count: (self.tried.get(count, 0.0), -count))

    def _with_examples(
        self, base: Candidate, nearest: Nearest, rows: Sequence[Example], count: int, *, told: bool = False
    ) -> list[Example]:
        room = base.assistant.decoder.spec.context - self._asking.options.max_new_tokens
        shown, fewer = nearest.before(rows, count, base.tokens, room)
        if fewer and told:
            self.notes.append(f"{counted(fewer, 'row')} had room for fewer than {counted(count, 'example')}")
        return shown


def asked_as_itself(folder: RunFolder) -> Assistant:
    """The model that was tuned, asked in its own chat form where it carries one, else in the run's.

    Raises:
        InstilError: it is not there any more, or another one by now.
    """
    path, base = base_of(folder)
    own, _ = own_chat(path, base.tokenizer, base.decoder.spec.vocab_size)
    return replace(base, template=own or folder.template())


def _compared(asked: Sequence[Asked], rows: Sequence[Example]) -> tuple[Rival, ...]:
    verdicts = [score_offline(rows, one.answers, no_room=one.no_room) for one in asked]
    against = [compare_verdicts(each, verdicts[0]) for each in verdicts[1:]]
    ps = holm([one.p for one in against])
    adjusted = [None, *(replace(one, p=p) for one, p in zip(against, ps, strict=True))]
    return tuple(Rival(one, means(each), pair) for one, each, pair in zip(asked, verdicts, adjusted, strict=True))


def _room_notes(asked: Sequence[Asked]) -> list[str]:
    return [
        f"{counted(len(one.no_room), 'row leaves', 'rows leave')} no room for an answer of {one.name}"
        for one in asked
        if one.no_room
    ]
