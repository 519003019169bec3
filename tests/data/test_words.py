"""Words of many scripts: marks belong to their letters, and characters are words where no spaces are written."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.data import words as module
from instil.data.words import folded, mostly_other_scripts, same, tokens, units, without_punctuation, words


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("It's Café_1, 4.5", ["it", "s", "café_1", "4", "5"]),
        ("Привет, мир!", ["привет", "мир"]),
        ("ΟΔΥΣΣΕΥΣ", ["οδυσσευσ"]),
        ("مَرْحَبًا بالعالم", ["مَرْحَبًا", "بالعالم"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("שָׁלוֹם עוֹלָם", ["שָׁלוֹם", "עוֹלָם"]),
        ("शिक्षा और हिन्दी", ["शिक्षा", "और", "हिन्दी"]),
        ("சென்னை நகரம்", ["சென்னை", "நகரம்"]),
        ("বাংলা ভাষা", ["বাংলা", "ভাষা"]),
        ("안녕 하세요", ["안녕", "하세요"]),
        ("እንኳን ደህና", ["እንኳን", "ደህና"]),
        ("สวัสดีน้ำ", ["ส", "วั", "ส", "ดี", "น้ำ"]),
        ("ສະບາຍ", ["ສ", "ະ", "ບ", "າ", "ຍ"]),
        ("東京タワーは2024年", ["東", "京", "タ", "ワ", "ー", "は", "2024", "年"]),
        ("我有iPhone。", ["我", "有", "iphone"]),
        ("ကမ္ဘာ", ["က", "မ္ဘာ"]),
        ("\u0661\u0662 \uff13\uff14 ๕๖", ["12", "34", "56"]),
        ("2-5 is -3, x-1, (\u22124)", ["2", "5", "is", "-3", "x", "1", "-4"]),
        ("soft\u00adhyphen \u200eleft", ["softhyphen", "left"]),
    ],
)
def test_words_are_those_of_a_reader(text: str, wanted: list[str]) -> None:
    wanted = [unicodedata.normalize("NFC", word) for word in wanted]
    assert words(text) == wanted
    assert words(unicodedata.normalize("NFD", text)) == words(text)


@given(st.text())
def test_words_do_not_depend_on_the_normal_form_nor_on_case(text: str) -> None:
    apart = unicodedata.normalize("NFD", text)
    assert words(apart) == words(unicodedata.normalize("NFC", text)) == words(folded(text))
    assert without_punctuation(apart) == without_punctuation(text)
    assert same(apart, text)


def test_case_counts_in_equality_and_white_space_around_does_not() -> None:
    assert same(" Caf\u00e9\n", "Cafe\u0301")
    assert not same("Caf\u00e9", "caf\u00e9")
    assert not same("\u0915\u093f", "\u0915\u0940")  # two vowels


def test_texts_without_words_are_compared_by_their_characters() -> None:
    assert units("\u2192 !", "\u2192?") == (["\u2192", "!"], ["\u2192", "?"])
    assert units("\U0001f469\u200d\U0001f4bb", "") == (["\U0001f469\u200d\U0001f4bb"], [])
    assert units("a!", "!") == (["a"], [])


def test_the_script_of_most_texts_is_told() -> None:
    assert mostly_other_scripts(["привет", "你好吗 ok", "12"])
    assert not mostly_other_scripts(["привет", "hello", "été"])
    assert not mostly_other_scripts(["12", "?"])
    assert not mostly_other_scripts(["the Greek letter λ"])


@given(st.text())
def test_tokens_together_are_the_text(text: str) -> None:
    assert "".join(tokens(text)) == text


def test_tokens_are_words_with_their_marks_and_signs() -> None:
    assert tokens("हिन्दी है, नहीं।") == ["हिन्दी ", "है", ", ", "नहीं", "।"]
    assert tokens("猫がいる. Ok") == ["猫", "が", "い", "る", ". ", "Ok"]


SIGNS = "aB9 _'.-\u2019\u201c\u2014\u203f\u20ac=\u0338\u00b4\u0301\u212b\u0130"


@given(st.text(st.one_of(st.sampled_from(SIGNS), st.characters())))
def test_punctuation_is_taken_out_by_the_short_way_as_by_the_long_one(text: str) -> None:
    assert without_punctuation(text) == module._NEITHER_WORD_NOR_SPACE.sub("", folded(text))
