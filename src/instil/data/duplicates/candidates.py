"""Pairs of texts that may be near: all of them among some thousands, nearly all of them among any number.

**Few texts** (`Bounds`). N-grams are put into a few hundred groups. The product of two texts' vectors within a group is
at most the product of their lengths there (Cauchy and Schwarz), so the sum over the groups is never less than the
cosine: no near pair is missed, and few others are left. The cost is quadratic, of one product of small matrices.

**Many texts** (`Sketches`). Of each text 64 n-grams are drawn, each by one of 64 fixed random orders, in which an
n-gram comes the earlier the more it weighs: weighted MinHash, by which two texts draw the same n-gram with the
probability Jaccard similarity of their weights (Moulton and Jiang, 2018, "Maximally consistent sampling and the Jaccard
index of probability distributions"). With squared TF-IDF weights that is c / (2 - c) for texts of cosine c, if none of
their n-grams is repeated: from 0.9 on four of five draws are the same. A tree is a sorted list of the texts by eight of
the draws; texts that agree in the first of these stand together, the most alike the closest, and each is compared with
some of its neighbours (as in LSH Forest: Bawa et al., 2005), so that candidates are no more than so many for each text,
even where all texts are alike.

Shape suffixes: R texts · G n-grams · P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from instil.data.duplicates.grams import Numbers, Vectors

GROUPS = 512  # of n-grams, half of which the weightiest n-grams have for themselves
BLOCK = 512  # texts compared with all others at once
ROUNDING = 1e-4  # of bounds in single precision

DRAWS = 64  # of each text, and a byte of each drawn n-gram's hash
MANY = 2_000_000  # texts or more, of which half a byte is kept: chance makes a sixteenth of them the same (`_likeness`)
AT_ONCE = 2048  # n-grams that are drawn from at once: as many as a processor has near at hand
PLACES = 1 << 16  # n-grams share random numbers where a hash of 16 bits is the same
AGREE, AGREE_LOW, LOW = 4, 3, 0.85  # of a tree's first draws so many must be the same, fewer for lower thresholds
DEEP = 8  # draws that a tree is sorted by
NEIGHBOURS, ACROSS = 8, 4  # those that come next, and on either hand those of the other side
SLICE = 1 << 15  # places of a tree looked at at once


@dataclass(frozen=True, slots=True)
class Candidates:
    """Pairs of texts, each at least once over all, and what their cosine is at most (or may be)."""

    one_P: Numbers
    other_P: Numbers
    bound_P: Numbers


class Bounds:
    """Every pair whose cosine may reach a threshold."""

    def __init__(self, vectors: Vectors) -> None:
        squares = vectors.weights_G.astype(np.float64) ** 2
        mass = np.bincount(vectors.columns_G, weights=squares, minlength=vectors.width)
        order = np.argsort(-mass, kind="stable")
        group = np.empty(vectors.width, np.int64)
        alone, shared = GROUPS // 2, GROUPS - GROUPS // 2
        group[order] = np.where(
            np.arange(len(order)) < alone, np.arange(len(order)), alone + np.arange(len(order)) % shared
        )
        row = np.repeat(np.arange(len(vectors)), np.diff(vectors.starts))
        sums = np.bincount(row * GROUPS + group[vectors.columns_G], weights=squares, minlength=len(vectors) * GROUPS)
        self._lengths = torch.from_numpy(np.sqrt(sums).astype(np.float32).reshape(-1, GROUPS))

    @property
    def blocks(self) -> range:
        """The first text of each block."""
        return range(0, len(self._lengths), BLOCK)

    def pairs(self, start: int, threshold: float) -> Candidates:
        """Those of a block of texts with each later text."""
        block = self._lengths[start : start + BLOCK]
        bounds = (block @ self._lengths[start:].T).numpy()
        one, other = np.nonzero(bounds >= threshold - ROUNDING)
        later = other > one
        one, other = one[later], other[later]
        return Candidates(start + one, start + other, bounds[one, other] + ROUNDING)


class Sketches:
    """The draws of texts, and the trees of them."""

    def __init__(self, rows: int, threshold: float) -> None:
        self._agree = AGREE if threshold >= LOW else AGREE_LOW
        self._bits = 8 if rows < MANY else 4  # b-bit minwise hashing (Li and König, 2010)
        self.draws = np.zeros((rows, DRAWS * self._bits // 8), np.uint8)
        self._waits = np.random.Generator(np.random.PCG64(5)).exponential(size=(PLACES, DRAWS)).astype(np.float32)

    def draw(self, start: int, starts: Numbers, codes_G: Numbers, weights_G: Numbers) -> None:
        """Draw from texts, of which ``start`` is the first one's number; each must have an n-gram.

        ``starts``, [R + 1], says where the n-grams of each begin; weights are TF-IDF on any scale.
        """
        hashes = codes_G * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
        hashes *= np.uint64(0xBF58476D1CE4E5B9)
        places = (hashes >> np.uint64(48)).astype(np.int64)
        tags = ((hashes >> np.uint64(20)) & np.uint64(0xFF)).astype(np.uint32)
        lighter = 1 / np.maximum(weights_G.astype(np.float32), 1e-18) ** 2
        counts = np.diff(starts)
        order = np.argsort(counts, kind="stable")
        room = np.empty((AT_ONCE, self._waits.shape[1]), np.float32)
        at = 0
        while at < len(order):  # texts of about the same length, so that the shorter ones are filled up a little
            most = min(len(order) - at, max(1, AT_ONCE // int(counts[order[at]])))
            while most > 1 and most * int(counts[order[at + most - 1]]) > AT_ONCE:
                most = max(1, AT_ONCE // int(counts[order[at + most - 1]]))
            own = order[at : at + most]
            longest = int(counts[own[-1]])
            drawn = None
            for first in range(0, longest, AT_ONCE):  # a book has more n-grams than are drawn from at once
                inside = np.minimum(np.arange(first, min(first + AT_ONCE, longest)), counts[own][:, None] - 1)
                grams = (starts[own][:, None] + inside).ravel()
                waits = room[: len(grams)]
                np.take(self._waits, places[grams], axis=0, out=waits, mode="clip")  # no place is beyond the table
                waits *= lighter[grams, None]
                # The smallest wait wins, and brings its n-gram's byte along in the last bits, which hardly count.
                found = waits.view(np.uint32)
                found &= np.uint32(0xFFFFFF00)
                found |= tags[grams, None]
                least = found.reshape(len(own), -1, found.shape[1]).min(1)
                drawn = least if drawn is None else np.minimum(drawn, least)
            assert drawn is not None, "each text has an n-gram"
            tags_D = drawn.astype(np.uint8)
            if self._bits == 4:
                tags_D = (tags_D[:, ::2] << 4) | (tags_D[:, 1::2] & 0x0F)
            self.draws[start + own] = tags_D
            at += most

    def __len__(self) -> int:
        """How many trees there are."""
        return self.draws.shape[1] // self._agree

    def pairs(
        self, tree: int, least: float, here: Numbers, there: Numbers, telling: Callable[[Numbers, Numbers], Numbers]
    ) -> Iterator[Candidates]:
        """Neighbours in a tree that agree in enough draws to be at least so near, as far as draws tell.

        ``tree`` is a number below ``len()``. ``here`` and ``there`` say which texts are on which side, [R] bool: a text
        has neighbours of any side, and some of the other one, which there may be few of. ``telling`` says which pairs
        may tell anything, however near they are.
        """
        chosen = np.arange(tree * self._agree, tree * self._agree + DEEP) % self.draws.shape[1]
        keys = np.ascontiguousarray(self.draws[:, chosen]).view(">u8").ravel().astype(np.uint64)
        order = np.argsort(keys, kind="stable").astype(np.int32)
        keys >>= np.uint64(8 * DEEP - self._bits * self._agree)
        first = keys.astype(np.uint32)
        del keys
        first = first[order]
        places = np.flatnonzero(there[order])
        for start in range(0, len(order), SLICE):
            own = np.arange(start, min(start + SLICE, len(order)))
            near_by = self.draws[order[start : start + SLICE + NEIGHBOURS]]
            one, other, agreed = [], [], []
            for before, after in _neighbours(own, len(order), own[here[order[own]]], places):
                same = np.flatnonzero((first[before] == first[after]) & (before != after))
                tells = same[telling(order[before[same]], order[after[same]])]
                left, right = before[tells], after[tells]
                by = len(right) and start <= right[0] and right[-1] < start + len(near_by)
                drawn = near_by[right - start] if by else self.draws[order[right]]
                agreed.append(self._agreed(near_by[left - start], drawn))
                one.append(order[left])
                other.append(order[right])
            yield self._alike(np.concatenate(one), np.concatenate(other), np.concatenate(agreed), least)

    def _alike(self, one: Numbers, other: Numbers, agreed: Numbers, least: float) -> Candidates:
        likeness = self._likeness(agreed)
        cosine = 2 * likeness / (1 + likeness)
        enough = cosine >= least
        one, other = one[enough], other[enough]
        return Candidates(np.minimum(one, other), np.maximum(one, other), cosine[enough])

    def _agreed(self, one: Numbers, other: Numbers) -> Numbers:
        """How many draws of texts are the same, [P]."""
        if self._bits == 8:
            return _count(one == other)
        differ = one ^ other
        return _count(differ < 0x10) + _count((differ & 0x0F) == 0)

    def _likeness(self, agreed: Numbers) -> Numbers:
        """The share of the n-grams drawn that are the same, without what agrees by chance, [P]."""
        share, chance = agreed.astype(np.float32) / np.float32(DRAWS), np.float32(0.5**self._bits)
        return np.asarray(np.maximum((share - chance) / (1 - chance), 0))


def _count(same: Numbers) -> Numbers:
    """How many are true in each row; eight of them are added at once, as the bytes of a number."""
    sums = same.view(np.uint64).sum(1, dtype=np.uint64)
    return np.asarray(sums * np.uint64(0x0101010101010101) >> np.uint64(56))


def _neighbours(own: Numbers, count: int, asked: Numbers, others: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Pairs of places in a list of ``count``: of the ``own`` and those that come next, of the ``asked`` and others."""
    for step in range(1, NEIGHBOURS + 1):
        left = own[own < count - step]
        yield left, left + step
    after = np.searchsorted(others, asked)
    for step in range(-ACROSS, ACROSS):
        within = (after + step >= 0) & (after + step < len(others))
        yield asked[within], others[(after + step)[within]]
