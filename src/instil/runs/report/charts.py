"""What the report draws: bars with whiskers, the spread of scores, scores by length and by kind.

Positions across are percentages, so that a chart fits a phone without its text shrinking; heights are pixels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from instil.evaluate.statistics import Interval, interval
from instil.records import Example

BINS = 10
BIN_POINTS = 100.0 / BINS
PLOT_HEIGHT = 180.0  # pixels
COLUMN_WIDTH = 3.9  # per cent of the plot; two stand in each bin
KINDS = 15  # kinds read off the instructions, "other" among them
OTHER = "other"
NO_TASK = "no task named"

Scores = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a score chart; ``share``, ``low`` and ``high`` are 0 to 100."""

    which: str
    who: str
    text: str
    share: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a histogram: ``x`` and ``width`` in per cent of the plot, ``y`` and ``height`` in pixels."""

    which: str
    x: float
    width: float
    y: float
    height: float
    count: int
    title: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A line across the plot, ``y`` pixels from its top, and the number of rows it stands for."""

    y: float
    count: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many rows got which score; ``summary`` says it in words."""

    columns: tuple[Column, ...]
    ticks: tuple[Tick, ...]
    summary: str


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that belong together: their name and where they stand in the list of examples."""

    name: str
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupScore:
    """A group's mean score before and after, over the ``rows`` of it that are scored under both."""

    name: str
    rows: int
    before: Interval
    after: Interval

    @property
    def change(self) -> float:
        """Points gained."""
        return self.after.mean - self.before.mean


def bar(which: str, who: str, value: Interval) -> Bar:
    """A bar for a mean on a scale of 0 to 100.

    >>> bar("tuned", "after", Interval(50.0, 40.0, 60.0, 9)).text
    '50.0 [40.0, 60.0]'
    """

    def clipped(number: float) -> float:
        return min(max(number, 0.0), 100.0)

    low, high = (None if end is None else clipped(end) for end in (value.low, value.high))
    return Bar(which, who, value.text(), clipped(value.mean), low, high)


def bin_counts(scores: Scores) -> list[int]:
    """How many scores lie in each bin of ten points; 100 belongs to the last one, None to none.

    >>> bin_counts([0.0, 9.9, 10.0, None, 100.0])
    [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    """
    bins = Counter(min(max(int(score // BIN_POINTS), 0), BINS - 1) for score in scores if score is not None)
    return [bins[at] for at in range(BINS)]


def histogram(before: Scores, after: Scores) -> Histogram:
    """Both sets of scores in bins of ten points, side by side."""
    counts = {"base": bin_counts(before), "tuned": bin_counts(after)}
    ticks = _ticks(max(max(found) for found in counts.values()))
    top = ticks[-1]
    columns, said = [], []
    for place, (which, who) in enumerate((("base", "before"), ("tuned", "after"))):
        for at, count in enumerate(counts[which]):
            height = PLOT_HEIGHT * count / top
            span = f"{at * BIN_POINTS:.0f} to {(at + 1) * BIN_POINTS:.0f}"
            columns.append(
                Column(
                    which=which,
                    x=round(at * BIN_POINTS + BIN_POINTS / 2 + (place - 1) * COLUMN_WIDTH, 3),
                    width=COLUMN_WIDTH,
                    y=round(PLOT_HEIGHT - height, 2),
                    height=round(height, 2),
                    count=count,
                    title=f"{who}, {span} points: {_rows(count)}",
                )
            )
        said.append(f"{who}: " + ", ".join(str(count) for count in counts[which]))
    return Histogram(
        tuple(columns),
        tuple(Tick(round(PLOT_HEIGHT * (1 - count / top), 2), count) for count in ticks),
        f"rows in bins of ten points from 0 to 100; {'; '.join(said)}",
    )


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _ticks(most: int) -> list[int]:
    """Round numbers from 0 to at least ``most``, four steps at the most.

    >>> _ticks(3), _ticks(37), _ticks(129)
    ([0, 1, 2, 3], [0, 10, 20, 30, 40], [0, 50, 100, 150])
    """
    most = max(most, 1)
    power = 10 ** math.floor(math.log10(most))
    steps = (step for scale in (power / 10, power) for step in (scale, 2 * scale, 5 * scale) if step >= 1)
    step = next(int(step) for step in steps if most <= 4 * step)
    return list(range(0, most + step, step))


def words(text: str) -> int:
    """How many words, which is what stands between spaces.

    >>> words("It is 4 o'clock.")
    4
    """
    return len(text.split())


def length_groups(examples: Sequence[Example]) -> list[Group]:
    """Rows by the words of the reference: quarters, of which equal ones are one.

    >>> [group.name for group in length_groups([Example("", "a"), Example("", "a b"), Example("", "c d")])]
    ['1 word', '2 words']
    """
    if not examples:
        return []
    lengths = [words(example.output) for example in examples]
    ordered = sorted(lengths)
    uppers = sorted({ordered[math.ceil(len(ordered) * quarter / 4) - 1] for quarter in range(1, 5)})
    groups, above = [], -1
    for upper in uppers:
        members = tuple(at for at, length in enumerate(lengths) if above < length <= upper)
        lowest = min(lengths[at] for at in members)
        span = str(upper) if lowest == upper else f"{lowest} to {upper}"
        groups.append(Group("1 word" if span == "1" else f"{span} words", members))
        above = upper
    return groups


def kind_groups(examples: Sequence[Example]) -> tuple[list[Group], bool]:
    """Rows by kind, most first, and whether the kinds are the tasks that the rows themselves name.

    Where no row names one, the kind is the instruction's first word; what comes once, and what goes beyond 15
    kinds, is "other".

    >>> rows = [Example("What is 1 + 1?"), Example("What's this?"), Example("what now?"), Example("- Spell it.")]
    >>> [(group.name, group.members) for group in kind_groups(rows)[0]]
    [('What', (0, 2)), ('other', (1, 3))]
    """
    named = any(example.task for example in examples)
    kinds = [example.task or NO_TASK if named else first_word(example.instruction) for example in examples]
    often = Counter(kinds).most_common()
    kept = {kind for kind, count in often if named or (count > 1 and kind)}
    if not named:
        kept = {kind for kind, _ in [pair for pair in often if pair[0] in kept][: KINDS - 1]}
    members: dict[str, list[int]] = {}
    for at, kind in enumerate(kinds):
        members.setdefault(kind if kind in kept else OTHER, []).append(at)
    last = NO_TASK if named else OTHER
    ordered = sorted(members.items(), key=lambda item: (item[0] == last, -len(item[1])))
    return [Group(kind, tuple(rows)) for kind, rows in ordered], named


def first_word(text: str) -> str:
    """The first word, with a capital; empty where there is none.

    >>> first_word("'rewrite the sentence'"), first_word("दिल्ली कहाँ है?"), first_word("?")
    ('Rewrite', 'दिल्ली', '')
    """
    found = regex.search(r"[\w\p{M}\p{N}]+(?:['’\-][\w\p{M}\p{N}]+)*", text)
    return str(found.group()[:30]).capitalize() if found else ""


def group_scores(groups: Sequence[Group], before: Scores, after: Scores) -> list[GroupScore]:
    """The mean scores of each group; one without scored rows is left out."""
    scores = []
    for group in groups:
        pairs = [(a, b) for at in group.members if (a := before[at]) is not None and (b := after[at]) is not None]
        base, tuned = interval([a for a, _ in pairs]), interval([b for _, b in pairs])
        if base is not None and tuned is not None:
            scores.append(GroupScore(group.name, len(pairs), base, tuned))
    return scores
