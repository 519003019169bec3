"""``instil score --check JUDGE --labels FILE``: labels as people give them, judges as they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from instil.errors import DataError, UserError
from instil.evaluate.people import ChoosesLikePeople, LikePeople
from instil.recipes.labels import check_labels, labels_of
from instil.settings.asking import ScoreOptions
from tests.conftest import rows
from tests.faults.judge_server import judging
from tests.processes import instil as command


def labelled(folder: Path, count: int = 40, **changes: Any) -> Path:
    """Every other answer is right, and labelled so."""
    said = [
        {**row, "model_response": row["output"] if n % 2 else "No idea.", "label": n % 2, **changes}
        for n, row in enumerate(rows(count))
    ]
    file = folder / "labels.json"
    file.write_text(json.dumps(said))
    return file


def test_the_offline_judge_is_checked_by_labels(tmp_path: Path) -> None:
    found = check_labels("offline", labelled(tmp_path), ScoreOptions())
    assert isinstance(found, LikePeople)
    assert (found.scale, found.labels, found.scored) == ("right or wrong", 40, 40)
    assert found.kappa is not None and found.kappa.mean == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.json"]


def test_a_model_judge_is_asked_once_about_each_answer(tmp_path: Path) -> None:
    def follows(message: str, number: int) -> str:
        return json.dumps({"score": 1 if "No idea" in message else 5})

    file = labelled(tmp_path)
    with judging(say=follows) as server:
        judge = f"{server.url}/v1"
        found = check_labels(judge, file, ScoreOptions())
        assert isinstance(found, LikePeople)
        assert found.kappa is not None and found.kappa.mean == 1.0
        asked = len(server.asked)
        assert asked == 40
        assert check_labels(judge, file, ScoreOptions()) == found
        assert len(server.asked) == asked  # what it said is kept beside the file


def test_a_judge_by_chance_fails(tmp_path: Path) -> None:
    def chance(message: str, number: int) -> str:
        return json.dumps({"score": hashlib.sha256(message.encode()).digest()[0] % 2 * 4 + 1})

    with judging(say=chance) as server:
        result = command("score", "--check", f"{server.url}/v1", "--labels", labelled(tmp_path))
    assert result.returncode == 1
    assert "no better than chance" in result.stderr
    assert "kappa" in result.stdout


def test_pairs_are_asked_about_in_both_orders(tmp_path: Path) -> None:
    file = tmp_path / "pairs.json"
    pairs = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "No idea."} for row in rows(30)]
    file.write_text(json.dumps(pairs))
    with judging(say=lambda message, number: '{"better": "first"}') as server:
        found = check_labels(f"{server.url}/v1", file, ScoreOptions())
        assert isinstance(found, ChoosesLikePeople)
        assert len(server.asked) == 60
    assert found.first is not None and found.first.mean == 100.0
    assert found.verdicts.consistency == 0.0
    assert found.problems
    with pytest.raises(UserError, match="does not choose"):
        check_labels("offline", file, ScoreOptions())


@pytest.mark.parametrize(
    ("given", "scale", "points"),
    [
        (["good", "Bad ", True], "right or wrong", [[100.0], [0.0], [100.0]]),
        ([1, "3", 5.0], "1 to 5", [[0.0], [50.0], [100.0]]),
        ([80, 3], "0 to 100", [[80.0], [3.0]]),
        ([[4, 5], [2, 2]], "1 to 5", [[75.0, 100.0], [25.0, 25.0]]),
    ],
)
def test_labels_as_people_write_them(given: list[Any], scale: str, points: list[list[float]]) -> None:
    assert labels_of([{"label": one} for one in given], "rows") == (scale, points)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": None}, "None is no label"),
        ({"label": "perhaps"}, "'perhaps' is no label"),
        ({"label": []}, "is no label"),
        ({"label": "nan"}, "is no label"),
        ({"label": 150}, "labels from 150 to 150"),
        ({"label": -1}, "labels from -1 to -1"),
    ],
)
def test_labels_that_are_none_are_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        check_labels("offline", labelled(tmp_path, **changes), ScoreOptions())


def test_what_is_asked_wrongly_is_said_in_one_line(tmp_path: Path) -> None:
    file = labelled(tmp_path)
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps([{**row, "model_response": "x"} for row in rows(3)]))
    for words, said in (
        (["--labels", file], "name the judge to be checked"),
        (["--check", "offline", "--labels", plain], "no row has a label"),
        (["--check", "likelihood", "--labels", file], "cannot be taken of other answers"),
        (["--check", "offline", "--labels", tmp_path / "none.json"], "none.json"),
    ):
        result = command("score", *words)
        assert result.returncode == 2, words
        assert said in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    told = json.loads(command("score", "--check", "offline", "--labels", file, "--json").stdout)
    assert told["kappa"]["mean"] == 1.0
    assert told["labels_needed"] is not None
