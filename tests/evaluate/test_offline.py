"""Scores without a judge, against the libraries and figures they are known by."""

from __future__ import annotations

import json
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.errors import DataError
from instil.evaluate.offline import chrf, means, plain, rouge_l, score_offline, trivial_baseline
from instil.records import Example
from tests.conftest import BOOK_DATA

WORDS = st.lists(st.sampled_from("the a cat dog sat 4x x3 It's, on. Café 12".split()), max_size=12).map(" ".join)


@given(WORDS, WORDS)
def test_rouge_l_is_that_of_the_reference_implementation(said: str, wanted: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    theirs = RougeScorer(["rougeL"]).score(wanted, said)["rougeL"].fmeasure
    assert rouge_l(said, wanted) == pytest.approx(theirs, abs=1e-12)


def test_chrf_of_equal_and_of_unrelated_answers() -> None:
    assert chrf("The answer is 4.", "The answer is 4.") == 100
    assert chrf("zzz", "The answer is 4.") == 0
    assert 0 < chrf("The answer is 5.", "The answer is 4.") < 100


def test_chrf_by_hand_counts_recall_twice_as_much_as_precision() -> None:
    """Of "abcd", "ab" has 2 of 4 letters and 1 of 3 pairs, all of them right: recall 5/12, precision 1.

    F2 is 5PR / (4P + R); with the two texts exchanged, precision and recall change places.
    """
    assert chrf("ab", "abcd") == pytest.approx(100 * 25 / 53, abs=1e-9)
    assert chrf("abcd", "ab") == pytest.approx(100 * 25 / 32, abs=1e-9)
    verdict = score_offline([Example("x", "abcd")], ["ab"])[0]
    assert verdict.score == verdict.metrics["chrf"] == pytest.approx(100 * 25 / 53, abs=1e-9)
    assert trivial_baseline([Example("x", "abcd", "ab")])[0].score == verdict.score


@pytest.mark.parametrize(
    ("said", "wanted", "same"),
    [
        ("The answer is 4.", "the answer is 4", True),
        ("'Happy.'", "happy", True),
        ('"Happy".', "Happy", True),
        ("4x", "4x^3", False),
        ("It was.", "It was not.", False),
        ("Really?", "Really.", False),
    ],
)
def test_exact_match_ignores_case_quotes_and_the_last_full_stop(said: str, wanted: str, same: bool) -> None:
    assert (plain(said) == plain(wanted)) is same
    assert score_offline([Example("x", wanted, row=3)], [said])[0].metrics["exact_match"] == float(same)


def test_a_row_without_reference_is_unscored_with_its_reason() -> None:
    rows = [Example("a", "", row=0), Example("b", "Yes.", row=1)]
    verdicts = score_offline(rows, ["x", "Yes."])
    assert verdicts[0].score is None
    assert "no reference" in verdicts[0].reason
    assert means(verdicts) == {"exact_match": 1.0, "chrf": 100.0, "rouge_l": 1.0}
    assert means(verdicts[:1]) == {}
    with pytest.raises(DataError, match="1 answers for 2 rows"):
        score_offline(rows, ["x"])


def test_the_trivial_baseline_repeats_the_input() -> None:
    verdicts = trivial_baseline([Example("Fix.", "He runs.", "He run."), Example("Say hi.", "Say hi.")])
    assert verdicts[0].metrics["chrf"] == chrf("He run.", "He runs.")
    assert verdicts[1].score == 100


@pytest.mark.skipif(not BOOK_DATA.is_dir(), reason="the book's data are not on this machine")
def test_the_books_own_answers_get_their_known_figures() -> None:
    rows = json.loads((BOOK_DATA / "instruction-data-with-response.json").read_text(encoding="utf-8"))
    examples = [Example(row["instruction"], row["output"], row["input"]) for row in rows]
    answers = [row["model_response"] for row in rows]
    scores = means(score_offline(examples, answers))
    assert scores["exact_match"] == pytest.approx(17 / 110)
    assert scores["chrf"] == pytest.approx(56.814, abs=1e-3)
    assert scores["rouge_l"] == pytest.approx(0.58296, abs=5e-3)
    assert mean(v.metrics["chrf"] for v in trivial_baseline(examples)) == pytest.approx(40.93, abs=5e-3)
