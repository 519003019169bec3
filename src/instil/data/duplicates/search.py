"""The search for texts that say nearly the same: between the parts of a split, and within one.

Up to `EXACTLY` different texts every pair is found; among more those that the sketches show, and of each the cosine is
computed from the texts themselves before it counts. Equal texts are found by their hashes, however many there are.

Shape suffixes: N texts · U different ones · P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from instil.data.duplicates.candidates import Bounds, Candidates, Sketches
from instil.data.duplicates.grams import ROWS_AT_ONCE, Grams, Numbers, Rarity, Vectors, in_chunks, joined
from instil.data.words import without_punctuation

NEAR = 0.9
STEPS = 3  # of a search, for every text: it is hashed, read and compared
EXACTLY = 10_000  # different texts
SAMPLED = 200_000  # texts by which rarity is told
HELD = 32_000_000  # n-grams of texts that are held in memory
TOLD = 1_000  # texts between two ticks
DRAWN = 0.5  # the share of a comparison that comes after the draws
MARGIN, MARGIN_READ = 0.12, 0.08  # by which draws may tell a cosine too low; less where texts must be read again
WAITING = 2_000_000  # pairs that wait for others, to be compared together
FIRST, GROWS = 1_000, 4  # pairs compared at first, the nearest ones, which may settle what others would tell
MOST, MOST_READ = 200_000, 16_000  # at once, of texts in memory and of texts to be read again

Tick = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Relatives:
    """What a search found.

    ``nearest_N`` is for each text of one side the number of the nearest one of the other side (-1: none is near), and
    ``cosine_N`` their cosine; ``group_N`` names groups of texts that are near to one another, or to some that are near
    to others, within their side. ``exact`` says whether all pairs were compared.
    """

    nearest_N: Numbers
    cosine_N: Numbers
    group_N: Numbers
    exact: bool


def relatives(
    texts: Sequence[str], other_side: Numbers | None = None, threshold: float = NEAR, tick: Tick | None = None
) -> Relatives:
    """Search texts for near ones.

    Args:
        texts: may be read from elsewhere one by one; each is read a few times.
        other_side: which texts are the other side's, [N] bool; without it all are on one side.
        threshold: the cosine from which on two texts are near.
        tick: told how many of ``STEPS * len(texts)`` steps are done.
    """
    tick = tick or (lambda steps: None)
    other = np.zeros(len(texts), bool) if other_side is None else other_side
    different = Different(texts, tick)
    search = _Search(different, other, threshold)
    exact = search.run(tick)
    return search.found(other, exact=exact)


def hashed(text: str) -> int:
    """64 bits that tell texts apart."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def first_of_equal(hashes_N: Numbers) -> Numbers:
    """For each hash the number of the first equal one, [N]."""
    _, first, which = np.unique(hashes_N, return_index=True, return_inverse=True)
    return np.asarray(first[which])


class Different:
    """The different texts among many, but for case and punctuation, and without those that have no letter.

    ``first_U`` is the number of the first of each, ``which_N`` tells of each text which one it is (-1: none), and
    ``copies_U`` how many are the same.
    """

    def __init__(self, texts: Sequence[str], tick: Tick) -> None:
        self._texts = texts
        hashes = np.zeros(len(texts), np.uint64)
        shown = np.zeros(len(texts), bool)
        for at, text in enumerate(texts):
            cleaned = without_punctuation(text)
            shown[at] = bool(cleaned.strip())
            hashes[at] = hashed(cleaned)
            if at % TOLD == TOLD - 1:
                tick(TOLD)
        tick(len(texts) % TOLD)
        at_N = np.flatnonzero(shown)
        _, first, which, copies = np.unique(hashes[at_N], return_index=True, return_inverse=True, return_counts=True)
        order = np.argsort(first)  # as they stand, and not by their hashes
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        self.first_U = at_N[first[order]]
        self.copies_U = copies[order]
        self.which_N = np.full(len(texts), -1)
        self.which_N[at_N] = place[which]
        self._rarity, self._vectors = self._read(tick)

    def __len__(self) -> int:
        return len(self.first_U)

    def _chunks(self, numbers: Numbers) -> Iterator[Grams]:
        return in_chunks(self._texts[at] for at in self.first_U[numbers].tolist())

    def _read(self, tick: Tick) -> tuple[Rarity, Vectors | None]:
        """The rarity of n-grams, and the vectors of all texts if they are not too many."""
        step = -(-len(self) // SAMPLED) or 1
        numbers = np.arange(0, len(self), step)
        held: list[Grams] | None = [] if step == 1 else None

        def chunks() -> Iterator[tuple[Grams, Numbers]]:
            nonlocal held
            at = grams = 0
            for chunk in self._chunks(numbers):
                yield chunk, self.copies_U[numbers[at : at + len(chunk)]]
                at += len(chunk)
                grams += len(chunk.codes_G)
                if held is not None:
                    held.append(chunk)
                    held = held if grams <= HELD else None
                tick(len(chunk))

        rarity = Rarity(chunks())
        tick(len(self._texts) - len(numbers))
        return rarity, None if held is None else Vectors(held, rarity)

    def bounds(self) -> Bounds:
        """For all pairs."""
        assert self._vectors is not None, "so few texts are held in memory, unless they are books"
        return Bounds(self._vectors)

    @property
    def held(self) -> bool:
        """Whether the vectors of all are in memory."""
        return self._vectors is not None

    def sketches(self, threshold: float) -> Generator[float, None, Sketches]:
        """For many; yields which share of the whole comparison is done."""
        sketches, at = Sketches(len(self), threshold), 0
        for starts, codes, weights in self._weighted():
            sketches.draw(at, starts, codes, weights)
            at += len(starts) - 1
            yield (1 - DRAWN) * (len(starts) - 1) / len(self)
        return sketches

    def _weighted(self) -> Iterator[tuple[Numbers, Numbers, Numbers]]:
        """Where the n-grams of texts begin, their codes, and their weights, of some hundreds of texts at a time."""
        if (held := self._vectors) is None:
            for chunk in self._chunks(np.arange(len(self))):
                yield chunk.starts, chunk.codes_G, chunk.times_G * self._rarity.of(chunk.codes_G)
            return
        for at in range(0, len(held), ROWS_AT_ONCE):
            starts = held.starts[at : at + ROWS_AT_ONCE + 1]
            own = slice(starts[0], starts[-1])
            yield starts - starts[0], self._rarity.codes[held.columns_G[own]], held.weights_G[own]

    def cosines(self, one_P: Numbers, other_P: Numbers) -> Numbers:
        """Of pairs of different texts."""
        order = np.lexsort((other_P, one_P))
        one_P, other_P = one_P[order], other_P[order]
        found_P = np.empty(len(order))
        if self._vectors is not None:
            found_P[order] = self._vectors.cosines(one_P, other_P)
            return found_P
        numbers, places = np.unique(np.concatenate([one_P, other_P]), return_inverse=True)
        vectors = Vectors([joined(list(self._chunks(numbers)))], self._rarity)
        found_P[order] = vectors.cosines(places[: len(one_P)], places[len(one_P) :])
        return found_P


class _Search:
    """Compares candidates, the likeliest first, and only those that can still tell something."""

    def __init__(self, different: Different, other_N: Numbers, threshold: float) -> None:
        self._different, self._threshold = different, threshold
        count, shown = len(different), different.which_N >= 0
        self._here, self._there = np.zeros(count, bool), np.zeros(count, bool)  # a text may stand on both sides
        self._here[different.which_N[shown & ~other_N]] = True
        self._there[different.which_N[shown & other_N]] = True
        # For a text here the nearest there, and the other way round.
        self._nearest_there, self._nearest_here = _Nearest(self._there), _Nearest(self._here)
        self._group_here, self._group_there = np.arange(count), np.arange(count)

    def run(self, tick: Tick) -> bool:
        """Compare all that may be near; returns whether those are all pairs."""
        exact = len(self._different) <= EXACTLY and self._different.held
        left = len(self._different.which_N)
        for share in self._all_pairs() if exact else self._sketched_pairs():
            steps = min(left, int(share * len(self._different.which_N)))
            left -= steps
            tick(steps)
        tick(left)
        return exact

    def _all_pairs(self) -> Iterator[float]:
        """Compares all; yields which share of the work is done since the last time."""
        bounds = self._different.bounds()
        for start in bounds.blocks:
            self._compare([bounds.pairs(start, self._threshold)])
            yield 1 / len(bounds.blocks)

    def _sketched_pairs(self) -> Iterator[float]:
        """The same of those that draws show to be alike."""
        sketches = yield from self._different.sketches(self._threshold)
        margin = MARGIN if self._different.held else MARGIN_READ
        waiting: list[Candidates] = []
        for tree in range(len(sketches)):
            for candidates in sketches.pairs(tree, self._threshold - margin, self._here, self._there):
                waiting.append(candidates)
                if sum(len(each.one_P) for each in waiting) > WAITING:
                    self._compare(waiting)
                    waiting = []
            yield DRAWN / len(sketches)
        self._compare(waiting)

    def _compare(self, candidates: Sequence[Candidates]) -> None:
        if not candidates:
            return
        pairs = np.concatenate([each.one_P.astype(np.int64) * len(self._here) + each.other_P for each in candidates])
        pairs, first = np.unique(pairs, return_index=True)  # trees show the same pairs
        bound = np.concatenate([each.bound_P for each in candidates])[first]
        order = np.argsort(-bound, kind="stable")
        one, other = np.divmod(pairs[order], len(self._here))
        bound = bound[order]
        size, most = FIRST, MOST if self._different.held else MOST_READ
        while len(one):
            telling = self._telling(one, other, bound)
            one, other, bound = one[telling], other[telling], bound[telling]
            now, later = slice(size), slice(size, None)
            cosines = self._different.cosines(one[now], other[now])
            near = cosines >= self._threshold
            self._note(one[now][near], other[now][near], cosines[near])
            one, other, bound = one[later], other[later], bound[later]
            size = min(most, size * GROWS)

    def _telling(self, one: Numbers, other: Numbers, bound: Numbers) -> Numbers:
        """Which pairs would join two groups, or be nearer than what is known."""
        here, there = self._here, self._there
        tells: Numbers = here[one] & here[other] & (self._group_here[one] != self._group_here[other])
        tells = tells | (there[one] & there[other] & (self._group_there[one] != self._group_there[other]))
        for nearest in (self._nearest_here, self._nearest_there):
            tells = tells | nearest.tells(one, other, bound) | nearest.tells(other, one, bound)
        return tells

    def _note(self, one: Numbers, other: Numbers, cosines: Numbers) -> None:
        for side, group in ((self._here, self._group_here), (self._there, self._group_there)):
            within = side[one] & side[other]
            join(group, one[within], other[within])
        for nearest in (self._nearest_here, self._nearest_there):
            nearest.note(np.concatenate([one, other]), np.concatenate([other, one]), np.tile(cosines, 2))

    def found(self, other_N: Numbers, *, exact: bool) -> Relatives:
        """For every text, copies and all."""
        different = self._different
        shown = np.flatnonzero(different.which_N >= 0)
        which, there = different.which_N[shown], other_N[shown]
        count = len(other_N)
        nearest_N, cosine_N, group_N = np.full(count, -1), np.zeros(count), np.arange(count)
        for side, nearest, group in (
            (~there, self._nearest_there, self._group_here),
            (there, self._nearest_here, self._group_there),
        ):
            own, others = shown[side], shown[~side]
            first = np.full(len(different), count)
            np.minimum.at(first, which[~side], others)  # the first copy of each on the other side
            of = which[side]
            same = first[of] < count
            text = np.where(same, of, nearest.which[of])
            cosine_N[own] = np.where(same, 1.0, nearest.cosines[of])
            nearest_N[own] = np.where(text >= 0, first[text], -1)
            name = np.full(len(different), count)
            np.minimum.at(name, group[of], own)  # a group is called by its first text
            group_N[own] = name[group[of]]
        return Relatives(nearest_N, cosine_N, group_N, exact)


class _Nearest:
    """For every text the nearest of those on one side."""

    def __init__(self, side: Numbers) -> None:
        self._side = side
        self.cosines, self.which = np.zeros(len(side)), np.full(len(side), -1)
        self.cosines[side] = np.inf  # none is nearer than itself

    def tells(self, one: Numbers, other: Numbers, bound: Numbers) -> Numbers:
        return self._side[other] & (bound > self.cosines[one])

    def note(self, one: Numbers, other: Numbers, cosines: Numbers) -> None:
        tells = self.tells(one, other, cosines)
        one, other, cosines = one[tells], other[tells], cosines[tells]
        order = np.lexsort((-other, cosines))  # the last one stays: the nearest, of equally near ones the first
        self.cosines[one[order]] = cosines[order]
        self.which[one[order]] = other[order]


def join(group: Numbers, one: Numbers, other: Numbers) -> None:
    """Make one group of the groups of each pair; a group is called by its least member."""
    while len(one):
        first, second = group[one], group[other]
        apart = first != second
        one, other, first, second = one[apart], other[apart], first[apart], second[apart]
        if not len(one):
            return
        np.minimum.at(group, np.maximum(first, second), np.minimum(first, second))
        while True:
            above = group[group]
            if (above == group).all():
                break
            group[:] = above
