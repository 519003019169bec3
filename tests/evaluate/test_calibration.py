"""The calibrated figure: its faults by hand, and its weights derived anew from the file they come from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.calibrate import CHOSEN, Judged, cross_validate, derive, figures, keep, main, predict, read, ridge
from instil.data.words import words
from instil.errors import DataError
from instil.evaluate.calibration import EXACT_COPY, INTERCEPT, WEIGHTS, calibrated, echo
from instil.evaluate.numbers import wrong_number
from tests.conftest import BOOK_DATA

SAMPLE = BOOK_DATA / "judged-sample.json"
FEATURES = Path(__file__).with_name("judged_features.json")  # of the sample's answers, with GPT-4's scores, no texts
BY_HAND = Path(__file__).with_name("judged_by_hand.json")  # answers of the project's own, scored by a reader
needs_sample = pytest.mark.skipif(not SAMPLE.is_file(), reason="the judged sample is not on this machine")
SHARE = st.floats(0, 1)


@pytest.mark.parametrize(
    ("answer", "reference", "prompt", "wrong"),
    [
        ("It is 12 cm.", "It is 10 cm.", "How long?", True),
        ("It is 10 cm.", "It is 10 cm.", "How long?", False),
        ("It is long.", "It is 10 cm.", "How long?", True),
        ("It is 10 cm or 7.", "It is 10 cm.", "How long?", True),
        ("298.15 K", "25 degrees are 298.15 K.", "Convert 25 degrees.", False),
        ("25 degrees are 298 K.", "298.15 K", "Convert 25 degrees.", True),
        ("1,000.50", "1000.5", "How much?", False),
        ("Iron, zinc", "1. Zinc\n2. Iron", "Name two.", False),
        ("1. Zinc\n2) Iron", "Iron, zinc", "Name some.", False),
        ("42. So it is.", "It is 42.", "How many?", False),
        ("Eight legs.", "8 legs.", "How many?", False),
        ("8 legs.", "Eight legs.", "How many?", False),
        ("Each of the 3 is red.", "All are red.", "Which of the three are red?", False),
        ("Nothing here.", "Nor here.", "Any?", False),
    ],
)
def test_a_wrong_number_is_missing_or_from_nowhere(answer: str, reference: str, prompt: str, wrong: bool) -> None:
    assert wrong_number(answer, reference, prompt) is wrong


@pytest.mark.parametrize(
    ("answer", "reference", "prompt", "is_echo"),
    [
        ("the chef cooked!", "It was cooked by the chef.", "Passive:\nThe chef cooked.", True),
        ("It rains. I stay.", "Since it rains, I stay.", "Combine them.\nIt rains. I stay.", True),
        ("He ran.", "He runs.", "Present tense:\nHe ran quickly.", True),
        ("I love it.", "I Love It", "Capitalize:\ni love it", True),
        ("they ran", "They ran", "What did they do? They ran.", False),
        ("It was cooked by him.", "It was cooked by the chef.", "Passive:\nThe chef cooked.", False),
        ("fly", "The verb is fly.", "Find the verb:\nBirds fly.", False),
        ("", "The verb is fly.", "Find the verb:\nBirds fly.", False),
        ("red", "big", "red or blue, or predators", True),
        ("red", "big", "predators", False),
    ],
)
def test_an_echo_repeats_a_piece_of_the_prompt(answer: str, reference: str, prompt: str, is_echo: bool) -> None:
    assert echo(answer, reference, prompt) is is_echo


def test_words_are_lower_cased_runs() -> None:
    assert words("It's Café_1, 4.5") == ["it", "s", "café_1", "4", "5"]


def test_the_figure_is_the_weighted_sum_within_its_bounds() -> None:
    assert set(WEIGHTS) == {"novel_f1", "chrf", "wrong_number", "echo"}
    right = {"novel_f1": 0.5, "chrf": 50.0, "wrong_number": 0.0, "echo": 0.0, "unused": 9.0}
    assert calibrated(right) == pytest.approx(5.1 + 32.9 / 2 + 0.367 * 50)
    assert calibrated(right | {"wrong_number": 1.0}) == pytest.approx(5.1 + 32.9 / 2 + 0.367 * 50 - 38.7)
    assert calibrated(right | {"wrong_number": 1.0, "echo": 1.0}) == 0
    assert calibrated({"novel_f1": 1.0, "chrf": 1000.0, "wrong_number": 0.0, "echo": 0.0}) == EXACT_COPY


@given(SHARE, SHARE, SHARE, st.booleans(), st.booleans())
def test_more_agreement_never_scores_less_and_a_fault_never_more(
    novel: float, chrf: float, more: float, wrong: bool, repeats: bool
) -> None:
    at = {"novel_f1": novel, "chrf": 100 * chrf, "wrong_number": float(wrong), "echo": float(repeats)}
    for name, top in (("novel_f1", 1), ("chrf", 100)):
        assert calibrated(at | {name: at[name] + more * (top - at[name])}) >= calibrated(at)
    for fault in ("wrong_number", "echo"):
        assert calibrated(at | {fault: 1.0}) <= calibrated(at) <= calibrated(at | {fault: 0.0}) < EXACT_COPY


def test_ridge_is_its_closed_form_and_keeps_the_signs() -> None:
    random = np.random.default_rng(3)
    values_RF = random.normal(size=(40, 3)) * [1.0, 5.0, 0.2] + 2
    scores_R = values_RF @ [3.0, -1.0, 8.0] + random.normal(size=40)
    scaled_RF = (values_RF - values_RF.mean(0)) / values_RF.std(0)
    closed_F = np.linalg.solve(
        scaled_RF.T @ scaled_RF + 0.3 * 40 * np.eye(3), scaled_RF.T @ (scores_R - scores_R.mean())
    )
    intercept, weights_F = ridge(values_RF, scores_R, np.array([1.0, -1.0, 1.0]), 0.3)
    assert weights_F == pytest.approx(closed_F / values_RF.std(0), abs=1e-9)
    assert intercept == pytest.approx(scores_R.mean() - values_RF.mean(0) @ weights_F, abs=1e-9)
    assert ridge(values_RF, scores_R, np.array([1.0, 1.0, 1.0]), 0.3)[1][1] == 0


@needs_sample
def test_what_is_kept_of_the_sample_is_what_it_gives(tmp_path: Path) -> None:
    """Else it is to be written anew: python -m benchmarks.calibrate SAMPLE --keep FILE."""
    keep(read(SAMPLE), tmp_path / "kept.json")
    assert (tmp_path / "kept.json").read_text() == FEATURES.read_text()


def test_the_frozen_weights_are_those_of_the_answers_they_come_from() -> None:
    judged = read(FEATURES)
    assert (len(judged.scores_R), int(judged.copies_R.sum())) == (100, 49)
    assert judged.scores_R[judged.copies_R].mean() == EXACT_COPY
    assert derive(judged) == (INTERCEPT, dict(WEIGHTS))
    frozen = figures(judged, predict(judged, CHOSEN, (INTERCEPT, np.array(list(WEIGHTS.values())))))
    assert frozen.pearson == pytest.approx(0.910, abs=0.002)
    assert frozen.auc == pytest.approx(0.988, abs=0.002)
    assert frozen.hard == pytest.approx(0.779, abs=0.003)


def test_the_aims_hold_for_entries_left_out() -> None:
    judged = read(FEATURES)
    runs = cross_validate(judged, CHOSEN, repeats=20)
    assert (runs > [0.83, 0.96, 0.50]).all()
    assert runs.mean(axis=0) == pytest.approx([0.886, 0.981, 0.692], abs=0.02)  # less than on the rows fitted


def test_the_frozen_figure_agrees_with_a_reader_of_other_rows() -> None:
    """Answers of the project's own, by which nothing was fitted: what the figure is worth beyond the sample."""
    judged = read(BY_HAND)
    assert (len(judged.scores_R), int(judged.copies_R.sum())) == (48, 17)
    got = figures(judged, predict(judged, CHOSEN, (INTERCEPT, np.array(list(WEIGHTS.values())))))
    assert got.pearson > 0.82
    assert got.auc > 0.95
    assert got.hard > 0.5
    runs = cross_validate(judged, CHOSEN, repeats=5)
    assert (runs.mean(axis=0) > [0.8, 0.93, 0.45]).all()
    bare = cross_validate(judged, (), repeats=5)  # exact copies against the rest
    assert (runs.mean(axis=0) > bare.mean(axis=0)).all()


def test_the_command_prints_the_table_and_says_whether_the_weights_agree(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(FEATURES), "--repeats", "2"]) == 0
    assert "as frozen" in capsys.readouterr().out
    monkeypatch.setattr("benchmarks.calibrate.INTERCEPT", 6.0)
    assert main([str(FEATURES), "--repeats", "2"]) == 1
    assert "NOT as frozen" in capsys.readouterr().out


def test_the_answers_of_an_entry_share_a_fold(tmp_path: Path) -> None:
    """Each entry's two scores make 100, so the mean of all other entries is 50; a single answer left out shifts it."""
    entries = [
        {
            "instruction": "Say it.", "input": "", "output": "Yes.",
            "model 1 response": f"\nNo {n}.", "gpt4_model_1": 50 + 5 * n,
            "model 2 response": f"Never {n}.\n", "gpt4_model_2": 50 - 5 * n,
        }
        for n in range(1, 9)
    ]  # fmt: skip
    path = tmp_path / "judged.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    judged = read(path)
    assert judged.entries_R.tolist() == [n for n in range(8) for _ in range(2)]
    assert not judged.copies_R.any()
    runs = cross_validate(judged, (), repeats=3, folds=8)
    assert runs[:, 1].tolist() == [0.5] * 3  # every prediction is the same
    path.write_text("[]")
    with pytest.raises(DataError, match="no entries"):
        read(path)


def test_figures_by_hand() -> None:
    judged = Judged({}, np.array([100.0, 80, 20, 0]), np.arange(4), np.array([True, False, False, False]))
    got = figures(judged, np.array([100.0, 30, 30, 10]))
    assert got.auc == pytest.approx(3.5 / 4)
    assert got.pearson == pytest.approx(np.corrcoef([100, 80, 20, 0], [100, 30, 30, 10])[0, 1])
    assert got.hard == pytest.approx(np.corrcoef([80, 20, 0], [30, 30, 10])[0, 1])
