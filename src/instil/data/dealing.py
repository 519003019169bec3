"""Rows of a step dealt among processes that train together."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def dealt(costs: Sequence[int], hands: int) -> list[list[int]]:
    """The places of things that each of so many hands takes, each in order, so that costs are nearly even.

    The dearest goes first, to whoever has least so far (Graham, 1969: at most a third above the best there is). Who
    takes what is a function of the costs and the number of hands alone.

    >>> dealt([5, 1, 4, 2], 2)
    [[0, 1], [2, 3]]
    >>> dealt([7], 2)
    [[0], []]
    """
    taken: list[list[int]] = [[] for _ in range(hands)]
    least = [(0, hand) for hand in range(hands)]
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        so_far, hand = heapq.heappop(least)
        taken[hand].append(place)
        heapq.heappush(least, (so_far + costs[place], hand))
    return [sorted(places) for places in taken]
