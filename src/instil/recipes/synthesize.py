"""Instruction data out of a language model: new rows, better rows, rows of the passive voice.

Beside ``OUT`` lie ``OUT.journal`` with every reply as it came, so that the same command goes on where it was stopped,
and ``OUT``'s ``.made.json``, which says what was left out and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from instil.ask.journal import Journal
from instil.data.files.places import paths_of
from instil.data.sources import Source, read_source
from instil.errors import (
    DataError,
    InstilError,
    RunFolderTaken,
    SettingsError,
    UserError,
    counted,
    did_you_mean,
    listed,
)
from instil.files import json_object_or_empty, write_json, write_rows
from instil.records import Example
from instil.screen import Screen
from instil.settings.asking import MakeOptions
from instil.synthesis.editing import EditResult, What, passive, reflect
from instil.synthesis.growing import Drafter, GrowResult, grow, magpie, self_instruct
from instil.synthesis.prompts import UserTurn, user_turn
from instil.synthesis.rows import Ask, KnownTasks, MadeRow, Rejected
from instil.synthesis.writing import CALLS, BatchWriter, writer

Way = Literal["self-instruct", "magpie", "reflect", "passive"]
WAYS: tuple[str, ...] = get_args(Way)
COUNT = 100
MOST = 10_000_000  # rows of one file
COMMON = "starter"  # its rows tell which letters are rare
SHOWN_FIRST = 3  # rows shown as they come; then one of so many
SHOWN_EVERY = 10
WIDTH = 100  # characters of a row on the screen


@dataclass(frozen=True, slots=True)
class Synthesized:
    """What was made, and how it came about.

    ``made`` rows are new or changed, the others are given rows that were kept; ``asked`` requests were made now,
    ``found`` were answered before; ``ended`` says why there are fewer rows than wanted.
    """

    way: str
    made_by: str
    out: Path
    rows: tuple[MadeRow, ...]
    made: int
    rejected: tuple[Rejected, ...]
    asked: int
    found: int
    ended: str = ""

    @property
    def report(self) -> Path:
        """The file that says what was left out."""
        return report_file(self.out)

    @property
    def reasons(self) -> dict[str, int]:
        """How often each reason kept something out, the most frequent first; repeated rows are one reason."""
        return dict(Counter(_kind(one.reason) for one in self.rejected).most_common())

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "way": self.way,
            "made_by": self.made_by,
            "out": str(self.out),
            "rows": len(self.rows),
            "made": self.made,
            "left_out": len(self.rejected),
            "reasons": self.reasons,
            "asked": self.asked,
            "found": self.found,
            "ended": self.ended,
        }


def synthesize(
    way: str,
    model: str,
    out: Path,
    *,
    seeds: str | None = None,
    existing: Sequence[str] = (),
    count: int | None = None,
    what: str = "both",
    chat_template: str = "auto",
    options: MakeOptions | None = None,
    skip_bad: bool = False,
    mapping: Sequence[str] = (),
    screen: Screen | None = None,
) -> Synthesized:
    """Make rows with a model and write them to a file; the same call goes on where it was stopped.

    Args:
        way: ``self-instruct``, ``magpie``, ``reflect`` or ``passive``.
        model: ``ollama:MODEL``, ``openai:MODEL``, the address of a server, or ``llamacpp:FILE.gguf``.
        out: the file to write: JSON, or JSONL by its suffix.
        seeds: the rows to begin with, by name, path or URL; self-instruct takes ``starter`` by default.
        existing: further data sets that are not to be repeated.
        count: rows wanted (100); of the ways that go through rows, how many of them (all).
        what: ``instruction``, ``answer`` or ``both``, for ``reflect``.
        chat_template: how the model's chats begin, for ``magpie``.
        options: how to ask.
        skip_bad: leave given rows out that cannot be used, and name them in the report.
        mapping: keys of ``seeds`` that are read under another name, such as ``question=instruction``.
        screen: where progress goes.

    Raises:
        UserError: the rows, the settings or the model cannot be used.
        RunFolderTaken: the file is there, and was not begun by this.
        StoppedEarly: the model stopped answering; the same command goes on.
    """
    # The call, and the rows that it reads.
    options, screen = options or MakeOptions(), screen or Screen(quiet=True)
    _check(way, what, seeds, count, chat_template, existing)
    if out.is_dir():
        raise DataError(f"{out} is a folder; wanted the name of the file of rows")
    turn = user_turn(chat_template, model) if way == "magpie" else None
    if way == "self-instruct" and seeds is None:
        seeds = COMMON
    names = dict.fromkeys([*([seeds] if seeds else []), *existing])
    sources = {name: read_source(name, skip_bad=skip_bad, mapping=mapping if name == seeds else ()) for name in names}
    for source in sources.values():
        skipped = [f"{counted(len(source.skipped), 'row is', 'rows are')} left out"] if source.skipped else []
        for note in [*skipped, *source.notes]:
            screen.say(f"{source.name}: {note}", "dim")
    given = sources[seeds].examples if seeds else ()
    _check_seeds(sources[seeds].examples if seeds else (), seeds)
    # Nothing is written over that this way has not made.
    journal_file = out.with_name(f"{out.name}.journal")
    if out.exists() and not journal_file.exists():
        raise RunFolderTaken(f"{out} is there already, and not from here; give another name with --out")
    for name in names:
        for path in (out, report_file(out)):
            if path.exists() and any(path.samefile(read) for read in paths_of(name)):
                raise UserError(f"{name} is read, so {path} cannot be written; give another name with --out")
    _check_earlier(out, way)
    # Ask, and write everything at the end.
    with writer(model, options, screen.warn) as asked, Journal(journal_file) as journal:
        if journal.damaged:
            damaged = counted(journal.damaged, "damaged line is", "damaged lines are")
            screen.say(f"{journal_file}: {damaged} left out", "yellow")
        screen.say(f"{way} with {asked.identity}", "dim")
        write = BatchWriter(asked, options, journal, calls=CALLS if way in ("self-instruct", "magpie") else 0)
        found: GrowResult | EditResult
        if way in ("self-instruct", "magpie"):
            known = KnownTasks(
                {name: source.examples for name, source in sources.items()}, read_source(COMMON).examples, options.near
            )
            drafting = _drafting(turn, known, given, write, options)
            found = _grown(drafting, count or COUNT, known, write, screen)
        else:
            found = _edited(way, what, given[: count or len(given)], write, screen)
    made = found.made if isinstance(found, EditResult) else len(found.rows)
    ended = found.ended if isinstance(found, GrowResult) else ""
    result = Synthesized(
        way, asked.identity, out, tuple(found.rows), made, tuple(found.rejected), write.asked, write.found, ended
    )
    _write(result, sources, options, count)
    return result


def check_outcome(result: Synthesized, count: int | None) -> None:
    """Whether there are as many rows as wanted.

    Raises:
        InstilError: there are fewer, or none was made.
    """
    if result.ended:
        reason, times = next(iter(result.reasons.items()))
        raise InstilError(
            f"{result.made} of {counted(count or COUNT, 'row')}, because {result.ended}; {times} times {reason}. What "
            f"was made is in {result.out}; with more make.attempts or another make.seed the same command goes on"
        )
    if not result.made:
        raise InstilError(f"{result.out}: nothing was made ({next(iter(result.reasons), 'nothing to do')})")


def _check(
    way: str, what: str, seeds: str | None, count: int | None, chat_template: str, existing: Sequence[str]
) -> None:
    if way not in WAYS:
        raise SettingsError(f"no way named {way!r}; known: {', '.join(WAYS)}{did_you_mean(way, WAYS)}")
    if what not in get_args(What):
        known = ", ".join(get_args(What))
        raise SettingsError(f"--what {what}: known: {known}{did_you_mean(what, get_args(What))}")
    if what != "both" and way != "reflect":
        raise UserError(f"--what is for --way reflect, not for {way}")
    if chat_template != "auto" and way != "magpie":
        raise UserError(f"--chat-template is for --way magpie, not for {way}")
    if existing and way not in ("self-instruct", "magpie"):
        raise UserError(f"--existing is for --way self-instruct and magpie, not for {way}")
    if count is not None and not 1 <= count <= MOST:
        raise UserError(f"--count {count if count < 1 else 'too large'}: wanted at least 1, at most {MOST:,}")
    if way in ("reflect", "passive") and seeds is None:
        raise UserError(f"--way {way} goes through rows; say which with --seeds FILE")


def _check_seeds(given: Sequence[Example], seeds: str | None) -> None:
    """Rows are made of rows with one question and one answer.

    Raises:
        DataError: some are more than that.
    """
    found: dict[str, list[int]] = {}
    for row in given:
        if row.text_only:
            found.setdefault("is a text without a question", []).append(row.row)
        elif not row.plain:
            found.setdefault("is a conversation (or has a system message or tools)", []).append(row.row)
    if found:
        lines = [f"row {row}: {what}" for what, rows in found.items() for row in rows]
        raise DataError(f"{seeds}: rows are made of single questions with their answers:\n{listed(lines)}")


def _check_earlier(out: Path, way: str) -> None:
    """A file of another way is not to be written over."""
    report = report_file(out)
    earlier = json_object_or_empty(report)
    if (earlier or report.is_file()) and out.exists() and earlier.get("way") != way:
        raise RunFolderTaken(f"{out} holds rows of {earlier.get('way')}; give another name with --out")


def _drafting(
    turn: UserTurn | None, known: KnownTasks, given: Sequence[Example], write: BatchWriter, options: MakeOptions
) -> Drafter:
    if turn is not None:
        return magpie(turn, known, write, write.model.identity, options)
    return self_instruct(given, write, write.model.identity, options)


def _grown(drafting: Drafter, count: int, known: KnownTasks, write: BatchWriter, screen: Screen) -> GrowResult:
    shown = _Shown(screen)
    with screen.bar("new rows", count) as advance:
        write.advance, write.steps = advance, 0

        def on_row(row: MadeRow) -> None:
            shown(row)
            advance()

        return grow(drafting, count, write.options, known, _at_once(write), on_row)


def _edited(way: str, what: str, given: Sequence[Example], write: BatchWriter, screen: Screen) -> EditResult:
    shown = _Shown(screen)
    ask: Ask = write
    with screen.bar(way, len(given) * (2 if (way, what) == ("reflect", "both") else 1)) as advance:
        write.advance = advance
        if way == "passive":
            return passive(given, ask, write.model.identity, write.options, _at_once(write), shown)
        parts: What = "instruction" if what == "instruction" else "answer" if what == "answer" else "both"
        return reflect(given, parts, ask, write.model.identity, write.options, _at_once(write), shown)


def _at_once(write: BatchWriter) -> int:
    return 2 * (write.options.concurrency or write.model.workers)


class _Shown:
    """Shows the first rows, and then some."""

    def __init__(self, screen: Screen) -> None:
        self._screen, self._count = screen, 0

    def __call__(self, row: MadeRow) -> None:
        self._count += 1
        if self._count > SHOWN_FIRST and self._count % SHOWN_EVERY:
            return
        one = row.example
        task = f"{one.instruction} | {one.about}" if one.about else one.instruction
        self._screen.say(f"{self._count:>4}  {_short(task)}\n      {_short(one.output)}")


def _short(text: str) -> str:
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line[:WIDTH] + ("..." if len(line) > WIDTH else "")


def _kind(reason: str) -> str:
    """A reason without what differs from row to row."""
    for start in ("it repeats", "it is nearly", "the model read", "the judge read"):
        if start in reason:
            head = reason[: reason.index(start)]
            return head + {"it repeats": "it repeats another row", "it is nearly": "it is nearly another row"}.get(
                start, "only part of the prompt was read"
            )
    return reason


def _write(result: Synthesized, sources: dict[str, Source], options: MakeOptions, count: int | None) -> None:
    report = {
        "way": result.way,
        "made_by": result.made_by,
        "given": {
            name: {"rows": len(source), "sha256": source.sha256, "skipped": list(source.skipped)}
            for name, source in sources.items()
        },
        "count": count,
        "settings": options.model_dump(),
        "rows": len(result.rows),
        "made": result.made,
        "ended": result.ended,
        "reasons": result.reasons,
        "left_out": [one.as_json() for one in result.rejected],
    }
    write_rows(result.out, [row.as_json() for row in result.rows], error=DataError)
    write_json(report_file(result.out), report, error=DataError)


def report_file(out: Path) -> Path:
    """Where it stands what was left out."""
    return out.with_name(f"{out.stem if out.suffix == '.json' else out.name}.made.json")
