"""Rows for measuring: made of words that people wrote, as many as wanted, each block of them from its own seed.

``varied`` rows are drawn word by word, so that hardly two are near one another but those that are made so: of a
hundred rows one repeats an earlier prompt word for word, and two repeat one but for a word. ``preambles`` have the same
in front of each prompt: one of a few long texts, as real data sets have. ``joined`` rows are each made of three rows of
the starter set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

BLOCK = 4096
SEED = 7
PROMPT, ANSWER = (10, 31), (12, 39)  # words: at least, and fewer than
REPEATED, NEAR = 0.01, 0.03  # of the rows: below the first the prompt is repeated, below the second but for a word
PREAMBLES, PREAMBLE = 20, (60, 120)  # how many, and their words


def _words() -> tuple[list[str], Any]:
    """The words of the starter set, and how often each comes."""
    from instil.data.sources import read_source

    told = Counter(
        word
        for row in read_source("starter").examples
        for word in f"{row.instruction} {row.input} {row.output}".split()
    )
    counts = np.array([*told.values()], np.float64)
    return list(told), np.cumsum(counts / counts.sum())


def _texts(draw: np.random.Generator, words: list[str], shares: Any, count: int, length: tuple[int, int]) -> list[Any]:
    """So many lists of words."""
    lengths = draw.integers(*length, count)
    drawn = np.minimum(np.searchsorted(shares, draw.random(int(lengths.sum()))), len(words) - 1).tolist()
    ends = np.cumsum(lengths).tolist()
    return [[words[at] for at in drawn[end - size : end]] for end, size in zip(ends, lengths.tolist(), strict=True)]


def varied(count: int, *, preambles: bool = False) -> Iterator[Any]:
    """Rows of random words; see above."""
    from instil.records import Example

    words, shares = _words()
    before = [""]
    if preambles:
        texts = _texts(np.random.default_rng([SEED]), words, shares, PREAMBLES, PREAMBLE)
        before = [f"{' '.join(text)}\n\n" for text in texts]
    for first in range(0, count, BLOCK):
        draw = np.random.default_rng([SEED, first])
        size = min(BLOCK, count - first)
        prompts, answers = (_texts(draw, words, shares, size, length) for length in (PROMPT, ANSWER))
        kinds, likes, fronts = (
            draw.random(size),
            draw.integers(0, np.arange(1, size + 1)),
            draw.integers(0, 1 << 30, size),
        )
        for at in range(size):
            if kinds[at] < NEAR:
                prompts[at] = list(prompts[likes[at]])
                if kinds[at] >= REPEATED:
                    prompts[at][-1] = words[int(fronts[at]) % len(words)]
            front = before[int(fronts[at]) % len(before)]
            yield Example(f"{front}{' '.join(prompts[at])}", " ".join(answers[at]), row=first + at)


def with_preambles(count: int) -> Iterator[Any]:
    """The same rows, each with a long text before its prompt that very many share."""
    return varied(count, preambles=True)


def joined(count: int) -> Iterator[Any]:
    """Rows of the length of those that people bring, no two alike: three of the starter set in one."""
    from instil.data.sources import read_source
    from instil.records import Example

    given = read_source("starter").examples
    for number in range(count):
        one, two, three = (given[(number * step + number // len(given)) % len(given)] for step in (1, 7, 31))
        yield Example(
            f"{one.instruction} {two.instruction} Say {number} first.",
            f"{number}: {one.output}\n{two.output}\n{three.output}",
            one.input,
            row=number,
        )


KINDS: dict[str, Callable[[int], Iterator[Any]]] = {"varied": varied, "preambles": with_preambles, "joined": joined}
