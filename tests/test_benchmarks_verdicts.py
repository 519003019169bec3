"""The benchmark of the verdict itself, on scores whose truth is known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import verdicts


def scores(draws: int = 6, rows: int = 40) -> np.ndarray:
    draw = np.random.default_rng(1)
    return np.where(draw.random((draws, rows)) < draw.random(rows), 100.0, draw.uniform(0, 60, (draws, rows)))


def test_two_draws_of_a_row_are_never_the_same_one() -> None:
    numbered_SR = np.arange(6 * 40, dtype=np.float64).reshape(6, 40)
    a, b, at = verdicts.drawn(numbered_SR, 5000, np.random.default_rng(1))
    assert (a % 40 == at).all()
    assert (b % 40 == at).all()
    assert (a != b).all()
    assert len(set(a.tolist())) == len(set(b.tolist())) == 6 * 40  # each of them comes up


def test_equals_are_seldom_told_apart_and_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned_SR = scores()
    shares = verdicts.wrong(tuned_SR, 60, 60)
    assert set(shares) == {"better", "worse"}
    assert sum(shares.values()) <= 0.15
    base_R = np.zeros(40)
    assert verdicts.power(tuned_SR, base_R, 200, 40.0, 10) == 1.0
    assert verdicts.power(tuned_SR, base_R, 200, 0.5, 10) in (0.0, 0.1, 0.2)
    assert verdicts.power(tuned_SR, base_R, 200, 90.0, 10) is None  # they are not so far apart
    # A verdict that is too sure of itself is found out.
    monkeypatch.setattr(verdicts, "outcome", lambda a, b: "better" if b.mean() > a.mean() else "worse")
    assert sum(verdicts.wrong(tuned_SR, 60, 60).values()) == 1.0


def test_the_known_difference_is_the_one_that_is_made() -> None:
    tuned_SR, base_R = scores(), np.full(40, 5.0)
    gaps = []

    def keep(a: np.ndarray, b: np.ndarray) -> str:
        gaps.append(b.mean() - a.mean())
        return "better"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts, "outcome", keep)
        assert verdicts.power(tuned_SR, base_R, 400, 12.0, 200) == 1.0
    assert np.mean(gaps) == pytest.approx(12.0, abs=1.0)


def test_a_run_is_answered_several_times_and_its_scores_are_kept(
    plain_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "scores.json"
    ask = ["verdicts", str(plain_run), "--samples", "3", "--comparisons", "8", "--rows", "10", "--scores", str(kept)]
    monkeypatch.setattr(sys, "argv", [*ask, "--picture", str(tmp_path / "power.png")])
    verdicts.main()
    told = json.loads(kept.read_text())
    assert np.array(told["tuned"]).shape == (3, told["rows"])
    assert (tmp_path / "power.png").read_bytes().startswith(b"\x89PNG")
    assert "One model with itself, 8 comparisons" in capsys.readouterr().out
    monkeypatch.setattr(verdicts, "scores_of", lambda *args: pytest.fail("it is there"))
    monkeypatch.setattr(sys, "argv", ask)
    verdicts.main()
