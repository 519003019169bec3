"""Every row that is left out of a training or loses its end, with its reason and what would mend it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from instil.data.splits import PARTS
from instil.errors import counted
from instil.tasks.task import Prepared


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """One row: its number in the data, the place in a file where that is known, and what became of it.

    ``part`` is empty for a row that could not be read as an example, so that it belongs to none.
    """

    row: int
    outcome: Literal["left out", "cut"]
    reason: str
    remedy: str
    part: str = ""
    where: str = ""

    def as_json(self) -> dict[str, Any]:
        """A line of ``rejected.jsonl``."""
        return asdict(self)


def rejected_rows(prepared: Prepared) -> Iterator[RejectedRow]:
    """The rows that were refused when they were read, then those of each part that training leaves out or cuts."""
    where = prepared.source.origins.of
    mend = "mend it in the data, or take it out"
    for unread in prepared.source.rejected:
        yield RejectedRow(unread.row, "left out", unread.reason, mend, where=unread.where)
    for number, reason in prepared.leaks.dropped:
        keep = "data.leaks=report keeps it; the scores then count it"
        yield RejectedRow(number, "left out", reason, keep, "train", where(number))
    task, max_length, context = prepared.task, prepared.max_length, prepared.spec.context
    for part in PARTS:
        for row in task.doubtful(prepared.rows[part], max_length):
            length = len(task.longest(row).ids)
            reason = task.left_out(row, max_length)
            if reason:
                yield RejectedRow(row.row, "left out", reason, _room(length, max_length, context), part, where(row.row))
            elif length - 1 > max_length:
                lost = length - 1 - max_length
                what = f"the last {counted(lost, 'token')} of its {length:,} lie beyond data.max_length={max_length}"
                yield RejectedRow(row.row, "cut", what, _room(length, max_length, context), part, where(row.row))


def _room(length: int, max_length: int, context: int) -> str:
    if length - 1 <= max_length:
        return "give it an answer that can be learnt, or take it out"
    if length - 1 <= context:
        return f"data.max_length={length - 1} keeps all of it"
    return f"shorten it or split it: it has {length:,} tokens, and the model's context is {context:,}"
