"""The same figures in every script: a copy is a copy, a near miss is near, and another word is another word."""

from __future__ import annotations

import unicodedata

import pytest

import instil
from instil.errors import DataError
from instil.evaluate.offline import (
    means,
    novel_f1,
    of_other_scripts,
    rouge_l,
    score_offline,
    token_f1,
    trivial_baseline,
)
from instil.evaluate.prompts import pairwise_text, prompt_named
from instil.records import Example

# A sentence, the same with one word (or character) changed, and one that shares nothing with it
SENTENCES = {
    "Latin": ("Où est la forêt, près d'ici ?", "Où est la maison, près d'ici ?", "Zut"),
    "Cyrillic": ("Столица Франции — Париж.", "Столица Франции — Лондон.", "нет"),
    "Greek": ("Η πρωτεύουσα είναι η Αθήνα.", "Η πρωτεύουσα είναι η Ρώμη.", "όχι"),
    "Arabic": ("عاصمة فرنسا هي باريس", "عاصمة فرنسا هي لندن", "لا"),
    "Hebrew with points": ("שָׁלוֹם לְכָל הָעוֹלָם הַטּוֹב", "שָׁלוֹם לְכָל הָעוֹלָם הָרַע", "לֹא"),
    "Devanagari": ("भारत की राजधानी दिल्ली है।", "भारत की राजधानी मुंबई है।", "नहीं"),
    "Tamil": ("இந்தியாவின் தலைநகரம் புது டெல்லி", "இந்தியாவின் தலைநகரம் புது மும்பை", "இல்லை"),
    "Bengali": ("ভারতের রাজধানী হল দিল্লি", "ভারতের রাজধানী হল মুম্বাই", "না"),
    "Thai": ("เมืองหลวงคือกรุงเทพ", "เมืองหลวงคือกรุงธน", "ไม่"),
    "Khmer": ("រាជធានីគឺភ្នំពេញ", "រាជធានីគឺភ្នំពណ៌", "ទេ"),
    "Myanmar": ("မြို့တော်သည်နေပြည်တော်", "မြို့တော်သည်ရန်ကုန်တော်", "ဟ"),
    "Han": ("法国的首都是巴黎。", "法国的首都是伦敦。", "不"),
    "Kana": ("フランスのしゅとはパリです", "フランスのしゅとはローマです", "いいえ"),
    "Hangul": ("프랑스의 수도는 파리 입니다", "프랑스의 수도는 런던 입니다", "아니오"),
    "Georgian": ("საქართველოს დედაქალაქი არის თბილისი", "საქართველოს დედაქალაქი არის ბათუმი", "არა"),
    "Ethiopic": ("የኢትዮጵያ ዋና ከተማ አዲስ", "የኢትዮጵያ ዋና ከተማ ጎንደር", "አይ"),
}
WORD_METRICS = ("rouge_l", "token_f1", "novel_f1")


@pytest.mark.parametrize("script", SENTENCES)
def test_copies_near_misses_and_strangers(script: str) -> None:
    wanted, near, other = SENTENCES[script]
    row = Example("?", wanted)
    copy, same_apart, close, far = score_offline(
        [row] * 4, [wanted, unicodedata.normalize("NFD", f" {wanted}\n"), near, other]
    )
    for verdict in (copy, same_apart):
        assert verdict.score == 100
        assert verdict.metrics["chrf"] == pytest.approx(100)
        assert [verdict.metrics[name] for name in (*WORD_METRICS, "exact_match")] == [1, 1, 1, 1]
    assert all(0.5 < close.metrics[name] < 1 for name in WORD_METRICS)
    assert [far.metrics[name] for name in WORD_METRICS] == [0, 0, 0]
    assert close.score is not None
    assert far.score is not None
    assert far.score < close.score < 100


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u0915\u093f", "\u0915\u0940"),  # Hindi "ki", short and long
        ("दिन", "दीन"),
        ("పలక", "పిలక"),
        ("pécheur", "pêcheur"),
        ("ou", "où"),
        ("かき", "がき"),
        ("שֵׁם", "שָׁם"),
        ("-5", "5"),
        ("\U0001f44d yes", "\U0001f44e yes"),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467 x", "\U0001f468\u200d\U0001f469\u200d\U0001f466 x"),
        ("\U0001f1eb\U0001f1f7 x", "\U0001f1e9\U0001f1ea x"),
        ("\U0001f44d\U0001f3fb x", "\U0001f44d\U0001f3ff x"),
    ],
)
def test_words_that_differ_in_a_mark_differ(one: str, other: str) -> None:
    assert token_f1(one, other) == novel_f1(one, other, "") < 1
    assert rouge_l(one, other) < 1
    assert score_offline([Example("?", one)], [other])[0].metrics["exact_match"] == 0
    assert rouge_l(one, one) == token_f1(one, one) == 1


@pytest.mark.parametrize("text", ["+", "→ ←", "\U0001f600", "\U0001f469\u200d\U0001f4bb!", "½", "。", "the", "-5", "_"])
def test_any_text_is_a_copy_of_itself(text: str) -> None:
    metrics = score_offline([Example(f"Say {text}", text)], [text])[0].metrics
    assert [metrics[name] for name in (*WORD_METRICS, "exact_match")] == [1, 1, 1, 1]


@pytest.mark.parametrize(("one", "other"), [
    ("\u0643\u062a\u0640\u0640\u0627\u0628", "\u0643\u062a\u0627\u0628"), ("\u2764\ufe0f ok", "\u2764 ok"),
])  # fmt: skip
def test_what_only_stretches_or_colours_is_no_letter(one: str, other: str) -> None:
    assert token_f1(one, other) == rouge_l(one, other) == novel_f1(one, other, "") == 1


@pytest.mark.parametrize(("said", "wanted"), [("1 500", "1,500"), ("1.500", "1500"), ("3,5", "3.5"), (".5", "0.5")])
def test_another_way_to_write_a_number_is_no_fault(said: str, wanted: str) -> None:
    row = Example("How many?", f"There are {wanted} of them.")
    other_way, wrong = score_offline([row] * 2, [f"There are {said} of them.", "There are 777 of them."])
    assert other_way.metrics["token_f1"] == other_way.metrics["novel_f1"] == 1
    assert other_way.metrics["exact_match"] == 0
    assert other_way.score == pytest.approx(5.1 + 32.9 + 36.7)
    assert wrong.score is not None
    assert wrong.score < 40


def test_a_lost_sign_costs_as_much_as_another_number() -> None:
    row = Example("How cold is it?", "5")
    lost, other = score_offline([row] * 2, ["-5", "6"])
    assert lost.score is not None
    assert lost.score < 20
    assert lost.metrics["novel_f1"] == other.metrics["novel_f1"] == 0


@pytest.mark.parametrize("blank", [" ", "\n", "\t \r\n", "\u00a0", "\u3000", "\u200b", "\ufeff"])
def test_a_blank_input_is_no_input(blank: str) -> None:
    given, none = Example("Say hi.", "Hi.", blank), Example("Say hi.", "Hi.")
    assert trivial_baseline([given])[0] == trivial_baseline([none])[0]
    assert score_offline([given], ["Hi there."]) == score_offline([none], ["Hi there."])
    for name in ("rubric", "book", "book-verbose"):
        assert prompt_named(name).ask(given, "Hi.") == prompt_named(name).ask(none, "Hi.")
    assert pairwise_text(given, "a", "b") == pairwise_text(none, "a", "b")


def test_a_row_without_room_has_no_score_and_its_reason() -> None:
    rows = [Example("a", "Yes.", row=4), Example("b", "No.", row=5)]
    left, scored = score_offline(rows, ["", "No."], no_room={4})
    assert left.score is None
    assert "no room" in left.reason
    assert means([left, scored])["score"] == 100


def test_the_library_warns_of_figures_of_other_scripts() -> None:
    row = {"instruction": "Translate.", "output": "\u041f\u0430\u0440\u0438\u0436", "model_response": "Paris"}
    with pytest.warns(UserWarning, match="another script"):
        instil.score([row])


@pytest.mark.parametrize(("spoil", "complaint"), [
    ({"model_response": 5}, "rows 0, 1, 2: no text under 'model_response'"),
    ({"output": 5}, "rows 0, 1, 2: output is number; wanted text"),
])  # fmt: skip
def test_all_rows_that_cannot_be_scored_are_named(spoil: dict[str, object], complaint: str) -> None:
    row = {"instruction": "a", "output": "b", "model_response": "c"}
    with pytest.raises(DataError, match=complaint) as caught:
        instil.score([row | spoil] * 3 + [row])
    assert "skip_bad" not in str(caught.value)


def test_figures_of_other_scripts_come_with_a_word() -> None:
    def rows(*outputs: str) -> list[Example]:
        return [Example("Translate.", output) for output in outputs]

    assert "another script" in of_other_scripts(rows("Париж", "Лондон", "Rome"))
    assert of_other_scripts(rows("Paris", "Лондон", "Rome")) == ""
    assert of_other_scripts(rows("12", "15")) == ""
    assert of_other_scripts([]) == ""
