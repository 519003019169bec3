"""Texts as TF-IDF vectors of their characters, pairs and triples of characters; and the cosines of such vectors.

Texts are compared in lower case, in one normal form (NFC), and without punctuation (letters keep their marks).
Rarity is smoothed: ln((1 + texts) / (1 + texts with it)) + 1.

An n-gram is a number, 18 bits a character, so that no two n-grams share one.

Shape suffixes: R texts · G different n-grams of each text, all texts one after the other · P pairs of texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instil.data.words import without_punctuation

Numbers = NDArray[Any]
LONGEST_N_GRAM = 3
BITS = 18  # of a character: letters lie below 0x40000, but for a few marks of plane 14
HIGH_MARKS, THEIR_PLACE = 0xE0000, 0x3F000  # plane 14 is put where no letters are
ROWS_AT_ONCE = 256
LETTERS_AT_ONCE = 50_000
AT_ONCE = 32  # texts that others are compared with at once


@dataclass(frozen=True, slots=True)
class Grams:
    """N-grams of texts: text r has ``codes_G[starts[r]:starts[r + 1]]``, ascending, each ``times_G`` times."""

    starts: Numbers  # [R + 1]
    codes_G: Numbers
    times_G: Numbers

    def __len__(self) -> int:
        return len(self.starts) - 1


def n_grams(cleaned: Sequence[str]) -> Grams:
    """N-grams of texts that `without_punctuation` has cleaned; all at once, so a few hundred of them at most."""
    assert len(cleaned) < 1 << (64 - 3 * BITS), "the number of a text has ten bits"
    letters = np.frombuffer("".join(cleaned).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    letters = np.where(letters >= HIGH_MARKS, letters - np.uint64(HIGH_MARKS - THEIR_PLACE), letters)
    lengths = np.fromiter(map(len, cleaned), np.int64, len(cleaned))
    row = np.repeat(np.arange(len(cleaned), dtype=np.uint64), lengths)
    kinds, code = [], np.zeros_like(letters)
    for n in range(1, LONGEST_N_GRAM + 1):
        count = max(0, len(letters) - n + 1)
        code = (code[:count] << np.uint64(BITS)) | letters[n - 1 :]
        within = row[:count] == row[n - 1 :]
        kinds.append(((row[:count] << np.uint64(3 * BITS)) | code)[within])
    every = np.sort(np.concatenate(kinds))
    first = np.flatnonzero(np.concatenate([[True], every[1:] != every[:-1]])) if len(every) else np.zeros(0, np.int64)
    times = np.diff(np.append(first, len(every)))
    found = every[first]
    starts = np.searchsorted(found, np.arange(len(cleaned) + 1, dtype=np.uint64) << np.uint64(3 * BITS))
    return Grams(starts, found & np.uint64((1 << 3 * BITS) - 1), times.astype(np.float32))


def in_chunks(texts: Iterable[str]) -> Iterator[Grams]:
    """The same of any number of texts as they are, some hundreds at a time."""
    chunk: list[str] = []
    letters = 0
    for text in texts:
        chunk.append(without_punctuation(text))
        letters += len(chunk[-1])
        if len(chunk) == ROWS_AT_ONCE or letters > LETTERS_AT_ONCE:
            yield n_grams(chunk)
            chunk, letters = [], 0
    if chunk:
        yield n_grams(chunk)


def joined(chunks: Sequence[Grams]) -> Grams:
    """All texts of several chunks."""
    ends = np.cumsum([0, *(len(chunk.codes_G) for chunk in chunks)])
    starts = [chunk.starts[:-1] + end for chunk, end in zip(chunks, ends[:-1], strict=True)]
    if not chunks:
        return Grams(np.zeros(1, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.float32))
    return Grams(
        np.concatenate([*starts, ends[-1:]]),
        np.concatenate([chunk.codes_G for chunk in chunks]),
        np.concatenate([chunk.times_G for chunk in chunks]),
    )


class Rarity:
    """How rare each n-gram is among some texts, of each of which there may be several copies."""

    def __init__(self, chunks: Iterable[tuple[Grams, Numbers]]) -> None:
        codes, counts, self.texts = np.zeros(0, np.uint64), np.zeros(0, np.int64), 0
        waiting: list[tuple[Numbers, Numbers]] = []
        for chunk, copies in chunks:
            self.texts += int(copies.sum())
            waiting.append(np.unique(chunk.codes_G, return_counts=True))
            more = np.repeat(copies - 1, np.diff(chunk.starts))
            waiting.append((chunk.codes_G[more > 0], more[more > 0]))
            if sum(len(each) for each, _ in waiting) > max(1_000_000, len(codes)):
                codes, counts = _summed([(codes, counts), *waiting])
                waiting = []
        self.codes, counts = _summed([(codes, counts), *waiting])
        self._rarity = np.log((1 + self.texts) / (1 + counts)) + 1
        self.unknown = math.log(1 + self.texts) + 1

    def of(self, codes_G: Numbers) -> Numbers:
        """The rarity of n-grams, [G]; of one that none of the texts has the greatest."""
        return self.places(codes_G)[1]

    def places(self, codes_G: Numbers) -> tuple[Numbers, Numbers]:
        """A column for each n-gram, [G], with its rarity; those that none of the texts has come after all others."""
        if not len(self.codes):
            return np.asarray(np.unique(codes_G, return_inverse=True)[1]), np.full(len(codes_G), self.unknown)
        at = np.minimum(np.searchsorted(self.codes, codes_G), len(self.codes) - 1)
        known = self.codes[at] == codes_G
        rarity = self._rarity[at]
        if not known.all():
            new = ~known
            at[new] = len(self.codes) + np.unique(codes_G[new], return_inverse=True)[1]
            rarity[new] = self.unknown
        return at, rarity


def _summed(parts: Sequence[tuple[Numbers, Numbers]]) -> tuple[Numbers, Numbers]:
    codes, at = np.unique(np.concatenate([codes for codes, _ in parts]), return_inverse=True)
    counts = np.bincount(at, weights=np.concatenate([counts for _, counts in parts]), minlength=len(codes))
    return codes, counts.astype(np.int64)


def unit_weights(starts: Numbers, weights_G: Numbers) -> Numbers:
    """Weights of n-grams, [G], such that each text's vector has length one."""
    ends = np.append(0.0, np.cumsum(weights_G**2))
    lengths = np.sqrt(np.maximum(np.diff(ends[starts]), 1e-24))
    return np.asarray(weights_G / np.repeat(lengths, np.diff(starts)))


class Vectors:
    """TF-IDF vectors of length one; a text without n-grams is a vector of zeros.

    Args:
        chunks: the texts' n-grams, which are taken out of the list one by one, so that they need not lie beside the
            vectors; several of them only if the rarity knows all their n-grams.
        rarity: of their n-grams.
    """

    def __init__(self, chunks: list[Grams], rarity: Rarity) -> None:
        ends = np.cumsum([0, *(len(chunk.codes_G) for chunk in chunks)]).tolist()
        self.starts = np.concatenate(
            [*(chunk.starts[:-1] + end for chunk, end in zip(chunks, ends, strict=False)), ends[-1:]]
        )
        self.columns_G, self.weights_G = np.empty(ends[-1], np.int32), np.empty(ends[-1], np.float32)
        for start, end in reversed([*pairwise(ends)]):
            chunk = chunks.pop()
            columns, rare = rarity.places(chunk.codes_G)
            self.columns_G[start:end] = columns
            self.weights_G[start:end] = unit_weights(chunk.starts, chunk.times_G * rare)
        self.width = int(self.columns_G.max(initial=-1)) + 1

    def __len__(self) -> int:
        return len(self.starts) - 1

    def cosines(self, one_P: Numbers, other_P: Numbers) -> Numbers:
        """The cosines of pairs of texts, [P], exactly; quickest where equal numbers of ``one_P`` stand together."""
        found_P, dense = np.zeros(len(one_P)), np.zeros(AT_ONCE * self.width, np.float32)
        changes = np.flatnonzero(np.append(True, one_P[1:] != one_P[:-1])) if len(one_P) else np.zeros(0, np.int64)
        borders = [*changes[::AT_ONCE].tolist(), len(one_P)]
        for start, end in pairwise(borders):
            own, place = np.unique(one_P[start:end], return_inverse=True)
            at, counts = self._spans(own)
            dense_at = np.repeat(np.arange(len(own)) * self.width, counts) + self.columns_G[at]
            dense[dense_at] = self.weights_G[at]
            at, counts = self._spans(other_P[start:end])
            products = dense[np.repeat(place * self.width, counts) + self.columns_G[at]] * self.weights_G[at]
            ends = np.cumsum(counts)
            sums = np.append(0.0, np.cumsum(products, dtype=np.float64))
            found_P[start:end] = sums[ends] - sums[ends - counts]
            dense[dense_at] = 0.0
        return np.minimum(found_P, 1.0)

    def _spans(self, rows: Numbers) -> tuple[Numbers, Numbers]:
        """Where the n-grams of these texts are, one text after the other, and how many each has."""
        starts = self.starts[rows]
        counts = self.starts[rows + 1] - starts
        ends = np.cumsum(counts)
        return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + counts, counts), counts
