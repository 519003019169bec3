"""Near-duplicates, against a naive computation and the known counts of the book's data."""

from __future__ import annotations

import json
import math
import random
import unicodedata
from collections import Counter

import pytest

from instil.data.near_duplicates import Seen, leaked, nearest_of, prompt_text
from instil.data.sources import read_source
from instil.records import Example
from tests.conftest import BOOK_DATA


def naive_cosine(one: str, other: str, everything: list[str]) -> float:
    """TF-IDF over characters, written out."""

    def grams(text: str) -> Counter[str]:
        kept = "".join(letter for letter in text.lower() if letter.isalnum() or letter in " _")
        return Counter(kept[at : at + n] for n in (1, 2, 3) for at in range(len(kept) - n + 1))

    def vector(text: str) -> dict[str, float]:
        found = {}
        for gram, times in grams(text).items():
            holders = sum(gram in grams(other) for other in everything)
            found[gram] = times * (math.log((1 + len(everything)) / (1 + holders)) + 1)
        return found

    a, b = vector(one), vector(other)
    dot = sum(value * b.get(gram, 0.0) for gram, value in a.items())
    return dot / math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))


def test_the_cosine_is_that_of_the_formula() -> None:
    draw = random.Random(3)
    words = "the cat dog sat on a mat, Mat. 12 cm naïve".split()
    texts = [" ".join(draw.choices(words, k=draw.randrange(1, 7))) for _ in range(14)]
    known, asked = texts[:9], texts[9:]
    cosines, nearest = nearest_of(known, asked)
    for text, cosine, at in zip(asked, cosines, nearest, strict=True):
        each = [naive_cosine(text, other, texts) for other in known]
        assert cosine == pytest.approx(max(each), abs=1e-5)
        assert each[at] == pytest.approx(max(each), abs=1e-5)


def test_pieces_give_the_same_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"Convert {n} kilometers to {unit}." for n in range(20) for unit in ("meters", "miles")]
    whole = nearest_of(texts[:30], texts[30:])
    monkeypatch.setattr("instil.data.duplicates.grams.ROWS_AT_ONCE", 3)
    pieces = nearest_of(texts[:30], texts[30:])
    assert pieces[0] == pytest.approx(whole[0], abs=1e-6)
    assert pieces[1] == whole[1]


def test_texts_without_a_letter_are_near_nothing() -> None:
    assert nearest_of(["", "!?"], ["...", "x"])[0] == [0.0, 0.0]
    assert leaked([], [Example("a")]) == []
    assert leaked([Example("a")], []) == []


def test_rows_are_near_from_nine_tenths_on() -> None:
    """The threshold of the book's bonus material, where there is no book."""
    train = [
        Example("Describe how a bill becomes a law in the United States.", row=0),
        Example("List three tropical fruits.", row=1),
        *(Example(f"Double the number {n}.", row=n) for n in range(2, 30)),
    ]
    held_out = [
        Example("Describe the way a bill becomes a law in the United States.", row=40),
        Example("List four tropical fruits.", row=41),
    ]
    cosines, _ = nearest_of([prompt_text(row) for row in train], [prompt_text(row) for row in held_out])
    assert 0.9 < cosines[0] < 0.97
    assert 0.8 < cosines[1] < 0.9
    assert [(near.row, near.train_row) for near in leaked(train, held_out)] == [(40, 0)]


@pytest.mark.slow
def test_rows_that_leak_are_counted_by_how_near_they_are() -> None:
    """Of the starter rows, which the project wrote: as they are, and held out again with ever more of them changed."""
    train = read_source("starter").examples[:300]

    def held_out(row: int, text: str) -> Example:
        return Example(text, "An answer.", train[row].input, row=1000 + row)

    part = [held_out(row, train[row].instruction) for row in (3, 50)]
    part += [held_out(row, f"{train[row].instruction.upper()}!!") for row in (77, 120)]
    part += [held_out(row, f"{train[row].instruction} Please") for row in (160, 200)]
    part += [held_out(row, " ".join(reversed(train[row].instruction.split()))) for row in (240,)]
    part += [Example("Quetzal vex jukebox", "No.", row=n) for n in (1, 2)]
    texts = [prompt_text(row) for row in train]
    cosines, _ = nearest_of(texts, [prompt_text(row) for row in part])
    everything = [*texts, *(prompt_text(row) for row in part)]
    for at in (0, 2, 4, 6):  # by the formula written out
        asked, like = prompt_text(part[at]), train[part[at].row - 1000]
        assert cosines[at] >= naive_cosine(asked, prompt_text(like), everything) - 1e-5
    assert tuple(sum(cosine > limit for cosine in cosines) for limit in (0.5, 0.9, 0.999)) == (7, 6, 4)
    found = leaked(train, part)
    assert {near.row - 1000 for near in found} >= {3, 50, 77, 120}
    assert all(near.row == 1000 + near.train_row for near in found if near.cosine > 0.9999)
    assert not {1, 2} & {near.row for near in found}


def test_normal_forms_case_and_blank_inputs_make_no_other_row() -> None:
    others = [Example(f"Считай до {n} и дальше", row=n) for n in range(20)]
    train = [
        Example("Où est la forêt ?", input="près", row=30),
        Example("दिल्ली कहाँ है?", row=31),
        Example("안녕하세요 여러분", row=32),
    ]
    held_out = [
        Example(unicodedata.normalize("NFD", "OÙ EST LA FORÊT ?"), input="près", row=50),
        Example(unicodedata.normalize("NFD", "दिल्ली कहाँ है?"), input="  ", row=51),
        Example(unicodedata.normalize("NFD", "안녕하세요 여러분"), input="\n", row=52),
    ]
    assert [(near.row, near.train_row, near.cosine) for near in leaked([*others, *train], held_out)] == [
        (50, 30, 1.0), (51, 31, 1.0), (52, 32, 1.0),
    ]  # fmt: skip


def test_vowel_signs_tell_texts_apart() -> None:
    """Without their marks "दिन दो" and "दान दे" would be the same letters."""
    cosines, _ = nearest_of(["दिन दो"], ["दान दे", "दिन दो"])
    assert cosines[0] < 0.9
    assert cosines[1] == pytest.approx(1)


@pytest.mark.skipif(not BOOK_DATA.is_dir(), reason="the book's data are not on this machine")
def test_the_books_rows_leak_as_is_known() -> None:
    found = json.loads((BOOK_DATA / "instruction-data.json").read_text(encoding="utf-8"))
    rows = [Example(row["instruction"], row["output"], row["input"], row=n) for n, row in enumerate(found)]
    train, test, validation = rows[:935], rows[935:1045], rows[1045:]
    for part, counts in ((test, (25, 7, 3, 2)), (validation, (16, 8, 5, 4))):
        cosines, _ = nearest_of([prompt_text(row) for row in train], [prompt_text(row) for row in part])
        assert tuple(sum(cosine > limit for cosine in cosines) for limit in (0.8, 0.9, 0.95, 0.999)) == counts
    assert len(leaked(train, test)) == 7
    assert all(near.row >= 935 > near.train_row for near in leaked(train, test))


def test_texts_that_come_one_after_the_other_are_as_near_as_if_they_had_been_there() -> None:
    draw = random.Random(4)
    words = "the cat dog sat on a mat, Mat. 12 cm naïve".split()
    texts = [" ".join(draw.choices(words, k=draw.randrange(1, 7))) for _ in range(14)]
    there, one_by_one = Seen(texts), Seen(texts[:5], texts[5:])
    for text in texts[5:]:
        one_by_one.add(text)
    assert len(there) == len(one_by_one) == 14
    for asked in ["the dog sat on a mat", "a naïve cat of 12 cm", "the cat dog"]:
        cosine, number = there.nearest(asked)
        assert one_by_one.nearest(asked)[0] == pytest.approx(cosine, rel=1e-5)
        unseen = [text for text in texts if text != asked]
        assert cosine == pytest.approx(max(naive_cosine(asked, text, texts) for text in unseen), rel=1e-5)
        assert naive_cosine(asked, texts[number], texts) == pytest.approx(cosine, rel=1e-5)
    assert one_by_one.nearest(texts[9])[0] == pytest.approx(1.0)
    assert Seen([]).nearest("anything") == (0.0, -1)
