"""``instil more``: the law on scores whose truth is known, and the runs that it rests on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import instil
from instil.data.splits import fewer, split_in_order
from instil.errors import UserError
from instil.evaluate.statistics import interval
from instil.recipes.more.law import common_noise, law_of
from instil.recipes.more.more import more
from instil.records import Example
from instil.runs.answers import read_verdicts
from instil.runs.folder import RunFolder
from tests.conftest import rows
from tests.processes import instil as command

SIZES = (1000, 250, 250, 500)


def scores(exponent: float, draw: np.random.Generator, count: int = 400, shift: float = 0.0) -> list[list[float]]:
    """Of rows whose mean error falls by a law: each is right or wrong, with a chance of its own."""
    hard = draw.normal(0.0, 15.0, count)
    found = []
    for size in SIZES:
        mean = 100.0 - 1000.0**exponent * 40.0 * size**-exponent + (draw.normal(0.0, shift) if shift else 0.0)
        found.append((100.0 * (draw.random(count) * 100.0 < np.clip(mean + hard - hard.mean(), 0, 100))).tolist())
    return found


def test_the_law_is_found_again() -> None:
    exact = [[100.0 - 80.0 * size**-0.3] * 30 for size in SIZES]
    law = law_of(SIZES, exact)
    assert law.exponent == pytest.approx(0.3)
    gain = 80.0 * (1000**-0.3 - 2000**-0.3)
    assert (law.gain, law.low, law.high) == pytest.approx((gain, gain, gain))
    assert law.outcome == "helps"
    assert "Twice as many rows (2,000) would bring about" in law.sentence()
    assert law.curve[0][0] == pytest.approx(250) and law.curve[-1][0] == pytest.approx(2000)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    truth, inside, helps = 40.0 * (1 - 2**-0.3), 0, 0
    for seed in range(40):
        law = law_of(SIZES, scores(0.3, np.random.default_rng(seed)))
        inside += law.low <= truth <= law.high
        helps += law.outcome == "helps"
    assert inside >= 33  # 95 % of 40, and chance
    assert helps >= 35


def test_where_rows_bring_nothing_nothing_is_claimed() -> None:
    said = [law_of(SIZES, scores(0.0, np.random.default_rng(seed))).outcome for seed in range(40)]
    assert said.count("cannot tell") >= 33
    few = law_of(SIZES, scores(0.3, np.random.default_rng(1), count=8))
    assert few.outcome == "cannot tell"
    assert "cannot be told from 8 held-out rows" in few.sentence()


def test_more_rows_that_do_harm_are_told_of() -> None:
    law = law_of(SIZES, [[40.0] * 20, [60.0] * 20, [60.0] * 20, [50.0] * 20])
    assert law.outcome == "hurts" and "would not help" in law.sentence()


def test_trainings_that_differ_by_more_than_their_rows_widen_the_interval() -> None:
    draw = np.random.default_rng(3)
    alike = np.array(scores(0.3, draw))
    assert common_noise(np.array(SIZES, float), alike) < 6.0
    apart = alike.copy()
    apart[2] -= 30.0
    assert common_noise(np.array(SIZES, float), apart) > 10.0
    quiet, loud = law_of(SIZES, alike.tolist()), law_of(SIZES, apart.tolist())
    assert loud.high - loud.low > 2 * (quiet.high - quiet.low)


def test_a_law_wants_two_sizes() -> None:
    with pytest.raises(ValueError, match="two sizes"):
        law_of([5, 5], [[1.0], [2.0]])


def test_fewer_rows_are_drawn_by_a_seed_and_the_held_out_ones_stay() -> None:
    split = split_in_order(tuple(Example(f"Say {n}.", str(n), row=n) for n in range(100)))
    few, other = fewer(split, 20, 1), fewer(split, 20, 2)
    assert [row.row for row in few.train] == sorted(row.row for row in few.train)
    assert set(few.train) < set(fewer(split, 40, 1).train) < set(split.train)
    assert set(few.train) != set(other.train)
    assert (few.test, few.validation) == (split.test, split.validation)
    assert "20 of 85 training rows are trained on" in few.notes[-1]
    assert fewer(split, 0, 1) is fewer(split, 85, 1) is split


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("more")
    (place / "rows.json").write_text(json.dumps(rows(60)))
    how: dict[str, Any] = {"epochs": 1, "max_new_tokens": 4, "template": "plain", "save_every": "0"}
    instil.finetune(place / "rows.json", model=tiny_folder, out=place / "run", **how)
    return place / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_a_quarter_twice_and_half_are_trained_on_and_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = more(run)
    assert sorted(found.law.sizes) == [12, 12, 25, 51]
    held_out = RunFolder(run).held_out_rows()
    train = {}
    for name, at in found.runs.items():
        folder = RunFolder(at)
        assert folder.held_out_rows() == held_out
        train[name] = set(folder.read_split()["train"])
        assert folder.read_settings()["settings"]["train"]["epochs"] == 1
    whole = set(RunFolder(run).read_split()["train"])
    assert train["a quarter"] < train["half"] < whole
    assert train["a quarter"] != train["another quarter"]
    own = interval([one.score or 0.0 for one in read_verdicts(run / "scores" / "tuned.offline.jsonl")])
    assert own is not None and found.law.scores[0] == pytest.approx(own.mean)
    assert (run / "more" / "more.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "more" / "more.json").read_text())["outcome"] == found.law.outcome
    monkeypatch.setattr("instil.recipes.sweep.sweep.run", lambda *args, **kwargs: pytest.fail("made again"))
    assert more(run).law == found.law


def test_steps_that_are_limited_are_limited_in_proportion(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(rows(60)))
    how: dict[str, Any] = {"max_steps": 8, "epochs": 9, "max_new_tokens": 3, "template": "plain"}
    run = instil.finetune(tmp_path / "rows.json", model=tiny_folder, out=tmp_path / "run", **how).path
    found = more(run)
    steps = {name: RunFolder(at).read_settings()["settings"]["train"]["max_steps"] for name, at in found.runs.items()}
    assert steps == {"a quarter": 2, "another quarter": 2, "half": 4}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: (run / "run.toml").unlink(), "not a run folder"),
        (lambda run: (run / "responses/tuned.json").unlink(), "no answers of its tuned model"),
        (
            lambda run: (run / "run.toml").write_text((run / "run.toml").read_text().replace("rows.json", "gone.json")),
            "gone.json",
        ),
    ],
)
def test_a_run_that_cannot_be_made_again_is_refused(change: Callable[[Path], object], said: str, run: Path) -> None:
    change(run)
    with pytest.raises(Exception, match=said) as raised:
        more(run)
    assert isinstance(raised.value, instil.errors.UserError | instil.errors.DataError)
    assert not (run / "more").exists()


def test_few_rows_and_rows_in_memory_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "few.json").write_text(json.dumps(rows(30)))
    how: dict[str, Any] = {"max_steps": 1, "max_new_tokens": 3, "template": "plain"}
    few = instil.finetune(tmp_path / "few.json", model=tiny_folder, out=tmp_path / "few", **how).path
    with pytest.raises(UserError, match="of fewer than 40 a quarter says nothing"):
        more(few)
    held = instil.finetune(rows(60), model=tiny_folder, out=tmp_path / "held", **how).path
    with pytest.raises(UserError, match="in memory"):
        more(held)


def test_the_command_says_it_in_a_sentence_or_in_json(run: Path) -> None:
    shown = command("more", run)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[0].startswith(("Twice as many rows", "What twice as many rows"))
    told = json.loads(command("more", run, "--json").stdout)
    assert told["sizes"] == [51, 12, 12, 25]
    wrong = command("more", run / "none")
    assert wrong.returncode == 2 and len(wrong.stderr.strip().splitlines()) == 1
