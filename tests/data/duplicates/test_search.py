"""The search for near texts: the same whether all pairs are compared or sketches are, and as the formula has it."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.data.duplicates import candidates, groups, search
from instil.data.duplicates.candidates import Bounds
from instil.data.duplicates.grams import BITS, Numbers, Rarity, Vectors, in_chunks, n_grams
from instil.data.duplicates.groups import Groups
from instil.data.duplicates.search import STEPS, Relatives, relatives

SYLLABLES = "ba co di fu ge hi jo ku la me ni po qua re si to vu wi xe yo za bri stu flo".split()


def word(draw: random.Random) -> str:
    return "".join(draw.choices(SYLLABLES, k=draw.randrange(1, 4)))


def texts_with_relatives(count: int, seed: int = 1) -> list[str]:
    """Sentences of made-up words, of which some are earlier ones again, as they are or with a word changed."""
    draw = random.Random(seed)
    found: list[str] = []
    for _ in range(count):
        chance = draw.random()
        if found and chance < 0.05:
            found.append(draw.choice(found).upper())
        elif found and chance < 0.2:
            words = draw.choice(found).split()
            words[draw.randrange(len(words))] = word(draw)
            found.append(" ".join(words))
        else:
            found.append(" ".join(word(draw) for _ in range(draw.randrange(6, 16))))
    return found


def naive_cosines(texts: list[str]) -> Numbers:
    """TF-IDF over characters, written out, of every text with every text."""
    counts = []
    for text in texts:
        kept = "".join(letter for letter in text.lower() if letter.isalnum() or letter in " _")
        counts.append(Counter(kept[at : at + n] for n in (1, 2, 3) for at in range(len(kept) - n + 1)))
    holders = Counter(gram for count in counts for gram in count)
    columns = {gram: at for at, gram in enumerate(holders)}
    vectors = np.zeros((len(texts), len(columns)))
    for at, count in enumerate(counts):
        for gram, times in count.items():
            vectors[at, columns[gram]] = times * (math.log((1 + len(texts)) / (1 + holders[gram])) + 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors @ vectors.T)


def by_sketches(
    texts: list[str], side: Numbers | None, monkeypatch: pytest.MonkeyPatch, threshold: float = 0.9
) -> Relatives:
    with monkeypatch.context() as patch:
        patch.setattr(search, "EXACTLY", 0)
        return relatives(texts, side, threshold)


def test_the_nearest_are_those_of_the_formula() -> None:
    texts = texts_with_relatives(200)
    side = np.arange(200) >= 140
    found = relatives(texts, side)
    assert found.exact
    cosines = np.where(side[:, None] != side[None, :], naive_cosines(texts), 0.0)
    nearest = cosines.max(1)
    assert ((found.nearest_N >= 0) == (nearest >= 0.9)).all()
    near = found.nearest_N >= 0
    assert near.sum() >= 10
    assert found.cosine_N[near] == pytest.approx(nearest[near], abs=1e-6)
    assert cosines[near, found.nearest_N[near]] == pytest.approx(nearest[near], abs=1e-6)


def test_groups_are_chains_of_near_texts() -> None:
    texts = texts_with_relatives(150, seed=2)
    group = relatives(texts).group_N
    near = naive_cosines(texts) >= 0.9
    for _ in range(8):
        near = near @ near
    assert (near == (group[:, None] == group[None, :])).all()
    assert (group == near.argmax(1)).all()  # called by their first texts
    assert len(set(group.tolist())) < 140


def test_groups_do_not_reach_across_sides() -> None:
    texts = ["count the apples in the red basket", "count the apples in the red basket", "something else entirely"]
    found = relatives(texts, np.array([False, True, False]))
    assert found.group_N.tolist() == [0, 1, 2]
    assert found.nearest_N.tolist() == [1, 0, -1]


def test_near_texts_of_two_sides_are_no_group() -> None:
    """Two texts here are near to one there, and not to one another."""
    long = "one two three four five six seven eight nine ten eleven twelve"
    texts = [f"{long} thirteen", long, f"{long} and more", *texts_with_relatives(20)]
    found = relatives(texts, np.arange(23) == 1, 0.85)
    assert found.nearest_N[0] == found.nearest_N[2] == 1
    assert found.group_N[1] == 1
    assert found.group_N[0] != found.group_N[1]


def test_sketches_find_what_comparing_all_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_with_relatives(3000)
    side = np.random.default_rng(2).random(3000) < 0.15
    exact, sketched = relatives(texts, side), by_sketches(texts, side, monkeypatch)
    assert (exact.exact, sketched.exact) == (True, False)
    near = exact.nearest_N >= 0
    assert near.sum() > 100
    found = sketched.nearest_N >= 0
    assert not (found & ~near).any()  # what is told is true
    assert (found & near).sum() >= 0.98 * near.sum()
    assert (sketched.cosine_N[found] <= exact.cosine_N[found] + 1e-9).all()
    assert (sketched.cosine_N[found] >= 0.9).all()
    one, other = len(set(exact.group_N.tolist())), len(set(sketched.group_N.tolist()))
    assert one <= other <= 1.01 * one


def test_sketches_find_farther_texts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_with_relatives(1500)
    side = np.arange(1500) >= 1200
    exact, sketched = relatives(texts, side, 0.8), by_sketches(texts, side, monkeypatch, 0.8)
    near = exact.nearest_N >= 0
    assert near.sum() > (relatives(texts, side).nearest_N >= 0).sum()
    assert ((sketched.nearest_N >= 0) & near).sum() >= 0.9 * near.sum()


def test_texts_that_are_all_alike_cost_no_more_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand texts of one form, of which nearly all are near to all others."""
    form = (
        "Please decide whether the following review of a product in our shop is a positive or a negative one, and "
        "answer in one word, without giving any reason for your choice and without repeating the review. The review: {}"
    )
    texts = [form.format(word(random.Random(n))) for n in range(1000)]
    side = np.arange(1000) % 10 == 0
    compared = 0
    real = Vectors.cosines

    def counting(self: Vectors, one: Numbers, other: Numbers) -> Numbers:
        nonlocal compared
        compared += len(one)
        return real(self, one, other)

    monkeypatch.setattr(Vectors, "cosines", counting)
    exact, of_all = relatives(texts, side), compared
    compared = 0
    sketched = by_sketches(texts, side, monkeypatch)
    assert (exact.nearest_N >= 0).all()
    assert (sketched.nearest_N >= 0).all()
    assert compared < 200 * 1000
    assert of_all < 500_000 / 2  # pairs that could tell nothing were left out
    assert len(set(exact.group_N.tolist())) == 2


def test_texts_that_are_not_held_in_memory_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_with_relatives(800, seed=3)
    side = np.arange(800) >= 600
    held = by_sketches(texts, side, monkeypatch)
    monkeypatch.setattr(search, "HELD", 1000)
    monkeypatch.setattr(search, "LETTERS", 10_000)
    read = by_sketches(texts, side, monkeypatch)
    assert ((read.nearest_N >= 0) == (held.nearest_N >= 0)).all()
    assert (read.cosine_N[read.nearest_N >= 0] >= 0.9).all()
    assert (read.group_N == held.group_N).mean() > 0.99
    assert not relatives(texts, side).exact  # too long to be compared in memory
    monkeypatch.setattr(search, "SAMPLED", 100)
    sampled = by_sketches(texts, side, monkeypatch)
    near = held.cosine_N > 0.93  # rarity of a sample moves a cosine a little
    assert ((sampled.nearest_N >= 0) & near).sum() >= 0.95 * near.sum()


def test_draws_do_not_depend_on_how_many_n_grams_are_drawn_from_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long texts are drawn from in pieces, short ones together: the least wait of each order wins, as written out."""
    chunk = n_grams([*texts_with_relatives(30), "a", " ".join(texts_with_relatives(40, seed=4))])
    weights = np.random.default_rng(1).random(len(chunk.codes_G)) + 0.1
    found = []
    for at_once in (7, 64, 2048, 10**6):
        monkeypatch.setattr(candidates, "AT_ONCE", at_once)
        sketches = candidates.Sketches(len(chunk), 0.9)
        sketches.draw(0, chunk.starts, chunk.codes_G, weights)
        found.append(sketches.draws)
    assert all((draws == found[0]).all() for draws in found)
    assert len({tuple(draws) for draws in found[0].tolist()}) > 25
    for text, (start, end) in enumerate(pairwise(chunk.starts.tolist())):
        alone = candidates.Sketches(1, 0.9)
        alone.draw(0, np.array([0, end - start]), chunk.codes_G[start:end], weights[start:end])
        assert (alone.draws[0] == found[0][text]).all()


def test_of_very_many_texts_half_a_byte_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """In half the memory they tell nearly as well who is alike: what agrees by chance is taken off."""
    texts = texts_with_relatives(1500)
    side = np.arange(1500) % 7 == 0
    exact = relatives(texts, side)
    likeness = {}
    for many in (10_000, 1000):
        monkeypatch.setattr(candidates, "MANY", many)
        sketched = by_sketches(texts, side, monkeypatch)
        near, found = exact.nearest_N >= 0, sketched.nearest_N >= 0
        assert not (found & ~near).any()
        assert (found & near).sum() >= 0.97 * near.sum()
        different = search.Different(texts, lambda steps: None)
        draw = different.sketches(0.9)
        while True:
            try:
                next(draw)
            except StopIteration as done:
                sketches = done.value
                break
        one, other = np.divmod(np.random.default_rng(3).choice(len(different) ** 2, 20_000), len(different))
        one, other = np.append(one, np.arange(1, 1000)), np.append(other, np.arange(999))  # with relatives among them
        agreed = sketches._agreed(sketches.draws[one], sketches.draws[other])
        likeness[many] = sketches._likeness(agreed), sketches.draws.nbytes
    (whole, of_whole), (half, of_half) = likeness.values()
    assert of_whole == 2 * of_half
    assert abs(float((whole - half).mean())) < 0.01
    assert float(np.abs(whole - half).max()) < 0.2


@pytest.mark.parametrize("exactly", [0, 10_000])
def test_the_nearest_of_one_side_alone(exactly: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "EXACTLY", exactly)
    texts = texts_with_relatives(400)
    side = np.arange(400) % 5 == 0
    both, one = (relatives(texts, side, both=both) for both in (True, False))
    assert (both.nearest_N[side] == one.nearest_N[side]).all()
    assert (both.cosine_N[side] == one.cosine_N[side]).all()
    assert (both.group_N == one.group_N).all()
    assert (both.nearest_N[~side] >= 0).any()
    assert (one.nearest_N[~side] == -1).all()


def test_texts_that_are_read_again_are_not_compared_over_and_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those that are all near, nor those that are all not quite near; and in pieces of few letters."""
    form = "Please decide whether this review of a product in our shop is a positive or a negative one, and why: {}"
    for tail in (1, 5):
        made = random.Random(tail)
        texts = [form.format(" ".join(word(made) for _ in range(tail))) for _ in range(600)]
        side = np.arange(600) % 10 == 0
        compared: list[int] = []
        real = Vectors.cosines

        def counting(self: Vectors, one: Numbers, other: Numbers, real: Any = real, told: Any = compared) -> Numbers:
            told.append(len(one))
            return real(self, one, other)

        with monkeypatch.context() as patch:
            patch.setattr(search, "HELD_MANY", 0)
            patch.setattr(search, "LETTERS", 5000)
            patch.setattr(search, "FAILED", 4)
            patch.setattr(Vectors, "cosines", counting)
            found = by_sketches(texts, side, patch)
        assert sum(compared) < 12 * 600
        assert max(compared) < 100
        if tail == 1:
            assert len(set(found.group_N.tolist())) <= 20
            assert (found.nearest_N[side] >= 0).all()


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40), st.integers(1, 5))
def test_groups_are_those_of_joining_one_by_one(pairs: list[tuple[int, int]], at_once: int) -> None:
    groups, naive = Groups(20), list(range(20))
    for start in range(0, len(pairs), at_once):
        some = np.array(pairs[start : start + at_once], np.int64)
        groups.join(some[:, 0], some[:, 1])
        for one, other in some.tolist():
            low, high = sorted((naive[one], naive[other]))
            naive = [low if name == high else name for name in naive]
        assert groups.of(some[:, 0]).tolist() == [naive[one] for one in some[:, 0]]
    assert groups.every().tolist() == naive


def test_it_is_a_function_of_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_with_relatives(500)
    one, other = (by_sketches(texts, None, monkeypatch) for _ in range(2))
    assert (one.group_N == other.group_N).all()


@pytest.mark.parametrize("both", [False, True])
def test_what_is_told_does_not_depend_on_how_many_are_told_of_at_once(
    both: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = texts_with_relatives(400)
    texts += [*texts[:50], "..."]  # copies, and one without a letter
    side = np.random.default_rng(4).random(len(texts)) < 0.3
    wanted = relatives(texts, side, both=both)
    for module in (search, groups):
        monkeypatch.setattr(module, "TOGETHER", 7)
    found = relatives(texts, side, both=both)
    for name in ("nearest_N", "cosine_N", "group_N"):
        assert (getattr(found, name) == getattr(wanted, name)).all(), name


def test_equal_texts_are_found_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """One held-out row among hundreds of equal training rows, and the other way round."""
    texts = ["say hello to the world"] * 500 + texts_with_relatives(20)
    for exactly in (0, 10_000):
        monkeypatch.setattr(search, "EXACTLY", exactly)
        side = np.arange(520) == 250
        found = relatives(texts, side)
        assert (found.nearest_N[:500] == np.where(side[:500], 0, 250)).all()
        assert (found.cosine_N[:500] == 1.0).all()
        assert len(set(found.group_N[:500].tolist())) == 2


@pytest.mark.parametrize("texts", [[], [""], ["", "!?", "..."], ["!", "a"], ["\n", " "]])
def test_texts_without_a_letter_are_near_nothing(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    side = np.arange(len(texts)) % 2 == 1
    for found in (relatives(texts, side), by_sketches(texts, side, monkeypatch)):
        assert (found.nearest_N == -1).all()
        assert found.group_N.tolist() == list(range(len(texts)))


@pytest.mark.parametrize("exactly", [0, 10_000])
@pytest.mark.parametrize("held", [100, 10**9])
def test_every_step_is_told(exactly: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "EXACTLY", exactly)
    monkeypatch.setattr(search, "HELD", held)
    texts = [*texts_with_relatives(1200), "", "..."]
    told: list[int] = []
    relatives(texts, None, tick=told.append)
    assert sum(told) == STEPS * len(texts)
    assert all(steps >= 0 for steps in told)
    assert len(told) > 5


TEXTS = st.lists(st.text(st.sampled_from("ab Ab\u0301\U000e0101\U00020101漢ก."), max_size=12), min_size=1, max_size=8)


@given(TEXTS)
def test_n_grams_are_those_of_slices(texts: list[str]) -> None:
    found = n_grams(texts)
    for at, text in enumerate(texts):
        own = slice(found.starts[at], found.starts[at + 1])
        wanted = Counter(text[i : i + n] for n in (1, 2, 3) for i in range(len(text) - n + 1))
        assert len(found.codes_G[own]) == len(wanted)
        assert sorted(found.times_G[own].tolist()) == sorted(wanted.values())
        assert found.codes_G[own].max(initial=0) < 1 << 3 * BITS


@given(TEXTS)
def test_no_cosine_is_above_its_bound(texts: list[str]) -> None:
    chunks = list(in_chunks([*texts, *texts_with_relatives(5)]))
    vectors = Vectors(chunks, Rarity((chunk, np.ones(len(chunk), np.int64)) for chunk in chunks))
    bounds = Bounds(vectors)
    for start in bounds.blocks:
        found = bounds.pairs(start, -1.0)
        assert len(found.one_P) == len(vectors) * (len(vectors) - 1) // 2
        assert (vectors.cosines(found.one_P, found.other_P) <= found.bound_P).all()
