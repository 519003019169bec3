"""The benchmark of how cost grows, on points that are known and on a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling


def test_a_table_has_its_slopes() -> None:
    found = [{"at": n, "x": n, "seconds": 0.5 * n, "bytes": 1e6 * n * n, "parameters": 1.0} for n in (1, 2, 4, 8)]
    lines = scaling.table("length", "train", found).splitlines()
    assert lines[2] == "| 1 | 0.500 | 1 |"
    assert lines[-2:] == ["| slope | 1.00 | 2.00 |", "| slope of the upper half | 1.00 | 2.00 |"]


def test_nothing_is_no_reason_for_a_slope() -> None:
    found = [{"at": n, "x": n, "seconds": 1.0, "bytes": 0.0, "parameters": 1.0} for n in (1, 2)]
    assert scaling.table("batch", "answer", found).splitlines()[-1] == "| slope | 0.00 | 0.00 |"


@pytest.mark.parametrize("work", ["train", "answer"])
def test_a_point_is_measured(work: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(scaling.MODELS, "tiny", (2, 32, 4, 2, 64, 300))
    at = {"length": 16, "batch": 2, "rows": 1_000_000, "model": "tiny"}
    monkeypatch.setattr(sys, "argv", ["scaling", "--one", work, json.dumps(at)])
    scaling.main()
    told = json.loads(capsys.readouterr().out)
    assert told["seconds"] > 0 and told["parameters"] > 10_000


def test_points_are_kept_and_replaced_by_those_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def called(pace: float, *more: str) -> dict[tuple[str, str], list[float]]:
        def measured(axis: str, work: str, places: list[Any], rounds: int) -> list[dict[str, Any]]:
            return [{"at": n, "x": n, "seconds": pace * n, "bytes": 1e6, "parameters": 1.0} for n in places[:rounds]]

        monkeypatch.setattr(scaling, "measured", measured)
        monkeypatch.setattr(sys, "argv", ["scaling", "--keep", str(tmp_path / "kept"), "--rounds", "3", *more])
        scaling.main()
        capsys.readouterr()
        return {key: [one["seconds"] for one in found] for key, found in scaling.kept(tmp_path / "kept").items()}

    first = called(1.0, "--axes", "batch")
    assert first == {("batch", "train"): [1, 2, 4], ("batch", "answer"): [1, 2, 4]}
    assert called(2.0, "--axes", "batch", "--only", "answer") == {**first, ("batch", "answer"): [2, 4, 8]}
    assert called(5.0, "--axes", "batch", "--only", "answer", "--rounds", "1")["batch", "answer"] == [5, 4, 8]
    assert called(2.0, "--axes", "batch", "--only", "answer", "--rounds", "1")["batch", "answer"] == [2, 4, 8]
    assert called(9.0, "--axes", "--picture", str(tmp_path / "all.png")) == {**first, ("batch", "answer"): [2, 4, 8]}
    assert (tmp_path / "all.png").is_file()
