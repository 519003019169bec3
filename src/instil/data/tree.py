"""What rows begin with in common, as a tree: each of its tokens is computed once, however many rows have it.

Under one template all prompts begin alike; rows with the same system prompt or tools, or conversations that share all
but their last turn, go on together for longer. The idea is that of prefix sharing in preference tuning (Wang and Hegde,
2024, arXiv 2410.20305), between any rows of a batch and at any depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from instil.layouts import Layout, Tree

WORTH = 16  # tokens that must be saved for rows to be set together: a segment costs a little in every layer


Laid_co = TypeVar("Laid_co", bound=Layout, covariant=True)


@dataclass(frozen=True, slots=True)
class Flat(Generic[Laid_co]):
    """The tokens of rows one after another, as a layout has them.

    ``rows`` says of each token which row it was taken from, and ``places`` of each row where the token of each of its
    positions lies.
    """

    ids: list[int]
    positions: list[int]
    rows: list[int]
    places: list[list[int]]
    layout: Laid_co


def flat_tree(rows: Sequence[Sequence[int]], kept: Sequence[int]) -> Flat[Tree]:
    """Rows of ids, of which so many are computed each, without anything twice that is worth being set together.

    >>> flat = flat_tree([(1, 2, 3, 4), (1, 2, 5)], [3, 2])
    >>> flat.ids, flat.places, flat.layout
    ([1, 2, 3, 2], [[0, 1, 2], [0, 3]], Tree(parents=(-1, 0, 0), lengths=(1, 2, 1), rows=2))
    """
    layout, spans = _tree(rows, kept)
    flat = Flat([], [], [], [], layout)
    where = list[range]()
    for row, first, last in spans:
        where.append(range(len(flat.ids), len(flat.ids) + last - first))
        flat.ids.extend(rows[row][first:last])
        flat.positions.extend(range(first, last))
        flat.rows.extend([row] * (last - first))
    for segment in range(len(spans) - len(rows), len(spans)):
        flat.places.append([place for at in layout.path(segment) for place in where[at]])
    return flat


def tree_of(rows: Sequence[Sequence[int]], kept: Sequence[int]) -> Tree:
    """The layout alone."""
    return _tree(rows, kept)[0]


def _tree(rows: Sequence[Sequence[int]], kept: Sequence[int]) -> tuple[Tree, list[tuple[int, int, int]]]:
    """The tree, and of each segment a row that has it and which of its positions it is."""
    inner: list[tuple[int, int, int, int]] = []  # depth, parent, then as above
    parent_of, begun = [-1] * len(rows), [0] * len(rows)

    def set_together(several: list[int], start: int, parent: int, depth: int) -> None:
        if len(several) < 2:
            return
        end = common_prefix([rows[at] for at in several], min(kept[at] for at in several) - 1)
        saved = (end - start) * (len(several) - 1)
        if saved >= WORTH or (saved and len(several) == len(rows)):
            inner.append((depth, parent, several[0], start))
            ends.append(end)
            start, parent, depth = end, len(inner) - 1, depth + 1
            for at in several:
                parent_of[at], begun[at] = parent, start
        groups: dict[int, list[int]] = {}
        for at in several:
            if kept[at] > end + 1:  # else what is left of it is its own
                groups.setdefault(rows[at][end], []).append(at)
        for group in groups.values():
            set_together(group, start, parent, depth)

    ends: list[int] = []
    set_together(list(range(len(rows))), 0, -1, 0)
    order = sorted(range(len(inner)), key=lambda at: inner[at][0])  # by depth, so that a bunch lies together
    new = {-1: -1, **{old: at for at, old in enumerate(order)}}
    parents = [*(new[inner[at][1]] for at in order), *(new[parent] for parent in parent_of)]
    spans = [(inner[at][2], inner[at][3], ends[at]) for at in order]
    spans += [(row, start, count) for row, (start, count) in enumerate(zip(begun, kept, strict=True))]
    return Tree(tuple(parents), tuple(last - first for _, first, last in spans), len(rows)), spans


def common_prefix(rows: Sequence[Sequence[int]], limit: int) -> int:
    """How many ids all rows begin with, at most ``limit``.

    >>> common_prefix([(1, 2, 3), (1, 2, 4)], 5)
    2
    """
    ordered = sorted(map(tuple, rows))
    least, greatest = ordered[0], ordered[-1]  # all that these two begin with, those between them do
    for position, (one, other) in enumerate(zip(least, greatest, strict=False)):
        if position == limit or one != other:
            return position
    return min(limit, len(least), len(greatest))
