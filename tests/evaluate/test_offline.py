"""Scores without a judge, against the libraries and figures they are known by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.errors import DataError
from instil.evaluate import embeddings
from instil.evaluate.offline import METRICS, chrf, means, novel_f1, rouge_l, score_offline, token_f1, trivial_baseline
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
    assert score_offline([Example("x", "abcd")], ["ab"])[0].metrics["chrf"] == chrf("ab", "abcd")


def test_token_f1_by_hand_counts_words_as_often_as_they_come() -> None:
    assert token_f1("The cat, the dog", "the the cat") == pytest.approx(2 * 3 / 7)
    assert token_f1("the the the", "the cat") == pytest.approx(2 * 1 / 5)
    assert token_f1("dog", "cat") == token_f1("", "cat") == token_f1("cat", "!") == 0
    assert token_f1("CAFÉ", "café.") == 1


@pytest.mark.parametrize(
    ("answer", "reference", "prompt", "wanted"),
    [
        ("Its capital is the Oslo.", "Its capital is Oslo.", "Name its capital.", 1),
        ("Its capital is Rome.", "Its capital is Oslo.", "Name its capital.", 0),
        ("Oslo, not Rome", "Oslo", "Name its capital.", 2 * 1 / 4),
        ("Oslo Oslo", "Oslo", "Name its capital.", 2 * 1 / 3),
        ("Its capital.", "Its capital is Oslo.", "Name its capital.", 0),  # nothing new said
        ("The word is bird.", "The word is fly.", "Which word? Fly.", 0),  # nothing new wanted
        ("word fly", "fly word", "Which word? Fly.", 2 * 1 / 4),  # neither: the order counts
        ("fly", "Fly!", "Which word? Fly.", 1),
        ("", "Fly!", "Which word? Fly.", 0),
    ],
)
def test_novel_f1_leaves_out_what_the_prompt_says(answer: str, reference: str, prompt: str, wanted: float) -> None:
    assert novel_f1(answer, reference, prompt) == pytest.approx(wanted)


def test_instruction_and_input_are_the_prompt() -> None:
    row = Example("Name it: alpha.", "alpha beta gamma", "Here is beta")
    assert score_offline([row], ["alpha gamma"])[0].metrics["novel_f1"] == 1
    assert score_offline([row], ["alpha beta"])[0].metrics["novel_f1"] == 0


def test_the_score_is_the_calibrated_sum() -> None:
    """By hand: novel words are "abcd" and "ab", nothing in common; the length is wrong in one of the two rows."""
    rows = [Example("x", "abcd"), Example("x", "It is 10 cm.")]
    plain, wrong = score_offline(rows, ["ab", "It is 12 cm."])
    assert plain.score == pytest.approx(5.1 + 0.367 * chrf("ab", "abcd"))
    assert wrong.metrics["novel_f1"] == pytest.approx(2 * 2 / 6)  # it, cm
    assert wrong.score == pytest.approx(5.1 + 32.9 * 2 / 3 + 0.367 * wrong.metrics["chrf"] - 38.7)


def test_an_echo_is_taken_off_the_score() -> None:
    row = Example("Put it in the past tense.", "She went home.", "She goes home.")
    verdict = trivial_baseline([row])[0]
    assert verdict.score == pytest.approx(max(0, 5.1 + 0.367 * verdict.metrics["chrf"] - 26.9))
    assert score_offline([row], ["She gone home."])[0].score > verdict.score


@given(WORDS, WORDS, WORDS)
def test_scores_are_within_bounds_and_nothing_beats_an_exact_copy(said: str, wanted: str, asked: str) -> None:
    row = Example(asked, f"{wanted}.", row=4)
    answers = [said, f" {wanted}.\n"]
    verdict, copy = score_offline([row] * 2, answers)
    assert copy.score == 100
    assert copy.metrics["exact_match"] == 1
    assert verdict.row == 4
    assert 0 <= verdict.score <= 100
    assert (verdict.score == 100) is (verdict.metrics["exact_match"] == 1)
    assert set(verdict.metrics) == set(METRICS)
    assert all(0 <= value <= (100 if name == "chrf" else 1) for name, value in verdict.metrics.items())
    assert score_offline([row] * 2, answers) == [verdict, copy]


@given(st.text(), st.text(min_size=1), st.text())
def test_any_text_can_be_scored(said: str, wanted: str, asked: str) -> None:
    score = score_offline([Example(asked, wanted)], [said])[0].score
    assert (score is None) is (not wanted.strip())
    assert score is None or 0 <= score <= 100


def test_an_empty_answer_scores_nothing_at_all() -> None:
    for answer in ("", " \n"):
        verdict = score_offline([Example("Say yes.", "Yes.")], [answer])[0]
        assert verdict.score == 0
        assert verdict.reason == ""
        assert set(verdict.metrics.values()) == {0.0}


def test_the_score_is_the_same_with_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    def lengths(said: list[str], wanted: list[str]) -> list[float]:
        return [float(len(one + other)) for one, other in zip(said, wanted, strict=True)]

    monkeypatch.setattr(embeddings, "similarity", lengths)
    rows = [Example("a", "", row=0), Example("b", "Yes.", row=1), Example("c", "No.", row=2)]
    without, with_them = (score_offline(rows, ["x", "yes", "No."], embeddings=wanted) for wanted in (False, True))
    assert [verdict.score for verdict in without] == [verdict.score for verdict in with_them]
    assert with_them[0].metrics == {}
    assert [verdict.metrics["embedding"] for verdict in with_them[1:]] == [7, 6]
    assert means(with_them)["embedding"] == 6.5
    assert "embedding" not in means(without)
    assert "embedding" not in means([without[1], with_them[2]])


@pytest.mark.parametrize(
    ("said", "wanted", "same"),
    [
        ("\nThe answer is 4. ", "The answer is 4.", True),
        ("The answer is 4", "The answer is 4.", False),
        ("i love it", "I Love It", False),
        ("'Happy'", "Happy", False),
        ("4x", "4x^3", False),
        ("a  b", "a b", False),
    ],
)
def test_exact_match_forgives_white_space_around_and_nothing_else(said: str, wanted: str, same: bool) -> None:
    verdict = score_offline([Example("x", wanted, row=3)], [said])[0]
    assert verdict.metrics["exact_match"] == float(same)
    assert (verdict.score == 100) is same


def test_a_row_without_reference_is_unscored_with_its_reason() -> None:
    rows = [Example("a", "", row=0), Example("b", "Yes.", row=1)]
    verdicts = score_offline(rows, ["x", "Yes."])
    assert verdicts[0].score is None
    assert "no reference" in verdicts[0].reason
    ones = {"exact_match": 1.0, "rouge_l": 1.0, "token_f1": 1.0, "novel_f1": 1.0}
    assert means(verdicts) == {"score": 100.0, "chrf": 100.0} | ones
    assert means(verdicts[:1]) == {}
    with pytest.raises(DataError, match="1 answers for 2 rows"):
        score_offline(rows, ["x"])


def test_the_trivial_baseline_repeats_the_input() -> None:
    verdicts = trivial_baseline([Example("Fix.", "He runs.", "He run."), Example("Say hi.", "Say hi.")])
    assert verdicts[0].metrics["chrf"] == chrf("He run.", "He runs.")
    assert verdicts[1].score == 100


def test_answers_of_our_own_get_their_known_figures() -> None:
    """Right answers, wrong ones of the same form, and the input repeated: where each stands."""
    rows = json.loads(Path(__file__).with_name("judged_by_hand.json").read_text(encoding="utf-8"))
    examples = [Example(row["instruction"], row["output"], row["input"]) for row in rows]
    right, wrong = (means(score_offline(examples, [row[f"model {n} response"] for row in rows])) for n in (1, 2))
    assert right["exact_match"] == pytest.approx(17 / 24)
    assert right["chrf"] == pytest.approx(89.1418, abs=1e-3)
    assert right["score"] == pytest.approx(86.3, abs=2)
    assert (wrong["exact_match"], wrong["chrf"]) == (0, pytest.approx(67.1746, abs=1e-3))
    assert wrong["score"] == pytest.approx(25.6, abs=2)
    baseline = means(trivial_baseline(examples))
    assert (baseline["exact_match"], baseline["chrf"]) == (0, pytest.approx(43.5818, abs=1e-3))
    assert baseline["score"] < 10  # an echo shares words and letters, and does nothing


@pytest.mark.skipif(not BOOK_DATA.is_dir(), reason="the book's data are not on this machine")
def test_the_books_own_answers_get_their_known_figures() -> None:
    rows = json.loads((BOOK_DATA / "instruction-data-with-response.json").read_text(encoding="utf-8"))
    examples = [Example(row["instruction"], row["output"], row["input"]) for row in rows]
    answers = [row["model_response"] for row in rows]
    scores = means(score_offline(examples, answers))
    assert scores["exact_match"] == pytest.approx(17 / 110)
    assert scores["chrf"] == pytest.approx(56.814, abs=1e-3)
    assert scores["token_f1"] == pytest.approx(0.59347, abs=5e-6)
    assert scores["rouge_l"] == pytest.approx(0.58318, abs=5e-6)  # rouge_score's; .58296 by \w+
    assert scores["score"] == pytest.approx(34.35, abs=0.01)
    baseline = means(trivial_baseline(examples))
    assert baseline["exact_match"] == 0
    assert baseline["token_f1"] == pytest.approx(0.5050, abs=5e-5)
    assert baseline["chrf"] == pytest.approx(40.93, abs=5e-3)
    assert baseline["score"] < 5  # an echo shares words and letters, and does nothing
