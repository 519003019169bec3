"""Which rows are worth a look: those that something was found in, and the extremes."""

from __future__ import annotations

from collections.abc import Iterable

from instil.errors import counted
from instil.recipes.microscope.rows import learnt
from instil.tasks.task import Prepared

MOST = 20  # rows
OF_EACH = 3  # rows of each kind of finding
OF_ITSELF = {  # what a finding says of one of its rows
    "all_masked": "nothing of it is trained on",
    "answered_otherwise": "asks what an earlier row asks, and answers otherwise",
    "echo": "its answer is the instruction again",
    "echo_begins": "its answer begins with its own instruction",
    "empty_answer": "its answer is empty",
    "end_marker": "an answer holds marks that end an answer or begin a prompt",
    "end_not_trained": "its end is not trained on",
    "invisible": "holds invisible characters",
    "kind_held_out": "is of a kind that no training row has",
    "mojibake": "holds characters that were broken on the way",
    "one_answer": "has the answer that all others have",
    "one_label": "has the answer that nearly all others have",
    "place_holder": "its answer is a place-holder",
    "place_holder_input": "its input is a place-holder",
    "repeated_answer": "has an answer that other prompts have, too",
    "repeated_row": "says what an earlier row says",
    "secret": "holds something like a secret",
    "unended": "its answer ends within a sentence",
    "whole_prompt": "its prompt holds marks of a prompt's form",
}


def suspicious(prepared: Prepared) -> dict[int, list[str]]:
    """Numbers of rows, each with what is suspicious of it; the worst first, at most twenty."""
    found = prepared.preflight
    limit = found.max_length
    wanted: dict[int, list[str]] = {}
    for rows, why in (
        *((finding.rows, OF_ITSELF.get(finding.kind, finding.said)) for finding in found.of("error")),
        (found.skipped, f"skipped: nothing to train on within {limit:,} tokens"),
        (found.cut, f"cut at {limit:,} tokens"),
        *((finding.rows, OF_ITSELF.get(finding.kind, finding.said)) for finding in found.of("warning")),
        (found.misspelt, "has characters that the vocabulary cannot spell"),
        (found.altered, "is altered by the tokenizer"),
        *_extremes(prepared),
    ):
        for row in rows[:OF_EACH]:
            if row in wanted or len(wanted) < MOST:
                wanted.setdefault(row, []).append(why)
    return wanted


def _extremes(prepared: Prepared) -> Iterable[tuple[tuple[int, ...], str]]:
    task, rows = prepared.task, prepared.usable("train")
    if len(rows) < 2:
        return
    longest = max(rows, key=lambda row: len(task.longest(row).ids))
    yield (longest.row,), "the longest training row"
    views = [(row.row, sum(learnt(prepared, view)), len(view.row.ids)) for row in rows for view in task.views(row)]
    row, least, length = min(views, key=lambda one: one[1] / one[2])
    yield (row,), f"the least of it is trained on: {least:,} of {counted(length, 'token')}"
    row, _, _ = min(views, key=lambda one: one[1])
    yield (row,), "the fewest tokens that are trained on"
