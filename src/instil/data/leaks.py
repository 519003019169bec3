"""The leak gate: what training rows and held-out rows have in common, before anything is spent.

A held-out row that is nearly a training row tests memory. Counts alone mislead, so such rows are shown beside their
training rows, with what differs. Rows are compared by their prompts (`instil.data.near_duplicates.prompt_text`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from instil.data.differences import in_a_line, marked
from instil.data.duplicates.grams import Numbers
from instil.data.duplicates.search import Relatives, Tick, first_of_equal, hashed, relatives
from instil.data.near_duplicates import Near, Prompts, leak_line, prompt_text
from instil.data.splits import Part, Split
from instil.data.subset import chosen
from instil.data.words import normal, prompt_of
from instil.errors import DataError, counted
from instil.records import Example
from instil.settings.options import DataOptions

SHOWN = 3  # pairs shown in lines of each kind
INDENT = "    "
REFUSED = 10  # pairs shown where rows are refused
LISTED = 1000  # of a kind in JSON
LONGEST = 2000  # characters of a text in JSON


@dataclass(frozen=True, slots=True)
class Leak:
    """A held-out row that is nearly a training row, with both prompts."""

    near: Near
    part: Part
    text: str
    train_text: str

    def lines(self) -> list[str]:
        """Both prompts under one another, what differs in «»."""
        names = [f"{self.part} row {self.near.row}", f"training row {self.near.train_row}"]
        one, other = _side_by_side(names, self.text, self.train_text)
        same = "equal" if self.text == self.train_text else f"cosine {self.near.cosine:.2f}"
        return [one, f"{other}  ({same})"]

    def as_json(self) -> dict[str, Any]:
        """For ``--json`` and the report."""
        return {
            "row": self.near.row,
            "part": self.part,
            "train_row": self.near.train_row,
            "cosine": self.near.cosine,
            "text": self.text[:LONGEST],
            "train_text": self.train_text[:LONGEST],
        }


@dataclass(frozen=True, slots=True)
class Twin:
    """A training row and an earlier one that it is like, each with what is to be shown of it."""

    row: int
    like: int
    text: str = ""
    like_text: str = ""

    def lines(self) -> list[str]:
        """Both texts under one another, what differs in «»."""
        return _side_by_side([f"row {self.row}", f"row {self.like}"], self.text, self.like_text)

    def as_json(self) -> dict[str, Any]:
        """For ``--json`` and the report."""
        texts = {"text": self.text[:LONGEST], "like_text": self.like_text[:LONGEST]} if self.text else {}
        return {"row": self.row, "like": self.like, **texts}


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
    found: tuple[Leak, ...] = ()
    dropped: tuple[tuple[int, str], ...] = ()
    repeated: tuple[Twin, ...] = ()
    contradicting: tuple[Twin, ...] = ()
    alike: tuple[Twin, ...] = ()
    exact: bool = True

    def of(self, part: str) -> list[Near]:
        """The held-out rows of a part that leak."""
        return [leak.near for leak in self.found if leak.part == part]

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
        for part in ("test", "validation"):
            found = [leak for leak in self.found if leak.part == part]
            if found:
                advice = "data.leaks=drop trains without such rows, data.split=grouped keeps them together"
                said.append("\n".join([f"{leak_line(self.of(part), part)}; {advice}", *_pairs(found, SHOWN)]))
        if self.dropped:
            rows = _numbers([row for row, _ in self.dropped])
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
    prompts = Prompts(split.train, split.test, split.validation)
    near = split.near or relatives(prompts, np.arange(len(prompts)) >= len(split.train), options.leak_threshold, tick)
    found = _held_out(split, prompts, near)
    if found and options.leaks == "refuse":
        raise DataError(
            f"{counted(len(found), 'held-out row')} {'is' if len(found) == 1 else 'are'} nearly training rows, and "
            "data.leaks=refuse:\n" + "\n".join(_pairs(found, REFUSED)) + "\n"
            "take them out of the file, or let the run do so: data.leaks=drop trains without the training rows, "
            "data.split=grouped keeps such rows on one side"
        )
    kept = split
    dropped: tuple[tuple[int, str], ...] = ()
    if found and options.leaks == "drop":
        kept, dropped = _without(split, prompts, near)
        found = []
    stay = np.isin(_numbers_of(split.train), _numbers_of(kept.train)) if dropped else np.ones(len(split.train), bool)
    within = _within(split.train, near.group_N[: len(split.train)], np.flatnonzero(stay))
    return kept, Leaks(options.leak_threshold, tuple(found), dropped, *within, exact=near.exact)


def _held_out(split: Split, prompts: Prompts, near: Relatives) -> list[Leak]:
    found = []
    for at in (len(split.train) + np.flatnonzero(near.nearest_N[len(split.train) :] >= 0)).tolist():
        row, like = prompts.row(at), prompts.row(int(near.nearest_N[at]))
        part: Part = "test" if at < len(split.train) + len(split.test) else "validation"
        leak = Near(row.row, like.row, round(float(near.cosine_N[at]), 4))
        found.append(Leak(leak, part, prompt_text(row).strip(), prompt_text(like).strip()))
    return found


def _without(split: Split, prompts: Prompts, near: Relatives) -> tuple[Split, tuple[tuple[int, str], ...]]:
    """The split without training rows that are near a held-out one, and these with the reason."""
    nearest = near.nearest_N[: len(split.train)]
    dropped = []
    for at in np.flatnonzero(nearest >= 0).tolist():
        like = int(nearest[at])
        part = "test" if like < len(split.train) + len(split.test) else "validation"
        said = (
            f"nearly the same as {part} row {prompts.row(like).row} (cosine {near.cosine_N[at]:.2f}), data.leaks=drop"
        )
        dropped.append((split.train[at].row, said))
    train = chosen(split.train, np.flatnonzero(nearest < 0))
    if not train:
        raise DataError(
            f"each of the {len(split.train):,} training rows is nearly the same as a held-out row, so data.leaks=drop "
            "would leave none to train on; raise data.leak_threshold, or set data.leaks=report"
        )
    return replace(split, train=train, near=None), tuple(dropped)


def _within(
    train: Sequence[Example], group_T: Numbers, at_T: Numbers
) -> tuple[tuple[Twin, ...], tuple[Twin, ...], tuple[Twin, ...]]:
    """Training rows that repeat, contradict or nearly repeat an earlier one."""
    at_T = at_T[np.argsort(_numbers_of(train)[at_T], kind="stable")]  # earlier is earlier in the file
    count = len(at_T)
    asked, answered = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    for place, at in enumerate(at_T.tolist()):
        question, answer = _texts(train[at])
        asked[place], answered[place] = hashed(question), hashed(f"{question}\0{answer}")
    first_asked, first_answered, first_alike = map(first_of_equal, (asked, answered, group_T[at_T]))
    places = np.arange(count)
    repeats = first_answered < places
    contradicts = (first_asked < places) & ~repeats
    alike = (first_alike < places) & (first_asked == places)

    def twins(which: Numbers, like: Numbers, shown: Callable[[Example], str]) -> tuple[Twin, ...]:
        found = []
        for number, one in enumerate(np.flatnonzero(which).tolist()):
            row, other = train[int(at_T[one])], train[int(at_T[like[one]])]
            texts = (shown(row), shown(other)) if number < LISTED else ("", "")
            found.append(Twin(row.row, other.row, *texts))
        return tuple(found)

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


def _pairs(leaks: Sequence[Leak], most: int) -> list[str]:
    lines = [line for leak in leaks[:most] for line in leak.lines()]
    return [*lines, f"{INDENT}... and {len(leaks) - most:,} more"] if len(leaks) > most else lines


def _side_by_side(names: Sequence[str], text: str, other: str) -> list[str]:
    width = max(map(len, names))
    return [
        f"{INDENT}{name:{width}}  {in_a_line(pieces)}" for name, pieces in zip(names, marked(text, other), strict=True)
    ]


def _twins(twins: Sequence[Twin], said: str) -> str:
    """How many training rows do what ``said`` says of one, and the first of them."""
    verbs = {"asks": "ask", "answers": "answer", "says": "say"}
    first, *rest = said.split()
    if len(twins) > 1:
        first, rest = verbs[first], [verbs[word] if word == "answers" else word for word in rest]
    shown = ", ".join(f"{twin.row} (like {twin.like})" for twin in twins[:10])
    return f"{counted(len(twins), 'training row')} {' '.join([first, *rest])}: {shown}{', ...' * (len(twins) > 10)}"


def _numbers(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:20])) + (", ..." if len(rows) > 20 else "")


def _numbers_of(rows: Sequence[Example]) -> Numbers:
    return np.fromiter((row.row for row in rows), np.int64, len(rows))
