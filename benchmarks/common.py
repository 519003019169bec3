"""Rows that have long beginnings in common, as ids: ``prefix:600,50``, ``prompts:2,600,50`` and ``turns:100,80,50``.

``prefix``: all rows begin with the same so many tokens, and have so many of their own, which are trained on.
``prompts``: so many different beginnings, which the rows take in turn; they have the first 40 tokens in common.
``turns``: conversations of a batch that share all but what came last: each is longer than the one before by so many
tokens, and ends with tokens of its own.
"""

from __future__ import annotations

import random

from instil.records import Encoded

OPENING = 40  # tokens that all prompts begin with
FIRST = 100  # ids below are mostly control tokens


def is_common(data: str) -> bool:
    """Whether a name is one of these."""
    return data.partition(":")[0] in ("prefix", "prompts", "turns")


def common_rows(data: str, steps: int, batch_size: int, vocab_size: int) -> list[list[Encoded]]:
    """The rows of so many steps.

    >>> ((one, two),) = common_rows("prefix:3,2", 1, 2, 1000)
    >>> one.ids[:3] == two.ids[:3], one.ids[3:] == two.ids[3:], one.trained
    (True, False, (False, False, False, True, True))
    """
    kind, _, numbers = data.partition(":")
    draw = random.Random(5)
    *shape, own = map(int, numbers.split(","))

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(FIRST, vocab_size) for _ in range(count))

    def beginnings() -> list[tuple[int, ...]]:
        """Of the rows of a step."""
        if kind == "turns":
            first, turn = shape
            before = [ids(first)]
            for _ in range(batch_size - 1):
                before.append((*before[-1], *ids(turn)))
            return before
        return [prompts[at % len(prompts)] for at in range(batch_size)]

    opening = ids(OPENING)
    if kind == "prompts":
        prompts = [(*opening, *ids(shape[1] - OPENING)) for _ in range(shape[0])]
    elif kind == "prefix":
        prompts = [ids(shape[0])]
    return [
        [
            Encoded((*before, *ids(own)), (False,) * len(before) + (True,) * own, len(before), row=row)
            for row, before in enumerate(beginnings())
        ]
        for _ in range(steps)
    ]
