"""The leak gate: what training rows and held-out rows have in common, before anything is spent.

A held-out row that is nearly a training row tests memory. Counts alone mislead, so such rows are shown beside their
training rows, with what differs. Rows are compared by their prompts (`instil.data.near_duplicates.prompt_text`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from instil.data.duplicates.grams import Numbers
from instil.data.duplicates.search import Relatives, Tick, first_of_equal, hashed, relatives
from instil.data.leak_pairs import HELD_OUT, INDENT, Dropped, Leak, Leaking, Twin, Twins
from instil.data.near_duplicates import Near, Prompts, leak_line, prompt_text
from instil.data.splits import PARTS, Split, row_numbers
from instil.data.subset import chosen, some
from instil.data.words import normal, prompt_of
from instil.errors import DataError, counted
from instil.records import Example
from instil.settings.options import DataOptions

TOLD = 20  # rows that are named of those left out
SHOWN = 3  # pairs shown in lines of each kind
REFUSED = 10  # pairs shown where rows are refused
LISTED = 1000  # of a kind in JSON, and with their texts


@dataclass(frozen=True, slots=True)
class Leaks:
    """What the gate found.

    ``found`` are held-out rows that are nearly training rows, as trained on. ``dropped`` are training rows left out for
    being nearly held-out rows, each with the reason. Of training rows among themselves: ``repeated`` say all that an
    earlier one says, ``contradicting`` ask what an earlier one asks and answer otherwise (with both answers), and
    ``alike`` have a prompt that is nearly, and not quite, that of an earlier one. ``exact`` says whether all pairs were
    compared.
    """

    threshold: float
    found: Leaking = field(default_factory=Leaking)
    dropped: Dropped = field(default_factory=Dropped)
    repeated: Twins = field(default_factory=Twins)
    contradicting: Twins = field(default_factory=Twins)
    alike: Twins = field(default_factory=Twins)
    exact: bool = True

    def of(self, part: str) -> list[Near]:
        """The held-out rows of a part that leak."""
        return self.found.of(part)

    def as_json(self) -> dict[str, Any]:
        """For ``--json`` and the report: all counts, and the first thousand of each kind."""
        kinds: dict[str, Sequence[Leak | Twin]] = {
            "held_out": self.found, "repeated": self.repeated, "contradicting": self.contradicting, "alike": self.alike
        }  # fmt: skip
        return {
            "threshold": self.threshold,
            "exact": self.exact,
            "counts": {**{name: len(rows) for name, rows in kinds.items()}, "dropped": len(self.dropped)},
            **{name: [one.as_json() for one in rows[:LISTED]] for name, rows in kinds.items()},
            "dropped": [{"row": row, "reason": reason} for row, reason in self.dropped[:LISTED]],
        }

    def lines(self) -> list[str]:
        """For people, pre-flight's lines; a line may be of several."""
        said = []
        for part in HELD_OUT:
            if near := self.of(part):
                advice = "data.leaks=drop trains without such rows, data.split=grouped keeps them together"
                pairs = _pairs(self.found.first(part, SHOWN), len(near))
                said.append("\n".join([f"{leak_line(near, part)}; {advice}", *pairs]))
        if self.dropped:
            rows = _numbers(self.dropped.row[:TOLD].tolist(), len(self.dropped))
            said.append(
                f"{counted(len(self.dropped), 'training row')} left out for being nearly a held-out row "
                f"(data.leaks=drop): {rows}"
            )
        if self.contradicting:
            told = chain.from_iterable(one.lines() for one in self.contradicting[:SHOWN])
            head = _twins(self.contradicting, "asks what an earlier one asks and answers otherwise")
            said.append("\n".join([head, *told]))
        if self.repeated:
            said.append(_twins(self.repeated, "says what an earlier one says word for word"))
        if self.alike:
            alike = [one.lines() for one in self.alike[:SHOWN]]
            said.append("\n".join([_twins(self.alike, "asks nearly what an earlier one asks"), *chain(*alike)]))
        if not self.exact:
            said.append("so many prompts are compared by MinHash sketches, which find nearly all near-duplicates")
        return said


def guard(split: Split, options: DataOptions, tick: Tick | None = None) -> tuple[Split, Leaks]:
    """Look for leaks, and do with them as ``data.leaks`` says; returns the split as it is to be trained on.

    Raises:
        DataError: there are some and ``data.leaks=refuse``, or ``drop`` would leave nothing to train on.
    """
    split, leaks = looked_for(split, options.leak_threshold, drop=options.leaks == "drop", tick=tick)
    refuse_found(leaks, options)
    return split, leaks


def looked_for(split: Split, threshold: float, *, drop: bool = False, tick: Tick | None = None) -> tuple[Split, Leaks]:
    """Look for leaks; returns the split as it is, or where they are to be dropped as it is to be trained on.

    Raises:
        DataError: to ``drop`` them would leave nothing to train on.
    """
    prompts = Prompts(split.train, split.test, split.validation)
    side = np.arange(len(prompts)) >= len(split.train)
    near = split.near or relatives(prompts, side, threshold, tick, both=drop)
    found, dropped, kept = _held_out(split, prompts, near), Dropped(), split
    stay = np.ones(len(split.train), bool)
    if found and drop:
        dropped, stay = _dropped(split, near)
        kept = replace(split, train=chosen(split.train, np.flatnonzero(stay)), near=None)
        found = Leaking()
    within = _within(split.train, near.group_N[: len(split.train)], np.flatnonzero(stay))
    return kept, Leaks(threshold, found, dropped, *within, exact=near.exact)


def refuse_found(leaks: Leaks, options: DataOptions) -> None:
    """Stop where leaks were found and are to be refused.

    Raises:
        DataError: so it is.
    """
    found = leaks.found
    if found and options.leaks == "refuse":
        raise DataError(
            f"{counted(len(found), 'held-out row')} {'is' if len(found) == 1 else 'are'} nearly training rows, and "
            "data.leaks=refuse:\n" + "\n".join(_pairs(found[:REFUSED], len(found))) + "\n"
            "take them out of the file, or let the run do so: data.leaks=drop trains without the training rows, "
            "data.split=grouped keeps such rows on one side"
        )


def _held_out(split: Split, prompts: Prompts, near: Relatives) -> Leaking:
    at_L = len(split.train) + np.flatnonzero(near.nearest_N[len(split.train) :] >= 0)
    if not len(at_L):
        return Leaking()
    like_L, numbers_N = near.nearest_N[at_L], _numbers_of(split)
    part_L = (at_L >= len(split.train) + len(split.test)).astype(np.int8)
    texts = {}
    for part in range(len(HELD_OUT)):
        for place in np.flatnonzero(part_L == part)[:LISTED].tolist():
            texts[place] = prompts[int(at_L[place])].strip(), prompts[int(like_L[place])].strip()
    return Leaking(numbers_N[at_L], numbers_N[like_L], texts, np.round(near.cosine_N[at_L], 4), part_L)


def _dropped(split: Split, near: Relatives) -> tuple[Dropped, Numbers]:
    """Training rows that are near a held-out one; and of all training rows whether they stay."""
    like_T = near.nearest_N[: len(split.train)]
    at_D = np.flatnonzero(like_T >= 0)
    if len(at_D) == len(split.train):
        raise DataError(
            f"each of the {len(split.train):,} training rows is nearly the same as a held-out row, so data.leaks=drop "
            f"would leave none to train on; {_another_way(near, at_D)}"
        )
    like_D, numbers_N = like_T[at_D], _numbers_of(split)
    part_D = (like_D >= len(split.train) + len(split.test)).astype(np.int8)
    return Dropped(numbers_N[at_D], numbers_N[like_D], {}, near.cosine_N[at_D], part_D), like_T < 0


def _another_way(near: Relatives, at_D: Numbers) -> str:
    """What is left to do where all training rows would be dropped."""
    if (near.cosine_N[at_D] >= 1).all():
        return "they say the same but for case and punctuation, at any data.leak_threshold; set data.leaks=report"
    return "raise data.leak_threshold, or set data.leaks=report"


def _within(train: Sequence[Example], group_T: Numbers, at_T: Numbers) -> tuple[Twins, Twins, Twins]:
    """Training rows that repeat, contradict or nearly repeat an earlier one."""
    numbers_T = row_numbers(train)
    at_T = at_T[np.argsort(numbers_T[at_T], kind="stable")]  # earlier is earlier in the file
    count = len(at_T)
    asked, answered = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    for place, row in enumerate(some(train, at_T)):
        question, answer = _texts(row)
        asked[place], answered[place] = hashed(question), hashed(f"{question}\0{answer}")
    first_asked, first_answered, first_alike = map(first_of_equal, (asked, answered, group_T[at_T]))
    places = np.arange(count)
    repeats = first_answered < places
    contradicts = (first_asked < places) & ~repeats
    alike = (first_alike < places) & (first_asked == places)

    def twins(which: Numbers, like: Numbers, shown: Callable[[Example], str]) -> Twins:
        own = np.flatnonzero(which)
        at, other = at_T[own], at_T[like[own]]
        texts = {
            place: (shown(train[int(at[place])]), shown(train[int(other[place])]))
            for place in range(min(len(own), LISTED))
        }
        return Twins(numbers_T[at], numbers_T[other], texts)

    return (
        twins(repeats, first_answered, prompt_text),
        twins(contradicts, first_asked, lambda row: row.output),
        twins(alike, first_alike, prompt_text),
    )


def _texts(row: Example) -> tuple[str, str]:
    """All that is asked, and all that is answered, in one normal form; white space at the ends does not count."""
    if row.plain:
        return "\0".join(prompt_of(row)), normal(row.output).strip()
    *before, answer = row.turns
    asked = "\0".join(f"{turn.role}:{turn.content}\0{turn.about}{turn.reasoning}{turn.tool_calls}" for turn in before)
    return normal(f"{asked}\0{row.tools}"), normal(f"{answer.content}\0{answer.reasoning}{answer.tool_calls}")


def _pairs(first: Sequence[Leak], count: int) -> list[str]:
    """The first pairs of so many."""
    lines = [line for leak in first for line in leak.lines()]
    return [*lines, f"{INDENT}... and {count - len(first):,} more"] if count > len(first) else lines


def _twins(twins: Twins, said: str) -> str:
    """How many training rows do what ``said`` says of one, and the first of them."""
    verbs = {"asks": "ask", "answers": "answer", "says": "say"}
    first, *rest = said.split()
    if len(twins) > 1:
        first, rest = verbs[first], [verbs[word] if word == "answers" else word for word in rest]
    shown = ", ".join(f"{twin.row} (like {twin.like})" for twin in twins[:10])
    return f"{counted(len(twins), 'training row')} {' '.join([first, *rest])}: {shown}{', ...' * (len(twins) > 10)}"


def _numbers(first: Sequence[int], count: int) -> str:
    return ", ".join(map(str, first)) + (", ..." if count > len(first) else "")


def _numbers_of(split: Split) -> Numbers:
    """The numbers of all rows in their file, of one part after the other."""
    return np.concatenate([row_numbers(split.part(part)) for part in PARTS])
