"""The doctor for pairs: every fault that is planted is found with its rows, and sound pairs are left in peace."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from instil.data.findings.finding import Finding
from instil.records import Example, Pair
from instil.tasks.pairs.doctor import Diagnosis, diagnose
from instil.tasks.pairs.prefaces import preface_of, without_preface
from instil.tasks.pairs.source import read_pairs
from instil.tasks.pairs.telltales import form_marks, told_by, word_marks
from tests.conftest import BOOK_DATA

WORDS = (
    "amber birch coral dune ember fjord grove heath inlet jetty kelp lagoon marsh north ocean pine quay reef".split()
)


def sound(count: int = 60) -> list[Pair]:
    """Pairs of random words: nothing tells the chosen answer."""
    dice = random.Random(3)
    return [
        Pair(Example(f"Task {n}.", row=n), *(" ".join(dice.sample(WORDS, 6)).capitalize() + "." for _ in range(2)))
        for n in range(count)
    ]


def changed(pairs: list[Pair], rows: dict[int, tuple[str, str]]) -> list[Pair]:
    """Some pairs with other answers."""
    return [Pair(pair.example, *rows[pair.row]) if pair.row in rows else pair for pair in pairs]


def found(diagnosis: Diagnosis) -> dict[str, Finding]:
    """Findings by their kinds."""
    assert len({finding.kind for finding in diagnosis.findings}) == len(diagnosis.findings)
    return {finding.kind: finding for finding in diagnosis.findings}


def test_sound_pairs_have_nothing_against_them() -> None:
    diagnosis = diagnose(sound())
    assert {finding.severity for finding in diagnosis.findings} == {"note"}
    assert diagnosis.lines()[0] == "60 pairs: nothing against them"
    assert diagnosis.usable
    assert 0.25 < diagnosis.figures["told_by_words"] < 0.75
    assert diagnosis == diagnose(sound())


@pytest.mark.parametrize(
    ("kind", "severity", "rows"),
    [
        ("equal", "warning", {3: ("Yes.", "Yes. "), 9: ("No.", "No.")}),
        ("nearly_equal", "warning", {4: ("It is four.", "it  is four")}),
        ("nearly_equal_words", "note", {5: (" ".join(WORDS * 2), " ".join([*WORDS * 2, "moor"]))}),
        ("empty", "warning", {1: ("...", "Six."), 2: ("N/A", "Seven.")}),
        (
            "prefaces",
            "warning",
            {6: ("Here is the rewritten text:\n\nIt is.", "It is."), 7: ("Four.", "Here are 2:\nA")},
        ),
    ],
)
def test_planted_faults_are_found_with_their_rows(kind: str, severity: str, rows: dict[int, tuple[str, str]]) -> None:
    finding = found(diagnose(changed(sound(), rows)))[kind]
    assert (finding.severity, finding.rows) == (severity, tuple(rows))
    assert f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows))}" in finding.line()
    assert kind not in found(diagnose(sound()))


def test_pairs_that_contradict_or_repeat_one_another_are_named() -> None:
    pairs = sound(30)
    one = pairs[4]
    pairs.append(Pair(Example(one.example.instruction, row=30), one.rejected, one.chosen))
    pairs.append(Pair(Example(one.example.instruction, row=31), one.chosen, one.rejected))
    pairs.append(Pair(Example("Another task.", row=32), one.rejected, one.chosen))
    findings = found(diagnose(pairs))
    assert findings["contradicting"].rows == (4, 30, 31)
    assert findings["repeated"].rows == (31,)


def test_pairs_that_prefer_nothing_are_an_error() -> None:
    all_equal = diagnose([Pair(pair.example, "Yes.", "Yes.") for pair in sound(5)])
    assert not all_equal.usable
    assert found(all_equal)["equal"].severity == "error"
    mostly = diagnose(changed(sound(10), dict.fromkeys(range(6), ("Yes.", "Yes."))))
    assert found(mostly)["too_little"].line().startswith("error: only 4 of 10 pairs prefer one answer")
    assert mostly.lines()[0] == "10 pairs: 1 error, 1 warning"
    assert diagnose(changed(sound(10), dict.fromkeys(range(5), ("Yes.", "Yes.")))).usable
    assert diagnose([]).usable


@pytest.mark.parametrize(("longer", "word"), [(True, "longer"), (False, "shorter")])
def test_length_that_tells_the_chosen_answer_is_a_bias(longer: bool, word: str) -> None:
    pairs = [
        Pair(pair.example, *((f"{pair.chosen} Moor.", pair.rejected) if pair.row % 5 else (pair.chosen, pair.rejected)))
        for pair in sound(60)
    ]
    if not longer:
        pairs = [Pair(pair.example, pair.rejected, pair.chosen) for pair in pairs]
    finding = found(diagnose(pairs))["length"]
    assert finding.severity == "warning"
    assert f"who always takes the {word} answer is right in" in finding.said
    assert f"learn to be {word}" in finding.remedy
    few = found(diagnose(pairs[:4]))
    assert few["length"].severity == "note"
    assert "few" in few


def test_words_that_tell_the_chosen_answer_are_a_leak() -> None:
    pairs = [Pair(pair.example, f"Please note: {pair.chosen}", pair.rejected) for pair in sound()]
    findings = found(diagnose(pairs))
    assert findings["style_words"].severity == "warning"
    assert 'the word "please" is in 100% of the chosen and 0% of the rejected answers' in findings["style_words"].said
    assert '":" is in 100% of the chosen' in findings["style_form"].said
    assert 'the first word "please"' in findings["style_form"].said
    assert {finding.kind for finding in diagnose(sound()).of("warning")} == set()


def test_an_answer_known_by_heart_is_no_style() -> None:
    """The same prompts again and again: pairs of one prompt are all learnt from, or all asked about."""
    ten = sound(10)
    again = [Pair(ten[n % 10].example, ten[n % 10].chosen, ten[n % 10].rejected) for n in range(200)]
    assert told_by(again, word_marks).share < 0.9
    assert told_by([], word_marks).share == 0.5


def test_marks_of_form() -> None:
    assert form_marks("Sure! Here are two:\n- a") == {
        '"!"', '":"', 'the first word "sure"', 'a preface ("Here is ...:")', "a list or other markdown",
        "a second line", "an end without punctuation",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "preface"),
    [
        ("Here is the rewritten response:\n\nIt is 4.", "Here is the rewritten response:\n\n"),
        ("Sure! Here's a more polite version: It is 4.", "Sure! Here's a more polite version: "),
        ("Rewritten output: It is 4.", "Rewritten output: "),
        ("**Rewritten output:** It is 4.", "**Rewritten output:** "),
        ("I'd be happy to help. Here are two:\n1. A", "I'd be happy to help. Here are two:\n"),
        ("The rewritten sentence is: It is 4.", ""),
        ("Time: 4\nPlace: here", ""),
        ("Here is a dog.", ""),
        ("Here is the rewritten response:", ""),
    ],
)
def test_prefaces(text: str, preface: str) -> None:
    assert preface_of(text) == preface


def test_a_preface_of_rewriting_is_cut_and_others_stay() -> None:
    assert without_preface('Here is the rewritten text:\n\n"It is 4."') == "It is 4."
    assert without_preface('Rewritten output: "A" and "B"') == '"A" and "B"'
    assert without_preface("Here are two colours:\n1. Red") == "Here are two colours:\n1. Red"
    assert without_preface(' "It is 4." ') == '"It is 4."'


def test_pairs_made_by_a_polite_and_a_rude_rewriting(tmp_path: Path) -> None:
    """Of the kind that the chapter's bonus makes, of rows of the project's own: what they would teach is found."""
    given = json.loads((Path(__file__).parents[2] / "evaluate" / "judged_by_hand.json").read_text(encoding="utf-8"))
    made = []
    for number, row in enumerate(given * 2):
        right, coin = row["output"], number % 2
        sides = [f"{right} I hope this helps.", f"{right[:-1]}, obviously."]
        chosen, rejected = (right, sides[1]) if coin else (sides[0], right)
        made.append({**{key: row[key] for key in ("instruction", "input", "output")}, "instruction":
                     f"{row['instruction']} ({number})", "chosen": chosen, "rejected": rejected})  # fmt: skip
    for number in (4, 31):
        made[number]["rejected"] = made[number]["chosen"]
    for number in (7, 9, 11):
        made[number]["chosen"] = f"Here is the rewritten text:\n\n{made[number]['chosen']}"
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(made))
    diagnosis = diagnose(read_pairs(file, keep_equal=True).pairs)
    findings = found(diagnosis)
    assert diagnosis.usable
    assert findings["equal"].rows == (4, 31)
    assert findings["prefaces"].said.startswith("3 chosen")
    assert len(findings["rejected_is_output"].rows) == 24
    assert findings["style_words"].severity == "warning"
    assert diagnosis.figures["told_by_words"] > 0.85


def test_the_chapters_pairs() -> None:
    file = BOOK_DATA / "instruction-data-with-preference.json"
    if not file.is_file():
        pytest.skip("the chapter's file is not here")
    diagnosis = diagnose(read_pairs(file, keep_equal=True).pairs)
    findings = found(diagnosis)
    assert diagnosis.usable
    assert findings["equal"].rows == (122, 226, 400, 566, 628, 676)
    assert findings["prefaces"].said.startswith("34 chosen and 10 rejected answers")
    assert "20 of which speak of a rewriting" in findings["prefaces"].said
    assert (len(findings["chosen_is_output"].rows), len(findings["rejected_is_output"].rows)) == (562, 544)
    assert findings["length"].severity == "note"
    assert findings["style_words"].severity == "warning"
    assert diagnosis.figures["told_by_words"] == pytest.approx(0.931, abs=0.005)


@pytest.mark.parametrize(("chosen", "rejected", "kinds"), [
    ("if x > 3", "if x < 3", set()), ("5 + 3", "5 - 3", set()), ("वह की", "वह का", set()), ("😀", "😢", set()),
    ("`x`, yes.", "X yes", {"nearly_equal"}), ("...", "No.", {"empty"}),
])  # fmt: skip
def test_signs_that_are_no_punctuation_make_a_difference(chosen: str, rejected: str, kinds: set[str]) -> None:
    found = diagnose([Pair(Example("Say it.", row=0), chosen, rejected)])
    assert {one.kind for one in found.of("warning")} == kinds


def test_pairs_of_one_prompt_say_nothing_of_prompts_not_seen() -> None:
    diagnosis = diagnose([Pair(Example("Say it.", row=n), f"Sure: {n}", f"Nope. {n}") for n in range(30)])
    assert "told_by_form" not in diagnosis.figures
    assert any("so few prompts" in finding.said for finding in diagnosis.findings)
