"""`instil verify`: a run that is as it says, and every way in which it may not be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from instil.errors import DataError, UserError
from instil.files import sha256_of
from instil.recipes.run.run import finetune
from instil.recipes.verify import verify
from tests.conftest import rows


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose base lies beside it."""
    place = tmp_path_factory.mktemp("verified")
    model = Path(shutil.copytree(tiny_folder, place / "base"))
    how = {"max_steps": 6, "learning_rate": 1e-2, "generate": {"max_new_tokens": 6}}
    finetune(rows(40), model=str(model), out=place / "run", **how)
    return place / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_a_run_that_is_as_it_says(run: Path) -> None:
    found = verify(run)
    assert (found.good, found.differs, found.untold) == (True, [], [])
    assert found.answered == {"tuned": 4, "base": 4}
    assert found.verdict == json.loads((run / "verdict.json").read_text())["verdict"]
    assert found.files == len(json.loads((run / "verdict.json").read_text())["files"]) > 10
    assert any("as the run says" in line for line in found.lines())


def changed_answer(run: Path) -> None:
    file = run / "responses" / "tuned.json"
    said = json.loads(file.read_text())
    said[0]["model_response"] = said[0]["output"]
    file.write_text(json.dumps(said))


def changed_score(run: Path) -> None:
    file = run / "scores" / "tuned.offline.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[1]["score"] = 99.5
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def changed_figure(run: Path) -> None:
    file = run / "verdict.json"
    said = json.loads(file.read_text())
    said["figures"]["tuned"]["chrf"] += 0.5
    file.write_text(json.dumps(said))


def changed_sentence(run: Path) -> None:
    file = run / "verdict.json"
    said = json.loads(file.read_text())
    said["verdict"] = "after is better than before (+90.0 points)."
    file.write_text(json.dumps(said))


def another_model(run: Path) -> None:
    """Of which the verdict says that it is the right one."""
    weights = run / "model" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    for at in range(len(damaged) - 40_000, len(damaged) - 1, 4):
        damaged[at + 3 if at + 3 < len(damaged) else at] ^= 0x80  # signs of weights
    weights.write_bytes(bytes(damaged))
    said = json.loads((run / "verdict.json").read_text())
    said["files"]["model/model.safetensors"] = sha256_of(weights)
    (run / "verdict.json").write_text(json.dumps(said))


def added_file(run: Path) -> None:
    (run / "model" / "more.safetensors").write_bytes(b"x")


def missing_file(run: Path) -> None:
    (run / "model" / "generation_config.json").unlink()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            changed_answer,
            ["responses/tuned.json is not the file", "the scores tuned of 1 row are others", "answered"],
        ),
        (changed_score, ["scores/tuned.offline.jsonl is not the file", "the scores tuned of 1 row are others"]),
        (changed_figure, ["chrf tuned is "]),
        (changed_sentence, ["the verdict is: "]),
        (another_model, ["is answered otherwise by the tuned model"]),
        (added_file, ["model/more.safetensors was added since"]),
        (missing_file, ["model/generation_config.json is missing"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_differs_is_named(change: Callable[[Path], None], wanted: list[str], run: Path) -> None:
    change(run)
    found = verify(run, rows=4)
    assert not found.good
    for text in wanted:
        assert any(text in line for line in found.differs), (text, found.differs)


def test_a_base_that_is_not_there_or_another_is_told_of(run: Path, made: Path) -> None:
    settings = run / "run.toml"
    base = made.parent / "base"
    text = settings.read_text()
    settings.write_text(text.replace(str(base), str(base.with_name("gone"))))
    found = verify(run)
    assert found.answered == {"tuned": 4}
    assert len(found.untold) == 1
    assert found.untold[0].startswith("no row is answered by the base again: ")
    assert found.differs == []
    settings.write_text(text.replace("max_steps = 6", "max_steps = 600"))
    assert verify(run, rows=0).differs == ["run.toml has other settings than those that the verdict is of"]
    settings.write_text(text.replace(json.loads((run / "verdict.json").read_text())["base"], "0" * 64))
    assert verify(run, rows=0).differs == ["run.toml has another hash of the model than the verdict"]


def test_no_rows_are_answered_where_none_are_wanted(run: Path) -> None:
    assert verify(run, rows=0).answered == {}


def test_a_run_without_a_verdict(run: Path, tmp_path: Path) -> None:
    (run / "verdict.json").unlink()
    with pytest.raises(DataError, match=r"verdict\.json: not there; runs that answer held-out rows write it"):
        verify(run)
    with pytest.raises(UserError, match=r"no run\.toml in it"):
        verify(tmp_path)
