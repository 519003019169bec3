"""Answered rows as they lie on disk: in a run folder, in one of its files, or in a file of their own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from instil.data.files.rows import read_rows
from instil.data.sources import IN_MEMORY, examples_from
from instil.errors import DataError, counted, listed
from instil.files import make_folder, records_in, write_rows
from instil.records import Example, Verdict, blank
from instil.runs.folder import RUN_FILE, RunFolder
from instil.settings.asking import ScoreOptions

JOURNAL = "verdicts.journal"
OTHER_FORM = "base-in-"
OWN = ("base", "tuned")  # answers that a run writes itself
LONGEST = 100  # bytes of a part of a file's name


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """Rows with an answer each; ``which`` is "base" or "tuned" in a run (or `other_form`), else the file's name.

    ``no_room`` are numbers of rows whose prompt left no room for an answer.
    """

    which: str
    examples: tuple[Example, ...]
    answers: tuple[str, ...]
    file: Path
    run: RunFolder | None = None
    no_room: frozenset[int] = frozenset()

    @property
    def journal(self) -> Path:
        """Where every verdict on them is written down as it comes."""
        if self.run:
            return self.run.path / "scores" / JOURNAL
        return self.file.with_name(f"{self._name}.journal")

    @property
    def _name(self) -> str:
        """What files beside the answers are called after; "a.json" and "a.jsonl" are two."""
        if self.run:
            return self.which
        short = self.file.stem if self.file.suffix == ".json" else self.file.name
        short = short if self.file.suffix else f"{short}.answers"
        return short if len(short.encode()) <= LONGEST else f"{_hash(short)}-{short[:40]}"

    def verdicts_at(self, judge: str, options: ScoreOptions) -> Path:
        """Where the finished verdicts of a judge go; the default prompt needs no name."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", judge).strip("-.")
        if re.search(r"[^A-Za-z0-9._:-]", judge) or len(name) > LONGEST:  # then others would be called the same
            name = f"{name[:LONGEST]}-{_hash(judge)}"
        prompt = "" if options.prompt == "rubric" else f"+{options.prompt}"
        folder = self.run.path / "scores" if self.run else self.file.parent
        return folder / f"{self._name}.{name}{prompt}.jsonl"


def other_form(name: str) -> str:
    """What answers before training are called that were asked in another form than those that count as before.

    >>> other_form("model"), other_form("my form.v2")
    ('base-in-model', 'base-in-my-form-v2')
    """
    return OTHER_FORM + re.sub(r"[^A-Za-z0-9_]+", "-", name)[:LONGEST]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def answered_rows(
    rows: Sequence[Any], numbers: Sequence[int] | None = None, name: str = IN_MEMORY
) -> tuple[tuple[Example, ...], list[str]]:
    """Examples and answers of rows with ``model_response``.

    Args:
        rows: rows in the book's form.
        numbers: the rows' numbers in their data set; by default their places in this list.
        name: what the rows are called in an error.

    Raises:
        DataError: a row lacks an answer or cannot be used; the message names it.
    """
    answers = [row.get("model_response") if isinstance(row, dict) else None for row in rows]
    lacking = [
        f"row {at}: no text under 'model_response'" for at, said in enumerate(answers) if not isinstance(said, str)
    ]
    if lacking:
        raise DataError(f"{name}: {listed(lacking).strip()}; instil respond writes such rows")
    source = examples_from(list(rows), name, skip_bad=True, offers=())
    if source.skipped:
        bad = f"{len(source.skipped):,} of {counted(len(rows), 'row')} cannot be scored (rows are counted from 0)"
        raise DataError(f"{name}: {bad}:\n{listed(list(source.skipped))}\nmend them, or leave them out")
    examples = tuple(source.examples)
    if numbers is not None:
        examples = tuple(replace(example, row=number) for example, number in zip(examples, numbers, strict=True))
    return examples, [str(said) for said in answers]


def without_room(rows: Sequence[Any], examples: Sequence[Example]) -> frozenset[int]:
    """Numbers of the rows that say of themselves that their prompt left no room for an answer."""
    return frozenset(
        example.row
        for row, example in zip(rows, examples, strict=True)
        if row.get("finish") == "no_room" and blank(row["model_response"])
    )


def find_answers(
    path: Path, only: Collection[str] = (), left_out: Callable[[str], None] = lambda said: None
) -> list[AnsweredRows]:
    """All answered rows at a path: those of a run (before and after), or of one file.

    Answers before training in a form that does not count are left out of a run's, unless they are named by ``only``.

    Args:
        path: a run folder, or a file.
        only: of a run, no others than those of these names where they are there; then the others are not read.
        left_out: is told of a file in a run's folder that the run did not write and that holds no answers of it.

    Raises:
        DataError: there is nothing, or a row of what was named or what the run wrote cannot be used.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or run folder")
    if not path.is_dir():
        home = path.absolute().parent.parent
        run = RunFolder(home) if path.absolute().parent.name == "responses" and (home / RUN_FILE).is_file() else None
        return [_read(path, run)]
    if not (path / RUN_FILE).is_file():
        raise DataError(f"{path}: no {RUN_FILE} in it, so it is not a run folder; wanted one, or a JSON file")
    files = [file for file in sorted((path / "responses").glob("*.json")) if not file.name.startswith(".")]
    if not files:
        raise DataError(f"{path}: the run holds no answers; {_answering(path)}")
    found, faults = [], []
    chosen = [file for file in files if file.stem in only] or files
    if not any(name.startswith(OTHER_FORM) for name in only):
        chosen = [file for file in chosen if not file.stem.startswith(OTHER_FORM)] or chosen
    for file in chosen:
        try:
            found.append(_read(file, RunFolder(path)))
        except DataError as error:
            if file.stem in OWN:
                raise
            faults.append(error)
    if not found:
        raise faults[0]
    for fault in faults:
        left_out(f"left out: {fault}")
    return found


def no_answers_after(path: Path, found: Sequence[AnsweredRows]) -> str:
    """What is to be said of a run that has answers, but none of its tuned model: it was stopped, as a rule."""
    others = ", ".join(str(one.file) for one in found)
    return (
        f"{path}: no answers of the tuned model in it (responses/tuned.json), as in a run that was stopped; "
        f"{_answering(path)}. Answers from before training count as the run's only if their file is named: {others}"
    )


def _answering(path: Path) -> str:
    """What gives answers of a run's model, where it has one."""
    if (RunFolder(path).model / "config.json").is_file():
        return f"instil respond {path} --split test --out FILE.json answers its rows with its model; then name the file"
    return "make the run again, with --overwrite"


def _read(file: Path, run: RunFolder | None) -> AnsweredRows:
    try:
        file.open("rb").close()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    rows = read_rows(file)
    numbers = run.held_out_rows() if run else None
    if numbers is not None and len(rows) != len(numbers):
        held_out = f"the run held out {len(numbers)}; it belongs to another run"
        raise DataError(f"{file}: {counted(len(rows), 'row')}, but {held_out}")
    examples, answers = answered_rows(rows, numbers, str(file))
    return AnsweredRows(file.stem, examples, tuple(answers), file, run, without_room(rows, examples))


def write_verdicts(path: Path, verdicts: Sequence[Verdict]) -> None:
    """One verdict a line, in the order of the rows; the file appears whole or not at all, its folder is made.

    Raises:
        OSError: it cannot be written.
    """
    if not path.parent.exists():
        make_folder(path.parent)
    write_rows(path, map(asdict, verdicts))


def read_verdicts(path: Path) -> list[Verdict]:
    """Verdicts that were written so.

    Raises:
        DataError: the file is absent or damaged.
    """
    return records_in(path, Verdict, advice="; instil score writes it anew")
