"""New rows out of a model: self-instruct and Magpie, with repetitions left out.

Self-instruct (Wang et al. 2022, arXiv 2212.10560) shows the model a few tasks, drawn anew each time, and asks for
another one. Magpie (Xu et al. 2024, arXiv 2406.08464) gives a model that was tuned to chat nothing but the beginning of
a user's turn, so that it writes what users ask; then it answers that.

Everything depends on the seed, the number of a request and what was said before its round, never on the order in which
replies come: the same replies make the same rows, whatever the concurrency, and also after a stop.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from instil.records import Example
from instil.settings.asking import MakeOptions
from instil.synthesis.prompts import SELF_INSTRUCT, UserTurn, shown_row
from instil.synthesis.reading import answer_problem, read_fields, task_problem, tidy_input
from instil.synthesis.rows import Ask, KnownTasks, MadeRow, Rejected
from instil.synthesis.writing import TextRequest, TextResult

ROUND = 32  # requests whose prompts may draw upon the same made rows
BARREN = 40  # requests in a row without a new row, after which there is no point in going on
SEEDS = 2**31


@dataclass(frozen=True, slots=True)
class Draft:
    """What came of one request: a row that may be a repetition, or the reason why there is none."""

    number: int
    row: MadeRow | None
    reason: str = ""
    text: str = ""


@dataclass(slots=True)
class GrowResult:
    """New rows, what was left out, and how many requests it took; ``ended`` says why there are fewer than wanted."""

    rows: list[MadeRow] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    requests: int = 0
    ended: str = ""


Drafter = Callable[[Sequence[int], Sequence[MadeRow]], list[Draft]]


def grow(
    drafting: Drafter,
    count: int,
    options: MakeOptions,
    known: KnownTasks,
    at_once: int,
    on_row: Callable[[MadeRow], None] = lambda row: None,
) -> GrowResult:
    """Draft rows until there are ``count`` good ones, in the order of the requests.

    Args:
        drafting: makes drafts for these numbers of requests, from the rows that were made before their round.
        count: rows wanted.
        options: how many requests there may be.
        known: tasks that are not to be repeated; the new ones are added.
        at_once: requests to draft together, at most.
        on_row: called with each good row.
    """
    grown = GrowResult()
    most = math.ceil(options.attempts * count)
    barren = 0
    pool: tuple[MadeRow, ...] = ()
    while len(grown.rows) < count:
        at = grown.requests
        if at >= most:
            grown.ended = f"{most} requests were made (make.attempts={options.attempts:g} for each row)"
            break
        if at % ROUND == 0:
            pool = tuple(grown.rows)
        size = min(count - len(grown.rows), at_once, ROUND - at % ROUND, most - at)
        for draft in drafting(range(at, at + size), pool):
            grown.requests += 1
            repeats = known.problem(draft.row.example) if draft.row else ""
            if draft.row is not None and not repeats:
                barren = 0
                known.add(draft.row.example, f"made row {len(grown.rows)}")
                grown.rows.append(draft.row)
                on_row(draft.row)
                continue
            barren += 1
            text = draft.row.example.instruction if draft.row else draft.text
            grown.rejected.append(Rejected(draft.number, repeats or draft.reason, text))
            if barren >= BARREN:
                grown.ended = f"the last {BARREN} requests brought nothing new"
                return grown
    return grown


def self_instruct(seeds: Sequence[Example], ask: Ask, made_by: str, options: MakeOptions) -> Drafter:
    """Drafts from a few seed rows each, with one made row among them once there are some."""

    def draft(numbers: Sequence[int], pool: Sequence[MadeRow]) -> list[Draft]:
        shown: list[tuple[list[int], int | None]] = []
        wanted = []
        for number in numbers:
            draw = random.Random(f"self-instruct {options.seed} {number}")
            places = draw.sample(range(len(seeds)), min(options.shown, len(seeds)))
            own = draw.randrange(len(pool)) if pool else None
            rows = [seeds[at] for at in places] + ([pool[own].example] if own is not None else [])
            shown.append(([seeds[at].row for at in places], own))
            text = SELF_INSTRUCT.ask([shown_row(row) for row in rows])
            wanted.append(TextRequest(number, text, _seed(options, number), SELF_INSTRUCT.id, SELF_INSTRUCT.schema))
        drafts = []
        for one, written, (given, own) in zip(wanted, ask(wanted), shown, strict=True):
            provenance = {
                "way": "self-instruct",
                "made_by": made_by,
                "prompt": SELF_INSTRUCT.id,
                "seed": one.seed,
                "from": given,
                **({"from_made": [own]} if own is not None else {}),
            }
            drafts.append(_drafted(written, provenance))
        return drafts

    return draft


def _drafted(written: TextResult, provenance: dict[str, object]) -> Draft:
    if written.text is None:
        return Draft(written.row, None, written.reason)
    fields, reason = read_fields(written.text, SELF_INSTRUCT.fields)
    if fields is None:
        return Draft(written.row, None, reason, written.text)
    instruction, given, output = fields["instruction"], tidy_input(fields["input"]), fields["output"]
    problem = task_problem(instruction, given) or answer_problem(instruction, given, output)
    if problem:
        return Draft(written.row, None, problem, instruction or written.text)
    return Draft(written.row, MadeRow(Example(instruction, output, given), dict(provenance)))


def magpie(turn: UserTurn, known: KnownTasks, ask: Ask, made_by: str, options: MakeOptions) -> Drafter:
    """Drafts of what the model takes for a user's words; only new ones are answered."""

    def draft(numbers: Sequence[int], pool: Sequence[MadeRow]) -> list[Draft]:
        del pool
        begun = [
            TextRequest(number, turn.text, _seed(options, number), turn.id, raw=True, stop=turn.stop)
            for number in numbers
        ]
        tasks: dict[int, str] = {}
        drafts: dict[int, Draft] = {}
        for written in ask(begun):
            task = _until_stop(written.text or "", turn)
            problem = written.reason or task_problem(task) or known.problem(Example(task))
            if problem:
                drafts[written.row] = Draft(written.row, None, problem, task)
            else:
                tasks[written.row] = task
        answering = [
            TextRequest(number, task, _seed(options, number), f"{turn.id}-answer") for number, task in tasks.items()
        ]
        for written in ask(answering):
            task, answer = tasks[written.row], written.text or ""
            problem = written.reason or answer_problem(task, "", answer)
            provenance = {
                "way": "magpie",
                "made_by": made_by,
                "prompt": turn.id,
                "seed": _seed(options, written.row),
                "from": [],
            }
            row = None if problem else MadeRow(Example(task, answer), provenance)
            drafts[written.row] = Draft(written.row, row, problem, task)
        return [drafts[number] for number in numbers]

    return draft


def _until_stop(text: str, turn: UserTurn) -> str:
    """What stands before the first stop text, which some servers leave in."""
    return text[: min((at for stop in turn.stop if (at := text.find(stop)) >= 0), default=len(text))].strip()


def _seed(options: MakeOptions, number: int) -> int:
    return (options.seed + number) % SEEDS
