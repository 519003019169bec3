"""Preference pairs: made from two models' answers, from one model's samples, or by rewriting; and looked at.

Every way leaves the same: a file in the chapter's form with one more key, ``provenance``; beside it a journal, in which
everything stands that a model has said; and what the doctor says of the pairs. The file appears whole at the end, and a
way that was stopped goes on with the same command and ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instil.ask.journal import Journal
from instil.ask.named import opened
from instil.assistant.assistant import load
from instil.data.files.places import paths_of
from instil.data.files.rows import read_rows
from instil.data.findings.finding import Finding
from instil.data.sources import Source, read_source
from instil.errors import (
    DataError,
    InstilError,
    RunFolderTaken,
    SettingsError,
    StoppedEarly,
    UserError,
    counted,
    listed,
    without_numbers,
)
from instil.evaluate.judging import judge_answers
from instil.evaluate.likelihood import JUDGE as LIKELIHOOD
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.offline import score_offline
from instil.files import write_rows
from instil.recipes.compare import common_rows
from instil.records import Example, Verdict
from instil.screen import Screen
from instil.settings.asking import ScoreOptions
from instil.settings.options import Settings
from instil.synthesis.pairing import Candidate, MadePair, PairingResult, distinct, pairs_from_choices, pairs_from_scores
from instil.synthesis.rewriting import rewrite_all
from instil.synthesis.samples import sample_rows
from instil.synthesis.writing import writer
from instil.tasks.pairs.doctor import Diagnosis, diagnose
from instil.tasks.pairs.source import pairs_from, read_pairs

TEMPERATURE = 0.8  # of samples, where none is set
RIGHT = 50  # points below which a chosen answer is only the best of poor ones
ROWS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class PreferResult:
    """The pairs that were written to ``out``, what gave none, and the doctor's findings on them.

    ``asked`` is how many questions were put to a model now; ``notes`` is what else there is to say.
    """

    way: str
    out: Path
    pairing: PairingResult
    diagnosis: Diagnosis
    asked: int = 0
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For people."""
        left = [f"left out: {_rows(rows)}: {reason}" for reason, rows in by_size(self.pairing.left_out)]
        asked = f" ({counted(self.asked, 'question')} now)" if self.asked else ""
        made = f"{counted(len(self.pairing.made), 'pair')} of {counted(self.pairing.rows, 'row')} in {self.out}{asked}"
        return [made, *left, *self.notes, *self.diagnosis.lines()]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "way": self.way,
            "out": str(self.out),
            "rows": self.pairing.rows,
            "pairs": len(self.pairing.made),
            "left_out": dict(by_size(self.pairing.left_out)),
            "asked": self.asked,
            "notes": list(self.notes),
            "doctor": self.diagnosis.as_json(),
        }


def check_pairs(data: str | Path, mapping: Sequence[str] = ()) -> Diagnosis:
    """What the doctor says of a file of pairs; rows that cannot be read as pairs are an error in it.

    Raises:
        DataError: the file is missing, is no list of rows, or none of them is a pair.
    """
    source = read_pairs(data, skip_bad=True, keep_equal=True, mapping=mapping)
    found = diagnose(source.pairs)
    if not source.skipped:
        return found
    rows = tuple(one.row for one in source.rejected)
    said = f"{len(rows):,} of {counted(len(rows) + len(source), 'row')} cannot be used as preference pairs"
    unusable = Finding("unusable", "error", f"{said}; mend them:\n{listed(list(source.skipped))}", "", rows)
    return replace(found, findings=(unusable, *found.findings))


def prefer_between(
    a: str | Path,
    b: str | Path,
    judge: str,
    out: Path,
    *,
    options: ScoreOptions | None = None,
    screen: Screen | None = None,
    overwrite: bool = False,
) -> PreferResult:
    """Pairs from two models' answers to the same rows: the judge's choice, asked for in both orders, is the chosen one.

    Args:
        a: a run (its tuned answers), one of its ``responses/*.json``, or a file with ``model_response``.
        b: the same.
        judge: who chooses.
        out: the file of pairs.
        options: how to ask.
        screen: where progress is shown; nowhere by default.
        overwrite: replace a file that this way has not made.

    Raises:
        UserError: the judge cannot choose, or there is nothing to choose between.
        RunFolderTaken: ``out`` is there already.
        StoppedEarly: the judge stopped answering; what it said is kept.
        InstilError: no pair came of it.
    """
    options, screen = options or ScoreOptions(), screen or Screen(quiet=True)
    rows = common_rows(a, b, judge)
    with (
        _journal("between", out, [a, b], rows.examples, screen, overwrite=overwrite) as journal,
        opened(judge, options, screen.warn) as asked,
    ):
        verdicts = rows.judge(asked, options, journal, screen)
        _whole(verdicts.failed, "judged")
        pairing = pairs_from_choices(rows.examples, rows.a, rows.b, verdicts, rows.names)
        about = {"judge": asked.name, "identity": asked.identity, "seed": options.seed}
    notes = []
    if verdicts.consistency is not None:
        notes.append(f"the judge's choice did not depend on the order in {verdicts.consistency:.0%} of the rows")
    for name, count in zip(rows.names, (rows.only_a, rows.only_b), strict=True):
        if count:
            notes.append(f"{counted(count, 'row is', 'rows are')} only in {name}")
    return _written("between", out, pairing, about, verdicts.asked, notes)


def prefer_samples(
    model: str | Path,
    data: str | Path,
    count: int,
    judge: str,
    out: Path,
    *,
    gap: float = 10.0,
    template: str | None = None,
    settings: Settings | None = None,
    screen: Screen | None = None,
    overwrite: bool = False,
) -> PreferResult:
    """Pairs from one model's samples: of each row's answers the one with the best score before that with the worst.

    Args:
        model: a run, or any model.
        data: the rows; judges compare with their ``output``.
        count: answers to each row.
        judge: whose scores.
        out: the file of pairs.
        gap: points (of 100) that must lie between the two.
        template: for a model that carries none.
        settings: ``generate`` (temperature 0.8 unless set), ``score`` and ``data.skip_bad``.
        screen: where progress is shown.
        overwrite: replace a file that this way has not made.

    Raises:
        UserError: fewer than two samples, a temperature of 0, or a judge that gives no scores of answers.
        RunFolderTaken, StoppedEarly, InstilError: as `prefer_between`.
    """
    # What cannot come to pairs is refused first.
    settings, screen = settings or Settings(), screen or Screen(quiet=True)
    if count < 2:
        raise SettingsError(f"--samples {count}: a pair takes at least 2")
    if not 0 <= gap <= 100:
        raise SettingsError(f"--gap {gap:g}: wanted points from 0 to 100")
    if judge == LIKELIHOOD:
        raise UserError("likelihood is taken of references; samples are scored by offline or by a model")
    given = settings.generate.model_dump(exclude_unset=True)
    if given.setdefault("temperature", TEMPERATURE) == 0:
        raise SettingsError("generate.temperature=0 gives one answer again and again; leave it out, or raise it")
    # Sample, then score.
    source = _source(data, settings, screen)
    with _journal("samples", out, [data], source.examples, screen, overwrite=overwrite) as journal:
        assistant = load(model, template=template, **given)
        for note in assistant.decoder.notes:
            screen.say(note, "yellow")
        with screen.bar("sampling", len(source) * count) as advance:
            samples = sample_rows(assistant, model, source.examples, count, journal, advance)
        scored, about, asked, failed = _scored(source.examples, samples, judge, settings.score, journal, screen)
        _whole(failed, "judged")
    # Pair, and say what must be known of the pairs.
    pairing = pairs_from_scores(source.examples, scored, gap)
    said = {"model": str(model), "temperature": assistant.options.temperature, "seed": assistant.options.seed}
    cut = sum(not one.ended for row in scored for one in row)
    limit = assistant.options.max_new_tokens
    notes = _skipped(source)
    if cut:
        notes.append(f"{counted(cut, 'sample')} of {len(source) * count:,} not used: no end within {limit} tokens")
    poor = [one.pair.row for one in pairing.made if one.provenance["scores"][0] < RIGHT]
    if poor:
        few = f"less than {RIGHT} points: the best of poor ones"
        notes.append(f"{counted(len(poor), 'chosen answer')} ({shown(poor)}) with {few}")
    return _written("samples", out, pairing, {**said, **about}, asked, notes)


def prefer_rewrite(
    data: str | Path,
    with_model: str,
    out: Path,
    *,
    both: bool = False,
    settings: Settings | None = None,
    screen: Screen | None = None,
    overwrite: bool = False,
) -> PreferResult:
    """Pairs the chapter's way: a model rewrites each answer politely (then it is chosen) or impolitely.

    Args:
        data: the rows with their answers.
        with_model: who rewrites: ``ollama:llama3``, or another name that judges have, too.
        out: the file of pairs.
        both: rewrite every answer politely and impolitely.
        settings: ``make`` and ``data.skip_bad``.
        screen: where progress is shown.
        overwrite: replace a file that this way has not made.

    Raises:
        JudgeError: the model is not there.
        RunFolderTaken, StoppedEarly, InstilError: as `prefer_between`.
    """
    settings, screen = settings or Settings(), screen or Screen(quiet=True)
    options = settings.make
    source = _source(data, settings, screen)
    total = len(source) * (2 if both else 1)
    with (
        _journal("rewrite", out, [data], source.examples, screen, overwrite=overwrite) as journal,
        writer(with_model, options, screen.warn) as model,
        screen.bar(f"{model.name} rewrites", total) as advance,
    ):
        found = rewrite_all(model, source.examples, options, journal, advance, both=both)
    _whole(found.failed, "rewritten")
    notes = _skipped(source)
    if found.cut:
        notes.append(f"a preface was cut off {_rows(found.cut)}")
    if found.again:
        notes.append(f"{counted(len(found.again), 'row was', 'rows were')} asked for twice ({shown(found.again)})")
    return _written("rewrite", out, found.pairing, {"seed": options.seed}, found.asked, notes)


def _scored(
    examples: Sequence[Example],
    samples: Sequence[Sequence[Candidate]],
    judge: str,
    options: ScoreOptions,
    journal: Journal,
    screen: Screen,
) -> tuple[list[list[Candidate]], dict[str, Any], int, dict[int, str]]:
    """Samples with their scores; each text of a row is judged once. Who judged, questions asked, rows that failed."""
    different = [distinct(mine) for mine in samples]
    flat = [(at, candidate) for at, mine in enumerate(different) if len(mine) > 1 for candidate in mine]
    asked_about = [replace(examples[at], row=n) for n, (at, _) in enumerate(flat)]
    answers = [candidate.text for _, candidate in flat]
    verdicts: Sequence[Verdict]
    if judge == OFFLINE:
        verdicts = score_offline(asked_about, answers, embeddings=options.embeddings)
        about, asked, failed = {"judge": OFFLINE}, 0, {}
    else:
        with (
            opened(judge, options, screen.warn) as who,
            screen.bar(f"{who.name} judges", len(flat) * options.repeats) as advance,
        ):
            judged = judge_answers(who, asked_about, answers, options, journal, advance)
            about = {"judge": who.name, "identity": who.identity, "prompt": options.prompt}
        verdicts, asked = judged.verdicts, judged.asked
        failed = {examples[flat[n][0]].row: reason for n, reason in judged.failed.items()}
    scored: list[list[Candidate]] = [list(mine) for mine in samples]
    for (at, candidate), verdict in zip(flat, verdicts, strict=True):
        scored[at][candidate.sample] = replace(candidate, score=verdict.score, reason=verdict.reason)
    return scored, about, asked, failed


@contextmanager
def _journal(
    way: str,
    out: Path,
    inputs: Sequence[str | Path],
    examples: Sequence[Example],
    screen: Screen,
    *,
    overwrite: bool,
) -> Iterator[Journal]:
    """The journal beside the file to be written, which must not be one of those that are read, nor another's.

    A journal alone does not tell whose the file is: scoring keeps one at the same place.
    """
    if out.is_dir():
        raise DataError(f"{out} is a folder; wanted the name of a file of pairs")
    path = out.with_suffix(".journal") if out.suffix == ".json" else out.with_name(f"{out.name}.journal")
    if out.exists() and any(read.samefile(out) for one in inputs for read in paths_of(one)):
        raise UserError(f"{out} is what the pairs are made of; give another name with --out")
    if out.exists() and not overwrite and not (path.exists() and _is_of(way, out, examples)):
        raise RunFolderTaken(
            f"{out} is there already, made otherwise or of other rows; give another name with --out, or --overwrite"
        )
    with Journal(path) as journal:
        if journal.damaged:
            damaged = counted(journal.damaged, "damaged line is", "damaged lines are")
            screen.say(f"{path}: {damaged} left out", "yellow")
        yield journal


def _is_of(way: str, out: Path, examples: Sequence[Example]) -> bool:
    """Whether all rows of a file say that they were made this way, and ask what the examples ask."""
    asked = {(example.instruction, example.input) for example in examples}
    try:
        rows = read_rows(out)
    except DataError:
        return False
    return all(
        isinstance(row, dict)
        and isinstance(origin := row.get("provenance"), dict)
        and origin.get("way") == way
        and (row.get("instruction"), row.get("input", "")) in asked
        for row in rows
    )


def _rows(rows: Sequence[int]) -> str:
    return f"{counted(len(rows), 'row')} ({shown(rows)})"


def _skipped(source: Source) -> list[str]:
    """Rows that cannot be used, which were left out because ``data.skip_bad`` says so."""
    said = f"{counted(len(source.skipped), 'row')} cannot be used:\n{listed(list(source.skipped))}"
    return [said] if source.skipped else []


def _source(data: str | Path, settings: Settings, screen: Screen) -> Source:
    source = read_source(data, skip_bad=settings.data.skip_bad, mapping=settings.data.map)
    for note in source.notes:
        screen.say(note, "dim")
    if all(row.text_only for row in source.examples):
        raise DataError(f"{data}: its rows are texts without a question; pairs are made of answers")
    return source


def _whole(failed: dict[int, str] | None, done: str) -> None:
    """Every question has a reply, or the file is not written yet."""
    if failed:
        row, reason = next(iter(failed.items()))
        raise StoppedEarly(
            f"{counted(len(failed), 'row')} could not be {done} (row {row}: {reason}); the same command asks again"
        )


def _written(
    way: str, out: Path, pairing: PairingResult, about: dict[str, Any], asked: int, notes: Sequence[str]
) -> PreferResult:
    """Write the pairs, and have the doctor look at what was written."""
    if not pairing.made:
        most = by_size(pairing.left_out)[:3]
        reasons = "; ".join(f"{_rows(rows)}: {reason}" for reason, rows in most)
        raise InstilError(f"no pair came of {counted(pairing.rows, 'row')}, so {out} is not written: {reasons}")
    rows = [MadePair(one.pair, {"way": way, **about, **one.provenance}).as_json() for one in pairing.made]
    write_rows(out, rows, error=DataError)
    return PreferResult(way, out, pairing, diagnose(pairs_from(rows, str(out)).pairs), asked, tuple(notes))


def by_size(left_out: dict[str, list[int]]) -> list[tuple[str, list[int]]]:
    """Reasons with their rows, the commonest first; those that differ in numbers only are one, told by its first.

    >>> by_size({"read 3 of 9 words": [4], "no number": [5], "read 7 of 12 words": [2]})
    [('read 3 of 9 words', [2, 4]), ('no number', [5])]
    """
    alike: dict[str, tuple[str, list[int]]] = {}
    for reason, rows in left_out.items():
        alike.setdefault(without_numbers(reason), (reason, []))[1].extend(rows)
    found = [(reason, sorted(rows)) for reason, rows in alike.values()]
    return sorted(found, key=lambda item: (-len(item[1]), item[0]))


def shown(rows: Sequence[int]) -> str:
    """Row numbers, ten of them.

    >>> shown([3, 5]), shown(range(12))
    ('3, 5', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more')
    """
    more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
    return f"{', '.join(map(str, rows[:ROWS_SHOWN]))}{more}"
