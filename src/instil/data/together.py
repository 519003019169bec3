"""Which rows are computed together where no gradient is held: the more of them begin alike, the more rows at once.

What they begin with in common is computed once for all (`instil.data.tree`), so that rows with a long system prompt
cost the less each, the more stand together. Of rows that share nothing more than a few at once gain nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median_low
from typing import TypeVar

from instil.data.tree import common_prefix

TOKENS = 1024  # computed at once, if that is more than the least rows
TIMES = 8  # so many times what rows begin with in common are computed beside it: a ninth is left to save
MOST = 8192  # computed at once, if that is more than one row
KEYS = 4 * MOST  # positions that rows see in all: attention has a copy of what they share for each of them
ROWS = 256  # at once, if that is more than the least: trees of rows are not to be deep
SORTED = 5000  # rows, at most, that are put into an order
LOOKED_AT = 1000  # of more


Row = TypeVar("Row")


def together(
    rows: Sequence[Row],
    positions: Callable[[Sequence[Row]], int],
    beginning: Callable[[Row], Sequence[int]],
    *,
    least: int,
    longest: int,
    padded: bool = False,
) -> tuple[Sequence[Row], int]:
    """Rows in an order in which those that begin alike stand beside one another, and how many of them at once.

    Of many rows the order stays, and the first ones stand for all.

    Args:
        rows: at least one.
        positions: how many are computed of some rows together.
        beginning: a row's ids.
        least: rows that may go through at once in any case.
        longest: positions that a row takes alone, at most.
        padded: nothing is shared.
    """
    few = len(rows) <= SORTED
    some = list(rows if few else rows[:LOOKED_AT])
    if few and not padded:
        rows = some = [some[at] for at in order_of([beginning(row) for row in some])]
    alone = [positions([row]) for row in some]
    groups = groups_of(zip(map(beginning, some), alone, strict=True), least=least, padded=padded)
    count = median_low(len(group) for group in groups[:-1] or groups)

    def is_too_much(count: int) -> bool:
        if not few:
            return count * longest > MOST
        parts = [slice(at, at + count) for at in range(0, len(some), count)]
        return any(sum(alone[part]) > KEYS or positions(some[part]) > MOST for part in parts)

    while count > least and is_too_much(count):
        count //= 2
    return rows, max(count, least)


def order_of(beginnings: Sequence[Sequence[int]]) -> list[int]:
    """The places of rows in an order in which those that begin alike stand beside one another.

    >>> order_of([(5, 1), (3, 2), (5, 0), (3, 1)])
    [3, 1, 2, 0]
    """
    return sorted(range(len(beginnings)), key=lambda at: tuple(beginnings[at]))


def groups_of(
    rows: Iterable[tuple[Sequence[int], int]], *, least: int, padded: bool = False, most: int = MOST
) -> list[range]:
    """Rows that are computed at once, in their order, by their places.

    Args:
        rows: what each begins with, as ids, and how many positions it takes alone.
        least: rows that are computed at once however little they share, within ``most``.
        padded: nothing is shared, and each row takes as much as the longest.
        most: positions computed at once, if there is more than one row.

    >>> alone = [((at,), 400) for at in range(4)]
    >>> groups_of(alone, least=2)
    [range(0, 2), range(2, 4)]
    >>> alike = [((*range(300), 1000 + at), 400) for at in range(40)]
    >>> groups_of(alike, least=2)
    [range(0, 31), range(31, 40)]
    """
    found: list[range] = []
    first = positions = longest = seen = 0
    before: Sequence[int] = ()
    at = -1
    for at, (beginning, alone) in enumerate(rows):
        count = at - first
        longest = max(longest, alone)
        shared = 0 if padded or not count else common_prefix([before, beginning], alone)
        with_it = (count + 1) * longest if padded else positions + alone - shared
        seen += alone
        enough = with_it > TOKENS + TIMES * shared or seen > KEYS or count >= ROWS
        if count and (with_it > most or (count >= least and enough)):
            found.append(range(first, at))
            first, with_it, longest, seen = at, alone, alone, alone
        before, positions = beginning, with_it
    return [*found, range(first, at + 1)] if at >= 0 else found
