"""Rows made from rows: reflection that improves them, and tasks of the passive voice.

Reflection (Li et al. 2023, arXiv 2310.11716) asks what is wrong with an instruction and for a better one, then the same
of the answer. What cannot be read leaves the row as it is, and is named. The book's bonus material makes passive-voice
entries; here each is a row of its own, behind the one that it was made from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from instil.data.near_duplicates import prompt_text
from instil.records import Example
from instil.settings.asking import MakeOptions
from instil.synthesis.prompts import (
    PASSIVE,
    PASSIVE_TASKS,
    REFLECT_ANSWER,
    REFLECT_INSTRUCTION,
    SynthesisPrompt,
    shown_row,
)
from instil.synthesis.reading import answer_problem, folded, read_fields, task_problem
from instil.synthesis.rows import Ask, MadeRow, Rejected, kept_row
from instil.synthesis.writing import TextRequest

LONGEST_SENTENCE = 300  # characters
What = Literal["instruction", "answer", "both"]


@dataclass(slots=True)
class EditResult:
    """The given rows with what was made of them; ``rejected`` names the parts that stayed as they were, and why."""

    rows: list[MadeRow] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    requests: int = 0
    made: int = 0  # rows that are new or changed


def reflect(
    given: Sequence[Example],
    what: What,
    ask: Ask,
    made_by: str,
    options: MakeOptions,
    at_once: int,
    on_row: Callable[[MadeRow], None] = lambda row: None,
) -> EditResult:
    """The given rows, improved where the model did it in a form that can be read; as many as there were, in order.

    An instruction that has changed needs an answer that fits it: with ``both``, where the new one cannot be had, the
    row stays as it is altogether. A new instruction that repeats another row's is not taken.
    """
    edited = EditResult()
    taken = {folded(prompt_text(row)): row.row for row in given}
    for rows in _pieces(given, at_once):
        # Better instructions, then answers to what the instructions are now.
        new: dict[int, Example] = {}
        prompts: dict[int, list[str]] = {row.row: [] for row in rows}
        if what != "answer":
            new = _instructions(rows, taken, ask, options, edited)
            for number in new:
                prompts[number].append(REFLECT_INSTRUCTION.id)
        if what != "instruction":
            asked = [new.get(row.row, row) for row in rows]
            for row, text, flaw in _improved(asked, REFLECT_ANSWER, "output", ask, options, edited):
                reason = flaw or answer_problem(row.instruction, row.about, text)
                if reason and row.row in new:  # the old answer belongs to the old instruction
                    prompts[row.row] = []
                    reason = f"row kept: its new instruction has no answer: {reason}"
                elif reason:
                    reason = f"answer kept: {reason}"
                elif text != row.output:
                    new[row.row] = replace(row, output=text)
                    prompts[row.row].append(REFLECT_ANSWER.id)
                if reason:
                    edited.rejected.append(Rejected(row.row, reason, text))
        # What has changed says how; what has not is kept.
        for row in rows:
            if not prompts[row.row]:
                edited.rows.append(kept_row(row))
                continue
            provenance = {
                "way": "reflect",
                "made_by": made_by,
                "prompt": prompts[row.row],
                "seed": options.seed,
                "from": [row.row],
            }
            edited.rows.append(MadeRow(new[row.row], provenance))
            edited.made += 1
            on_row(edited.rows[-1])
    return edited


def _instructions(
    rows: Sequence[Example], taken: dict[str, int], ask: Ask, options: MakeOptions, edited: EditResult
) -> dict[int, Example]:
    """The rows whose instruction has changed, by their numbers; ``taken`` tasks are those of other rows."""
    new = {}
    for row, text, flaw in _improved(rows, REFLECT_INSTRUCTION, "instruction", ask, options, edited):
        reason = flaw or task_problem(text)
        better = replace(row, instruction=text)
        place = folded(prompt_text(better))
        if not reason and taken.get(place, row.row) != row.row:
            reason = f"it repeats row {taken[place]}"
        if reason:
            edited.rejected.append(Rejected(row.row, f"instruction kept: {reason}", text))
        elif text != row.instruction:
            taken[place] = row.row
            new[row.row] = better
    return new


def _improved(
    rows: Sequence[Example], prompt: SynthesisPrompt, part: str, ask: Ask, options: MakeOptions, edited: EditResult
) -> list[tuple[Example, str, str]]:
    """For each row the better part, or an empty text with the reason."""
    names = ("instruction", "input") if part == "instruction" else ("instruction", "input", "output")
    wanted = [
        TextRequest(row.row, prompt.ask([shown_row(row, *names)]), options.seed, prompt.id, prompt.schema)
        for row in rows
    ]
    edited.requests += len(wanted)
    found = []
    for row, written in zip(rows, ask(wanted), strict=True):
        if written.text is None:
            found.append((row, "", written.reason))
            continue
        fields, reason = read_fields(written.text, prompt.fields)
        if fields is not None and not fields[part]:
            reason = f"{part!r} of the reply is empty"
        found.append((row, fields[part] if fields else "", reason))
    return found


def passive(
    given: Sequence[Example],
    ask: Ask,
    made_by: str,
    options: MakeOptions,
    at_once: int,
    on_row: Callable[[MadeRow], None] = lambda row: None,
) -> EditResult:
    """The given rows, each followed by one that asks for its answer in the passive voice, where it has one."""
    edited = EditResult()
    sentences: set[str] = set()
    for rows in _pieces(given, at_once):
        wanted, reasons = [], {}
        for row in rows:
            sentence = row.output.strip()
            if "\n" in sentence or len(sentence) > LONGEST_SENTENCE or " " not in sentence:
                reasons[row.row] = f"its answer is no single sentence of at most {LONGEST_SENTENCE} characters"
            elif folded(sentence) in sentences:
                reasons[row.row] = "an earlier row has the same sentence"
            else:
                sentences.add(folded(sentence))
                text = PASSIVE.ask([{"sentence": sentence}])
                wanted.append(TextRequest(row.row, text, options.seed, PASSIVE.id, PASSIVE.schema))
        edited.requests += len(wanted)
        said = {written.row: written for written in ask(wanted)}
        for row in rows:
            edited.rows.append(kept_row(row))
            text, reason = "", reasons.get(row.row, "")
            if row.row in said:
                text, reason = _passive_of(row.output.strip(), said[row.row].text, said[row.row].reason)
            if reason:
                edited.rejected.append(Rejected(row.row, reason, row.output))
                continue
            task = random.Random(f"passive {options.seed} {row.row}").choice(PASSIVE_TASKS)
            provenance = {
                "way": "passive",
                "made_by": made_by,
                "prompt": PASSIVE.id,
                "seed": options.seed,
                "from": [row.row],
            }
            edited.rows.append(MadeRow(Example(task, text, row.output.strip()), provenance))
            edited.made += 1
            on_row(edited.rows[-1])
    return edited


def _passive_of(sentence: str, text: str | None, reason: str) -> tuple[str, str]:
    if text is None:
        return "", reason
    fields, reason = read_fields(text, PASSIVE.fields)
    if fields is None:
        return "", reason
    said = fields["passive"]
    if not said:
        return "", "the model finds no passive for it"
    if folded(said) == folded(sentence):
        return "", "its passive is the sentence itself"
    if len(said) > 2 * len(sentence) + 40:
        return "", "its passive is more than twice as long"
    return said, ""


def _pieces(rows: Sequence[Example], size: int) -> list[Sequence[Example]]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]
