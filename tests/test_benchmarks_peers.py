"""Those that the benchmarks compare with: where each is installed, what it is set to, and that it does the job.

What is not installed is left out here as it is there; the parts that `transformers` brings are tried in any case.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import answer, train
from benchmarks.answerers import ANSWERERS, hf, hf_continuous
from benchmarks.answerers.telling import Questions, Tell
from benchmarks.contenders import CONTENDERS, Contender, trl_sft, unsloth_sft
from benchmarks.contenders.track import Job
from benchmarks.environments import installed, python_of
from benchmarks.speeds import collected, speed_table

ROWS = 5


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment beside the one that runs, with a package of its own."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "bench"))
    site = tmp_path / "bench-elsewhere" / "lib" / "python3.11" / "site-packages"
    (site / "package_of_its_own").mkdir(parents=True)
    python = tmp_path / "bench-elsewhere" / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    return python


def test_a_peer_is_looked_for_in_its_own_environment(elsewhere: Path) -> None:
    assert python_of("elsewhere") == elsewhere
    assert installed("package_of_its_own", "elsewhere")
    assert not installed("package_of_its_own")
    assert not installed("another", "elsewhere")
    elsewhere.unlink()  # packages without an interpreter are of no use
    assert not installed("package_of_its_own", "elsewhere")


def test_a_peer_runs_in_its_own_environment(elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both benchmarks ask the interpreter of the environment that has the peer."""
    for room in ("contenders", "answerers"):
        folder = tmp_path / "benchmarks" / room
        folder.mkdir(parents=True)
        (folder / "telling_where.py").write_text(
            "import json, sys\nprint('BENCH', json.dumps({'event': 'end', 'python': sys.executable}), flush=True)\n"
        )
    monkeypatch.setattr(train, "ROOT", tmp_path)
    monkeypatch.setattr(answer, "ROOT", tmp_path)
    work = ["--work", str(tmp_path)]
    peer = Contender("peer", "telling_where", "", ("gpt2",), "", "instil", "package_of_its_own", home="elsewhere")
    assert peer.there
    session = train.run(peer, tmp_path / "job.json", 0, train.parsed(work))
    assert (session.end.get("python"), session.failure) == (str(elsewhere), "")
    one = answer.Answerer("peer", "telling_where", "", ("gpt2",), "package_of_its_own", home="elsewhere")
    assert one.there
    said = answer.run(one, tmp_path / "job.json", 1, 0, answer.parsed(work))
    assert (said.end.get("python"), said.failure) == (str(elsewhere), "")


@pytest.mark.parametrize("one", [*CONTENDERS, *ANSWERERS], ids=lambda one: one.name)
def test_settings_of_every_peer_are_named(one: Any) -> None:
    """Ours run with their defaults, and the book's code has none."""
    assert bool(one.settings) is not (one.ours or one.module == "book")


@pytest.mark.parametrize("variant", ["fp32", "bf16", "lora-bf16", "lora-bf16-compiled"])
def test_unsloth_is_given_the_steps_of_the_others(variant: str) -> None:
    """Rows, rate, decay and order as TRL has them when it is tuned, whatever else is set."""
    job = Job("smollm2", Path(), [[([1, 2], [False, True])]] * 3, 1, 1024, 0, 1e-4, 0.1, Path(), {})
    tuned, found = trl_sft.settings(job, "tuned"), unsloth_sft.settings(job, variant)
    assert found == {**tuned, "bf16": variant != "fp32", "packing": False}
    assert (found["max_steps"], found["learning_rate"], found["gradient_checkpointing"]) == (3, 1e-4, False)


class Listening(Tell):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.ids: list[list[int]] = []

    def answered(self, work: Callable[[], Sequence[Sequence[int]]]) -> None:
        self.ids = [list(ids) for ids in work()]

    def _say(self, what: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize("to_the_end", [False, True])
def test_continuous_batching_says_what_generate_says(tiny_folder: Path, to_the_end: bool) -> None:
    """Prompts of several lengths that begin alike for more than a page, fewer at a time than there are."""
    prompts = [[*range(20, 40), 41 + row, *range(60, 60 + 3 * row)] for row in range(ROWS)]
    plain = Questions("smollm2", tiny_folder, prompts, 8, [], {})
    alone, side = Listening(), Listening()
    hf.main(plain, "1", alone)
    stops = [alone.ids[0][2]] if to_the_end else []  # what ends the first answer after two tokens or fewer
    if stops:
        plain = Questions("smollm2", tiny_folder, prompts, 8, stops, {})
        hf.main(plain, "1", alone)
        assert len(alone.ids[0]) <= 2
    hf_continuous.main(plain, "3", side)
    assert side.ids == alone.ids
    assert len(side.ids) == ROWS


@pytest.mark.slow
@pytest.mark.skipif(not installed("unsloth", "unsloth"), reason="Unsloth's environment is not there: make bench-train")
def test_unsloth_logs_our_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--tiny", "--contenders", "instil", "Unsloth, float32", "Unsloth", "--cases", "gpt2-response"]
    asked += ["--rounds", "1", "--steps", "2", "--warmup", "1", "--batch", "4"]
    assert train.main([*asked, "--work", str(tmp_path / "work"), "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    case = json.loads(next(tmp_path.glob("*.json")).read_text(encoding="utf-8"))["cases"]["gpt2-response"]
    assert case["unequal_losses"] == []
    assert [len(row["losses"]) for row in case["rows"]] == [2, 2, 2]
    assert case["ends"]["Unsloth"]["dtype"] == "torch.bfloat16"


def test_long_beginnings_are_told_apart_from_other_rows(tmp_path: Path) -> None:
    """The same cases with rows of another kind are no second measurement of the first."""

    def stored(data: str, ratio: float) -> Path:
        row = {"contender": "TRL, tuned", "rounds": 3, "peak_gb": 1.0, "same_mathematics_times_as_fast": ratio}
        told = {
            "date": "2026-12-01",
            "hardware": {"cpu": "Some CPU", "cores": 2},
            "settings": {"data": data},
            "cases": {"smollm2-response": {"rows": [row]}},
        }
        file = tmp_path / f"{ratio}.json"
        file.write_text(json.dumps(told), encoding="utf-8")
        return file

    values, told = collected([stored("starter", 4.0), stored("prefix:600,50", 30.0)])
    assert {case: [one["ratio"] for one in found] for case, found in values.items()} == {
        "smollm2-response/TRL, tuned": [4.0],
        "prefix-smollm2-response/TRL, tuned": [30.0],
    }
    table = speed_table(values, told["date"])
    assert (
        "| rows with 600 common and 50 own tokens (SmolLM2-135M): TRL tuned, Unsloth float32, LitGPT | 30, not" in table
    )
    assert "vLLM" not in table  # nothing of it was measured


def test_the_better_of_a_peers_ways_is_told() -> None:
    def one(ratio: float) -> list[dict[str, float]]:
        return [{"ratio": ratio, "rounds": 3, "peak_gb": 1.0}]

    values = {
        "smollm2-response/Unsloth": one(3.0),
        "smollm2-response/Unsloth, compiled": one(2.5),
        "smollm2/transformers, continuous, 8": one(5.0),
        "smollm2/transformers, continuous, 22": one(4.5),
    }
    table = speed_table(values, "here")
    assert "LoRA so | not measured, equal losses; 2.5; not measured |" in table
    assert "| the same, continuous batching | | 4.5; the same tokens |" in table
