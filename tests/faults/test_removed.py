"""Files that somebody removes or damages while a run is at work: made again, or one sentence, and the rest kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instil.errors import DataError, InstilError
from instil.train import training
from tests.conftest import make_tinier
from tests.kills.left import left_by
from tests.recipes.test_going_on import Here


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tinier(tmp_path_factory.mktemp("tinier"))


@pytest.fixture
def here(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.setenv("INSTIL_GEMM", "torch")
    return Here(model, tmp_path / "run")


def whole(here: Here, **how: Any) -> dict[str, Any]:
    other = Here(here.model, here.out.with_name("whole"))
    other.go(**how)
    return left_by(other.out)


def before_step_6(patch: pytest.MonkeyPatch, harm: Callable[[], object]) -> None:
    step, taken = training._step, 0

    def harms(*given: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 6:
            harm()
        return step(*given)

    patch.setattr(training, "_step", harms)


@pytest.mark.parametrize("replaced", [False, True])
def test_metrics_that_are_gone_are_written_anew(replaced: bool, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = whole(here)
    file = here.out / "metrics.jsonl"

    def harm() -> None:
        file.unlink()
        if replaced:
            file.write_text("mine")

    before_step_6(monkeypatch, harm)
    here.go()
    assert f"{file}: it was gone by the end of the training, and is written anew" in here.screen.lines
    assert left_by(here.out) == wanted


def test_a_folder_for_answers_that_is_gone_is_made_again(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = whole(here, answers=True)
    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"no responses/base\.json in it"):
        before_step_6(patch, lambda: shutil.rmtree(here.out / "responses"))
        here.go(answers=True)
    assert (here.out / "responses" / "tuned.json").read_bytes() == wanted["responses/tuned.json"]
    shutil.rmtree(here.out / "responses")
    here.go(answers=True, resume=True)
    assert left_by(here.out) == wanted


@pytest.mark.parametrize(
    ("harm", "said"),
    [(Path.unlink, "the best model so far cannot be read"), (lambda file: file.write_bytes(b"x" * 99), "is damaged")],
    ids=["gone", "damaged"],
)
def test_a_best_model_that_is_gone_is_one_sentence_and_the_run_goes_on_from_its_checkpoint(
    harm: Callable[[Path], object], said: str, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"patience": 9, "eval_every": 4, "learning_rate": 1e-3}
    wanted = whole(here, **how)
    with monkeypatch.context() as patch, pytest.raises(InstilError, match=said) as no:
        before_step_6(patch, lambda: harm(here.out / "checkpoints" / "best.safetensors"))
        here.go(**how)
    assert str(no.value).startswith(f"{here.out / 'checkpoints' / 'best.safetensors'}: the best model so far ")
    assert str(no.value).endswith("The training is kept as it was after step 4 of 7: --resume goes on from there")
    here.go(resume=True, **how)
    assert left_by(here.out) == wanted
