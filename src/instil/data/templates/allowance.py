"""What one rendering of a chat template may cost: steps, characters that are made, and seconds of the processor."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

STEPS = 500_000
STEPS_FOR_EACH = 20  # so many more may be taken for each character that was given
CHARACTERS = 4_000_000
PER_CHARACTER = 64  # so many more may be made for each character that was given
SECONDS = 20.0  # of the processor
WIDEST = 10_000  # any whole number that says how much is made


class Exhausted(Exception):
    """A template asked for more than it is allowed."""


class Allowance:
    """What is left of a rendering."""

    def __init__(self, given: int = 0) -> None:
        self.steps = self.given_steps = STEPS + STEPS_FOR_EACH * given
        self.characters = CHARACTERS + PER_CHARACTER * given
        self.until = 0.0  # not known before it has taken long enough for a look at the clock
        self.looked = 0

    def step(self, count: int = 1) -> None:
        self.steps -= count
        self.looked += 1
        if self.steps < 0:
            raise Exhausted(f"it takes more than {self.given_steps:,} steps")
        if not self.looked % 256:
            now = time.thread_time()
            self.until = self.until or now + SECONDS
            if now > self.until:
                raise Exhausted(f"it takes more than {SECONDS:.0f} seconds")

    def text(self, length: int) -> None:
        self.characters -= length
        if self.characters < 0:
            raise Exhausted("it makes too much text")

    def holds(self, value: Any, depth: int = 0) -> tuple[int, int]:
        """How deep a value is, and how many characters it holds; every part of it is a step."""
        self.step()
        if isinstance(value, str):
            return depth, len(value) + 2
        if isinstance(value, int) and not isinstance(value, bool):
            return depth, 2 + value.bit_length() // 3
        if isinstance(value, Mapping):
            held: Iterable[Any] = (one for pair in value.items() for one in pair)
        elif isinstance(value, list | tuple | set | frozenset):
            held = value
        else:
            return depth, 24
        deepest, length = depth, 2
        for one in held:
            below, more = self.holds(one, depth + 1)
            deepest, length = max(deepest, below), length + more + 4
        return deepest, length


def check_widths(values: Iterable[Any]) -> None:
    """Exhausted where one of the values is a number that asks for too much."""
    if any(isinstance(value, int) and abs(value) > WIDEST for value in values):
        raise Exhausted(f"it asks a filter or a method for more than {WIDEST:,}")
