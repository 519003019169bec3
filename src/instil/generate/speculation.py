"""Guesses at the next tokens from the text itself, checked all at once by the model.

One row alone is bound by reading the weights: a pass over six tokens takes hardly longer than one over one. Where an
answer repeats something of its prompt, what followed there is a good guess (prompt lookup: Saxena, 2023; checked as in
Leviathan et al., 2023). Greedy answers stay what they are, since a guess counts only if the model would have said it.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 3, 2  # ids that have to match before a guess is made
GUESSES = 5
PATIENCE = 24  # guessed tokens after which a row that gains too little stops guessing
WORTH_IT = 0.3  # share of the guesses that must have been right


class PromptLookup:
    """The guesses for one row, and how good they have been."""

    def __init__(self) -> None:
        self.guessed = self.right = 0

    @property
    def pays(self) -> bool:
        """Whether to go on guessing."""
        return self.guessed < PATIENCE or self.right >= WORTH_IT * self.guessed

    def guess(self, ids: Sequence[int], room: int) -> list[int]:
        """What followed the last ids where they occurred before, at most ``room`` tokens.

        >>> PromptLookup().guess([1, 2, 3, 4, 5, 9, 2, 3], room=2)
        [4, 5]
        """
        limit = min(GUESSES, room)
        if limit < 1 or not self.pays:
            return []
        for size in range(LONGEST, SHORTEST - 1, -1):
            tail = list(ids[-size:])
            if len(ids) <= size:
                continue
            for start in range(len(ids) - size - 1, -1, -1):
                if ids[start] == tail[0] and list(ids[start : start + size]) == tail:
                    return list(ids[start + size : start + size + limit])
        return []

    def saw(self, guessed: int, right: int) -> None:
        """So many tokens were guessed and so many of them were right."""
        self.guessed += guessed
        self.right += right
