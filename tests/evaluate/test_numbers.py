"""Numbers in every usual way of writing them: equal where one reading makes them so, and never else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.evaluate.numbers import runs, wrong_number
from instil.evaluate.respelling import as_in

SAME = [
    ("1,500", "1500"), ("1.500", "1500"), ("1 500", "1500"), ("1\u202f500", "1,500"), ("1\u00a0500", "1.500"),
    ("1'500", "1500"), ("1\u2019500", "1500"), ("1_000", "1000"), ("10,00,000", "1000000"),
    ("12,34,567.89", "1234567.89"),
    ("1,0000", "10000"), ("1.000.000", "1,000,000"), ("1.234,56", "1,234.56"), ("1 234,56", "1234.56"),
    ("3,5", "3.5"), ("3\u00b75", "3.5"), (".5", "0.5"), ("-.5", "-0,5"), ("5,0", "5"), ("3.141 592 653", "3.141592653"),
    ("\u22125", "-5"), ("\uff0d5", "-5"), ("\u20135 \u00b0C", "-5 \u00b0C"), ("= \u2212 5", "-5"), ("-$5", "$-5"),
    ("minus 5", "-5"), ("minus five", "-5"), ("+5", "5"), ("10 -5", "10 - 5"), ("7 minus 5", "7 - 5"),
    ("\uff11\uff12", "12"), ("\u0661\u066c\u0665\u0660\u0660", "1500"), ("\u0663\u066b\u0665", "3.5"),
    ("\u0967,\u096b\u0966\u0966", "1500"), ("\u2212\u0665", "-5"), ("\u0e51\u0e52", "12"),
    ("\uff11\uff0c\uff15\uff10\uff10", "1500"),
    ("\u0663\u060c\u0665", "3.5"), ("$1,500.00", "1500"),
    ("50%", "50 %"), ("50%", "50 percent"), ("50%", "0.5"), ("\u066a\u0665\u0660", "50"), ("50\uff05", "50%"),
    ("1e3", "1000"), ("1.5e-3", "0.0015"), ("(3,5)", "(3, 5)"), ("255,255,255", "255, 255, 255"), ("2-5", "2 to 5"),
    ("I paid 1 500 2 times", "1500, 2 times"), ("v1.2.3", "1.2.3"), ("192.168.0.1", "192.168.0.1"), ("1/2", "1 / 2"),
    # fractions, powers, magnitudes
    ("\u00bd", "0.5"), ("\u00bd", "1/2"), ("1/2", "0.5"), ("1\u00bd", "1.5"), ("1 1/2", "1.5"), ("1 1/2", "1\u00bd"),
    ("2\u00be", "2,75"), ("\u2153", "1/3"), ("10^3", "1000"), ("10\u00b3", "10^3"), ("2**10", "1024"),
    ("1\u00d710\u00b3", "1000"), ("1.5 x 10^3", "1500"), ("6.02\u00d710\u00b2\u00b3", "6.02e23"),
    ("2\u00b710^3", "2000"),
    ("1.5 million", "1,500,000"), ("2 thousand", "2000"), ("2k", "2000"), ("5M", "5 million"), ("3 Mrd.", "3 billion"),
    ("5 crore", "5,00,00,000"), ("1.5\u4e07", "15000"), ("3\u5104", "300,000,000"), ("1\u51042000\u4e07", "120000000"),
    ("1.5 million", "1.5 Zillionen"), ("50\u2030", "5%"),
    # numerals that are no digits
    ("XIV", "14"), ("\u2163", "4"), ("\u246b", "12"), ("\u4e8c\u5341\u4e94", "25"), ("\u4e09\u767e", "300"),
    ("\u4e8c\u3007\u4e8c\u56db", "2024"), ("\u1372\u136a", "12"), ("\u0bf0", "10"), ("H\u2082O", "H2O"),
    ("5 m\u00b2", "5 m^2"), ("x\u00b2", "x^2"),
    ("twenty-five", "25"), ("one hundred and five", "105"), ("fifteen hundred", "1500"), ("a thousand", "1000"),
    ("third", "3rd"), ("twenty-first", "21st"), ("half", "0.5"), ("a dozen", "12"), ("minus twenty", "-20"),
    ("3:05 pm", "15:05"), ("January 5, 2024", "2024-01-05"),
    # less than nothing
    ("($5)", "-$5"), ("(1,500)", "-1,500"), ("(5.2%)", "-5.2%"), ("-5--1", "-5 to -1"), ("-\u00bd", "-0.5"),
]  # fmt: skip
OTHER = [
    ("-5", "5"), ("6", "-5"), ("\u22125", "5"), ("\u20135", "5"), ("-$5", "$5"), ("minus 5", "5"),
    ("minus five", "5"),
    ("2-5", "-5"), ("2-5", "2 and -5"), ("COVID-19", "-19"), ("7 minus 5", "7 and -5"), ("x-3", "-3"),
    ("3.5", "35"), ("3,5", "35"), ("3.5", "3 or 5"), ("1.5", "15"), (".5", "5"), ("0,500", "500"), ("0.500", "500"),
    ("1500", "15000"), ("10,00,000", "100000"), ("1 500", "1501"), ("1 000", "100"), ("0.5%", "50%"), ("5%", "50%"),
    ("1e3", "13"), ("1e3", "1 and 3"), ("12:30", "1230"), ("1500", "1.50"), ("\u0661\u0662", "13"), ("-0.5", "0.5"),
    ("\u00bd", "\u00bc"), ("\u00bd", "1"), ("1\u00bd", "1"), ("1\u00bd", "11"), ("1/2", "1/3"),
    ("10\u00b2", "10\u00b3"),
    ("10\u00b2", "102"), ("10^2", "10^3"), ("1.5 million", "1.5 billion"), ("5 million", "5 thousand"), ("2k", "2M"),
    ("1\u4e07", "1\u5104"), ("5\u2030", "5.5\u2030"), ("1\u00d710^3", "1\u00d710^4"), ("XIV", "15"), ("thirteen", "14"),
    ("(5)", "-5"), ("-\u00bd", "0.5"), ("minus twenty", "20"), ("3 pm", "16:00"),
    ("3 g", "15 g/cm\u00b3"), ("3 g", "15 g/cm^3"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_one_reading_makes_them_equal(one: str, other: str) -> None:
    for before, after in (("", ""), ("It is ", "."), ("(", ")"), ("a = ", "; b")):
        assert not wrong_number(f"{before}{one}{after}", f"It is {other}.", "How much?")
        assert not wrong_number(f"It is {other}.", f"{before}{one}{after}", "How much?")


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_no_reading_makes_them_equal(one: str, other: str) -> None:
    assert wrong_number(one, other, "How much?")
    assert wrong_number(f"It is {other}.", f"It is {one}.", "How much?")


MARKS = [(",", "."), (".", ","), ("\u202f", ","), ("'", "."), (" ", "."), ("\u066c", "\u066b")]
ZEROS = ["0", "\u0660", "\u0966", "\uff10", "\u0e50", "\u09e6"]


@given(st.integers(-(10**15), 10**15), st.integers(0, 999), st.sampled_from(MARKS), st.sampled_from(ZEROS))
def test_a_number_is_itself_however_it_is_grouped(whole: int, part: int, marks: tuple[str, str], zero: str) -> None:
    written = f"{whole:,}.{part:03}".translate({ord(","): marks[0], ord("."): marks[1], ord("-"): "\u2212"})
    written = re.sub("[0-9]", lambda digit: chr(ord(zero) + int(digit.group())), written)
    assert not wrong_number(written, f"{whole}.{part:03}", "")
    assert not wrong_number(f"{whole}.{part:03}", written, "")
    assert wrong_number(written, f"{whole + 10**6}.{part:03}", "")


def test_signs_of_the_prompt_are_not_mixed_up() -> None:
    assert wrong_number("5", "-5", "What is 5 - 10?")
    assert not wrong_number("-5", "-5", "What is 5 - 10?")
    assert not wrong_number("It is 1 500 m.", "1.5 km or 1,500 m", "How far is 1.5 km?")


@given(st.text(st.sampled_from("0123456789.,' -\u2212%e\u0661\u066b\u00b7$()"), max_size=40), st.text(max_size=20))
def test_any_text_has_its_own_numbers(text: str, prompt: str) -> None:
    assert not wrong_number(text, text, prompt)
    assert as_in(text, text) == text
    assert as_in(text, prompt) is not None


def test_a_very_long_list_is_read_soon() -> None:
    text = ",".join(map(str, range(3000))) + " " + ".".join(map(str, range(3000))) + " " + "7" * 20_000
    assert len(runs(text)) == 1
    assert not wrong_number(text, text, "")
    assert wrong_number(text, text + "1", "")


def test_numbers_are_rewritten_as_the_reference_has_them() -> None:
    assert as_in("They are 1 500 and 2,5.", "1,500 and 2.5") == "They are 1,500 and 2.5."
    assert as_in("It is 12 cm.", "It is 10 cm.") == "It is 12 cm."
    assert as_in("It is \u00bd or 1.5 million.", "0.5 or 1,500,000") == "It is 0.5 or 1,500,000."
    assert as_in("1e3 m, 1 1/2 cups, 50%", "1000 m, 1.5 cups, 0.5") == "1000 m, 1.5 cups, 50%"
    assert as_in("\u0661\u0662 \u22125", "12 5") == "12 \u22125"
