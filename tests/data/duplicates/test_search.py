"""The search for near texts: the same whether all pairs are compared or sketches are, and as the formula has it."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.data.duplicates import search
from instil.data.duplicates.candidates import Bounds
from instil.data.duplicates.grams import BITS, Numbers, Rarity, Vectors, in_chunks, n_grams
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
    read = by_sketches(texts, side, monkeypatch)
    assert ((read.nearest_N >= 0) == (held.nearest_N >= 0)).mean() > 0.995
    assert (read.group_N == held.group_N).mean() > 0.99
    assert not relatives(texts, side).exact  # too long to be compared in memory
    monkeypatch.setattr(search, "SAMPLED", 100)
    sampled = by_sketches(texts, side, monkeypatch)
    near = held.cosine_N > 0.93  # rarity of a sample moves a cosine a little
    assert ((sampled.nearest_N >= 0) & near).sum() >= 0.95 * near.sum()


def test_it_is_a_function_of_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_with_relatives(500)
    one, other = (by_sketches(texts, None, monkeypatch) for _ in range(2))
    assert (one.group_N == other.group_N).all()


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
