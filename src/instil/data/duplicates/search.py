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
from instil.data.duplicates.groups import Groups
from instil.data.subset import some
from instil.data.words import without_punctuation

NEAR = 0.9
STEPS = 3  # of a search, for every text: it is hashed, read and compared
EXACTLY = 10_000  # different texts
SAMPLED = 200_000  # texts by which rarity is told
HELD, HELD_MANY = 32_000_000, 16_000_000  # n-grams of texts that are held in memory; of more texts than `EXACTLY`
A_LETTER = 2  # n-grams that a letter brings, about
TOLD = 1_000  # texts between two ticks
DRAWN = 0.5  # the share of a comparison that comes after the draws
MARGIN = 0.12  # by which draws may tell a cosine too low
WAITING = 1_000_000  # pairs that wait for others, to be compared together
FIRST, GROWS = 1_000, 4  # pairs compared at first, the nearest ones, which may settle what others would tell
MOST, MOST_READ = 200_000, 100_000  # at once, of texts in memory and of texts to be read again
LETTERS = 1_000_000  # of texts that are read again to be compared at once
TOGETHER = 1 << 18  # texts that are told of at once
FAILED = 32  # comparisons without a find after which two texts that are read again are let be

Tick = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Relatives:
    """What a search found.

    ``nearest_N`` is for each text of one side the number of the nearest one of the other side (-1: none is near), and
    ``cosine_N`` their cosine; where texts had to be read again it is one that is near. ``group_N`` names groups of
    texts that are near to one another, or to some that are near to others, within their side. ``exact`` says whether
    all pairs were compared.
    """

    nearest_N: Numbers
    cosine_N: Numbers
    group_N: Numbers
    exact: bool


def relatives(
    texts: Sequence[str],
    other_side: Numbers | None = None,
    threshold: float = NEAR,
    tick: Tick | None = None,
    *,
    both: bool = True,
) -> Relatives:
    """Search texts for near ones.

    Args:
        texts: may be read from elsewhere one by one; each is read a few times.
        other_side: which texts are the other side's, [N] bool; without it all are on one side.
        threshold: the cosine from which on two texts are near.
        tick: told how many of ``STEPS * len(texts)`` steps are done.
        both: whether the nearest one is wanted for texts of both sides, or of the other side only.
    """
    tick = tick or (lambda steps: None)
    other = np.zeros(len(texts), bool) if other_side is None else other_side
    different = Different(texts, tick)
    search = _Search(different, other, threshold, both=both)
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
        letters = np.zeros(len(texts), np.uint32)
        for at, text in enumerate(texts):
            cleaned = without_punctuation(text)
            letters[at] = len(cleaned) if cleaned.strip() else 0
            hashes[at] = hashed(cleaned)
            if at % TOLD == TOLD - 1:
                tick(TOLD)
        tick(len(texts) % TOLD)
        at_N = np.flatnonzero(letters).astype(np.int32)
        # As np.unique does, which takes three times as much memory.
        hashes = hashes[at_N]
        order = np.argsort(hashes, kind="stable").astype(np.int32)
        hashes = hashes[order]
        new = np.ones(len(order), bool)
        np.not_equal(hashes[1:], hashes[:-1], out=new[1:])
        del hashes
        begin = np.flatnonzero(new).astype(np.int32)
        first, copies = order[begin], np.diff(begin, append=np.int32(len(order)))
        del begin
        standing = np.argsort(first).astype(np.int32)  # as they stand, and not by their hashes
        place = np.empty(len(standing), np.int32)
        place[standing] = np.arange(len(standing), dtype=np.int32)
        self.first_U: Numbers = at_N[first[standing]]
        self.copies_U = copies[standing]
        del first, copies, standing
        self.letters_U = letters[self.first_U]
        self.which_N = np.full(len(texts), -1, np.int32)
        self.which_N[at_N[order]] = place[np.cumsum(new, dtype=np.int32) - 1]
        self._rarity, self._vectors = self._read(tick)

    def __len__(self) -> int:
        return len(self.first_U)

    def _chunks(self, numbers: Numbers) -> Iterator[Grams]:
        return in_chunks(some(self._texts, self.first_U[numbers]))

    def _read(self, tick: Tick) -> tuple[Rarity, Vectors | None]:
        """The rarity of n-grams, and the vectors of all texts if they are not too many."""
        step = -(-len(self) // SAMPLED) or 1
        numbers = np.arange(0, len(self), step)
        few = len(self) <= EXACTLY or A_LETTER * int(self.letters_U.sum(dtype=np.int64)) <= HELD_MANY
        held: list[Grams] | None = [] if few else None

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
        del self.copies_U  # it is told
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
        letters = np.cumsum(self.letters_U[one_P].astype(np.int64) + self.letters_U[other_P])
        for own in np.split(np.arange(len(order)), np.flatnonzero(np.diff(letters // LETTERS)) + 1):
            found_P[order[own]] = self._read_again(one_P[own], other_P[own])
        return found_P

    def let_go(self) -> None:
        """Nothing is read or compared any more."""
        self.first_U = self.letters_U = np.zeros(0, np.int32)
        self._vectors = None

    def _read_again(self, one_P: Numbers, other_P: Numbers) -> Numbers:
        numbers, places = np.unique(np.concatenate([one_P, other_P]), return_inverse=True)
        vectors = Vectors([joined(list(self._chunks(numbers)))], self._rarity)
        return vectors.cosines(places[: len(one_P)], places[len(one_P) :])


class _Search:
    """Compares candidates, the likeliest first, and only those that can still tell something."""

    def __init__(self, different: Different, other_N: Numbers, threshold: float, *, both: bool) -> None:
        self._different, self._threshold = different, threshold
        count, shown = len(different), different.which_N >= 0
        self._here, self._there = np.zeros(count, bool), np.zeros(count, bool)  # a text may stand on both sides
        self._here[different.which_N[shown & ~other_N]] = True
        self._there[different.which_N[shown & other_N]] = True
        # For a text here the nearest there, and the other way round; one that is near where texts are read again.
        any_near = not different.held
        self._nearest_there = _Nearest(self._there if both else np.zeros(count, bool), any_near=any_near)
        self._nearest_here = _Nearest(self._here, any_near=any_near)
        self._group_here, self._group_there = Groups(count), Groups(count)
        self._failed = np.zeros(0 if different.held else count, np.uint8)

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
        waiting: list[Candidates] = []
        for tree in range(len(sketches)):
            least = self._threshold - MARGIN
            for candidates in sketches.pairs(tree, least, self._here, self._there, self._telling):
                waiting.append(candidates)
                if sum(len(each.one_P) for each in waiting) > WAITING:
                    self._compare(waiting)
                    waiting = []
            yield DRAWN / len(sketches)
        del sketches  # much memory, which is wanted now
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
        start, size, most = 0, FIRST, MOST if self._different.held else MOST_READ
        while start < len(one):
            now = slice(start, start + size)
            self._compare_in_rounds(one[now], other[now], bound[now])
            start, size = start + size, min(most, size * GROWS)

    def _compare_in_rounds(self, one: Numbers, other: Numbers, bound: Numbers) -> None:
        """Compare pairs; where texts are read again only the first of each group or text, then of what still tells."""
        while len(tells := np.flatnonzero(self._telling(one, other, bound))):
            one, other, bound = one[tells], other[tells], bound[tells]
            if self._different.held:
                self._compare_now(one, other)
                return
            now = np.zeros(len(one), bool)
            for texts in (one, other):
                for groups in (self._group_here, self._group_there):
                    now[np.unique(groups.of(texts), return_index=True)[1]] = True
            self._compare_now(one[now], other[now])
            one, other, bound = one[~now], other[~now], bound[~now]

    def _compare_now(self, one: Numbers, other: Numbers) -> None:
        cosines = self._different.cosines(one, other)
        near = cosines >= self._threshold
        self._note(one[near], other[near], cosines[near])
        if len(self._failed):
            for side in (one, other):
                failed, times = np.unique(side[~near], return_counts=True)
                self._failed[failed] = np.minimum(self._failed[failed] + times, FAILED)

    def _telling(self, one: Numbers, other: Numbers, bound: Numbers | float = 1.0) -> Numbers:
        """Which pairs would join two groups, or be nearer than what is known, if their cosine is the bound."""
        tells = np.zeros(len(one), bool)
        for side, groups in ((self._here, self._group_here), (self._there, self._group_there)):
            within = np.flatnonzero(side[one] & side[other])
            tells[within] = groups.of(one[within]) != groups.of(other[within])
        for nearest in (self._nearest_here, self._nearest_there):
            tells |= nearest.tells(one, other, bound) | nearest.tells(other, one, bound)
        if len(self._failed):
            tells &= np.minimum(self._failed[one], self._failed[other]) < FAILED
        return tells

    def _note(self, one: Numbers, other: Numbers, cosines: Numbers) -> None:
        for side, groups in ((self._here, self._group_here), (self._there, self._group_there)):
            within = side[one] & side[other]
            groups.join(one[within], other[within])
        for nearest in (self._nearest_here, self._nearest_there):
            if not nearest.wanted:
                continue
            nearest.note(np.concatenate([one, other]), np.concatenate([other, one]), np.tile(cosines, 2))

    def found(self, other_N: Numbers, *, exact: bool) -> Relatives:
        """For every text, copies and all."""
        self._different.let_go()
        count, which_N = len(other_N), self._different.which_N
        nearest_N, group_N = np.full(count, -1, np.int32), np.arange(count, dtype=np.int32)
        cosine_N = np.zeros(count, self._nearest_here.cosines.dtype)

        def pieces(side: bool) -> Iterator[tuple[Numbers, Numbers]]:
            """Numbers of a side's texts, and which different ones they are, some at a time."""
            for start in range(0, count, TOGETHER):
                which = which_N[start : start + TOGETHER]
                at = np.flatnonzero((which >= 0) & (other_N[start : start + TOGETHER] == side))
                yield at + start, which[at]

        def first_of(side: bool, names: Numbers | None = None) -> Numbers:
            """The first copy on a side of each different text, or of each group of them."""
            first = np.full(len(self._here), count, np.int32)
            for at, text in pieces(side):
                np.minimum.at(first, text if names is None else names[text], at.astype(np.int32))
            return first

        for side, nearest, groups in (
            (False, self._nearest_there, self._group_here),
            (True, self._nearest_here, self._group_there),
        ):
            group = groups.every()
            name = first_of(side, group)  # a group is called by its first text
            for at, text in pieces(side):
                group_N[at] = name[group[text]]
            del name
            if nearest.wanted:
                first = first_of(not side)
                for at, text in pieces(side):
                    same = first[text] < count
                    other = np.where(same, text, nearest.which[text])
                    cosine_N[at] = np.where(same, 1.0, nearest.cosines[text])
                    nearest_N[at] = np.where(other >= 0, first[other], -1)
        return Relatives(nearest_N, cosine_N, group_N, exact)


class _Nearest:
    """For every text the nearest of those on one side, or one of them that is near."""

    def __init__(self, side: Numbers, *, any_near: bool) -> None:
        self._side, self._any, self.wanted = side, any_near, bool(side.any())
        count = len(side) if self.wanted else 0
        self.cosines = np.zeros(count, np.float32 if any_near else np.float64)
        self.which = np.full(count, -1, np.int32)
        if self.wanted:
            self.cosines[side] = np.inf  # none is nearer than itself

    def tells(self, one: Numbers, other: Numbers, bound: Numbers | float) -> Numbers:
        if not self.wanted:
            return np.zeros(len(one), bool)
        known = self.cosines[one]
        nearer: Numbers = known == 0 if self._any else np.less(known, bound)
        return self._side[other] & nearer

    def note(self, one: Numbers, other: Numbers, cosines: Numbers) -> None:
        tells = self.tells(one, other, cosines)
        one, other, cosines = one[tells], other[tells], cosines[tells]
        order = np.lexsort((-other, cosines))  # the last one stays: the nearest, of equally near ones the first
        self.cosines[one[order]] = cosines[order]
        self.which[one[order]] = other[order]
