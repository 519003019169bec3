"""`instil blend`: mixtures of weights, against weights mixed by hand; which one is chosen, saved and tested."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import instil
from instil.assistant.assistant import Assistant
from instil.cli import app
from instil.data.encoding import encode_many
from instil.errors import DataError, UserError
from instil.evaluate.likelihood import likelihoods
from instil.recipes.keep import blend as module
from instil.recipes.keep.blend import blend
from instil.recipes.run.run import finetune
from instil.records import Completion, Example, Verdict
from instil.runs.blend import Point, chosen_of, read_blend
from instil.runs.folder import RunFolder
from tests.conftest import rows

SCORED = module._answered  # as it is
HOW: dict[str, Any] = {"max_steps": 10, "learning_rate": 5e-3, "max_new_tokens": 4, "template": "plain"}


@pytest.fixture(scope="module")
def made(tinier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("blended")
    model = Path(shutil.copytree(tinier, place / "base"))
    (place / "rows.json").write_text(json.dumps(rows(40)))
    finetune(place / "rows.json", model=str(model), out=place / "run", **HOW)
    return place / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture(autouse=True)
def by_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of this size say nothing that agrees with anything; how likely it is that they would stands for it."""

    def answered(
        assistant: Assistant, rows: Sequence[Example], advance: Callable[[], None] = lambda: None
    ) -> list[Verdict]:
        encoded = encode_many([replace(row, weight=1.0) for row in rows], assistant.template, assistant.tokenizer)
        return [
            replace(one, score=100 * math.exp(-one.metrics["loss"]))
            for one in likelihoods(assistant.decoder, encoded, 512)
        ]

    monkeypatch.setattr(module, "_answered", answered)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_ends_are_base_and_tuned_model(run: Path) -> None:
    found = blend(run).blend
    assert [point.share for point in found.points] == [number / 10 for number in range(11)]
    assert (found.points[0].gain, found.points[0].lost, found.points[-1].gain) == (0.0, 0.0, 1.0)
    kept = json.loads((run / "keep.json").read_text())["changes"][0]
    assert found.points[0].bits == pytest.approx(kept["base"]["mean"], rel=1e-9)
    assert found.points[-1].bits == pytest.approx(kept["tuned"]["mean"], rel=1e-9)
    assert read_blend(RunFolder(run)) == found
    assert "Mixtures with the base" in (run / "report.html").read_text()


def test_what_is_saved_lies_between_and_answers(run: Path, made: Path, tmp_path: Path) -> None:
    found = blend(run, save=tmp_path / "mixed", test=True)
    best = found.blend.best
    assert best is not None
    assert best.gain >= 0.98
    base, tuned, mixed = weights(made.parent / "base"), weights(run / "model"), weights(tmp_path / "mixed")
    assert base.keys() == tuned.keys() == mixed.keys()
    for name, weight in mixed.items():
        assert torch.equal(weight, torch.lerp(base[name], tuned[name], best.share)), name
    assistant = instil.load(tmp_path / "mixed", max_new_tokens=4)
    assert assistant.template.name == "plain"
    assistant.respond("Double the number 3.")
    assert found.test.startswith("On 4 test rows, the mixture is ")
    assert found.lines()[-1] == f"saved: {tmp_path / 'mixed'}"
    said = CliRunner().invoke(app, ["export", str(tmp_path / "mixed"), "--to", "hf", "--out", str(tmp_path / "copy")])
    assert said.exit_code == 0, said.output


def test_the_run_is_left_as_it_was_and_test_rows_choose_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = weights(run / "model")
    monkeypatch.setattr(module, "find_answers", lambda *_, **__: pytest.fail("test rows were looked at"))
    asked: list[str] = []
    read = module.part_of_run
    monkeypatch.setattr(module, "part_of_run", lambda folder, part: asked.append(part) or read(folder, part))
    assert blend(run).test == ""
    assert asked == ["validation"]
    assert all(torch.equal(weight, wanted[name]) for name, weight in weights(run / "model").items())


def test_adapters_are_scaled(tinier: Path, tmp_path: Path) -> None:
    """A mixture is the base with the adapters' product times the share."""
    (tmp_path / "rows.json").write_text(json.dumps(rows(40)))
    how = {**HOW, "method": "lora", "lora": {"rank": 2}, "learning_rate": 2e-2}
    finetune(tmp_path / "rows.json", model=str(tinier), out=tmp_path / "run", **how)
    found = blend(tmp_path / "run", save=tmp_path / "mixed").blend
    assert found.best is not None
    config = tmp_path / "run" / "adapter" / "adapter_config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps({**said, "lora_alpha": said["lora_alpha"] * found.best.share}))
    scaled = instil.load(tinier, adapter=tmp_path / "run" / "adapter").decoder
    mixed = instil.load(tmp_path / "mixed").decoder
    for (name, one), (_, other) in zip(scaled.named_parameters(), mixed.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


def test_answers_choose_and_not_likelihoods(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the references are likeliest, answers need not be the best: half of the way may lose most of the gain."""
    scores = iter([20, 21, 22, 24, 26, 30, 38, 45, 58, 59, 60])

    def answered(assistant: Assistant, rows: Sequence[Example], *_: object) -> list[Verdict]:
        mean = next(scores)
        return [Verdict(row.row, "offline", mean + (-1) ** at) for at, row in enumerate(rows)]

    monkeypatch.setattr(module, "_answered", answered)
    found = blend(run).blend
    assert [point.score for point in found.points] == [20, 21, 22, 24, 26, 30, 38, 45, 58, 59, 60]
    assert [round(point.gain, 3) for point in found.points[-3:]] == [0.95, 0.975, 1.0]
    assert found.chosen == 10
    assert ", and needs" in found.sentence
    assert found.points[0].loss > found.points[-1].loss


@pytest.mark.parametrize("room", [True, False])
def test_answers_are_scored_as_those_of_the_run_are(run: Path, monkeypatch: pytest.MonkeyPatch, room: bool) -> None:
    assistant = instil.load(run, max_new_tokens=4)
    rows = module.part_of_run(RunFolder(run), "validation")
    said = [Completion(row.output, (), "stop" if room else "no_room", 3, row.row) for row in rows]
    monkeypatch.setattr(module, "answer", lambda *_: said)
    assert [one.score for one in SCORED(assistant, rows)] == [100.0 if room else None] * len(rows)


def points(*known: tuple[float, float]) -> list[Point]:
    """Mixtures by gain and loss."""
    return [
        Point(number / 10, 20 + 40 * gain, gain, 1.0, 1.0 + lost, lost) for number, (gain, lost) in enumerate(known)
    ]


def test_the_least_loss_among_those_that_keep_the_gain_is_chosen() -> None:
    assert chosen_of(points((0, 0), (0.97, 0.1), (0.985, 0.2), (0.99, 0.15), (1, 0.3))) == 3
    assert chosen_of(points((0, 0), (0.98, 0.1), (1.2, 0.1), (1, 0.3))) == 1  # of equals the nearest to the base
    assert chosen_of(points((0, 0), (0.5, 0.1), (1, 0.3))) == 2
    assert chosen_of(points((0, 0), (0.5, 0.1), (-0.1, 0.3))) is None


def test_a_model_that_gained_nothing_keeps_none(tinier: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(rows(40)))
    how = {**HOW, "learning_rate": 3.0, "max_steps": 8, "clip": 1.0}
    finetune(tmp_path / "rows.json", model=str(tinier), out=tmp_path / "run", **how)
    found = blend(tmp_path / "run", save=tmp_path / "mixed")
    assert found.blend.chosen is None
    assert found.blend.sentence.endswith("is no better than its base, so there is no gain to keep.")
    assert "nothing was chosen, so nothing is saved or tested" in found.lines()
    assert not (tmp_path / "mixed").exists()


def test_what_cannot_be_mixed_is_one_sentence(run: Path, made: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="full is not empty; choose another --save"):
        blend(run, save=tmp_path / "full")
    settings = run / "run.toml"
    text = settings.read_text()
    settings.write_text(text.replace("rows.json", "gone.json"))
    with pytest.raises(UserError, match=r"gone\.json"):
        blend(run)
    settings.write_text(text.replace(str(made.parent / "base"), str(tmp_path / "gone")))
    with pytest.raises(Exception, match="gone: no such file or folder"):
        blend(run)
    settings.write_text(text)
    split = json.loads((run / "split.json").read_text())
    (run / "split.json").write_text(json.dumps({**split, "validation": []}))
    with pytest.raises(UserError, match="no validation rows with a reference answer"):
        blend(run)


def test_a_run_without_test_rows_is_not_tested_on_those_that_choose(run: Path) -> None:
    facts = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**facts, "part": "validation"}))
    with pytest.raises(UserError, match="those that it answered are the ones that choose the mixture"):
        blend(run, test=True)


def test_a_damaged_file_is_told_of(run: Path) -> None:
    (run / "blend.json").write_text('{"format": 1, "points": []}')
    assert read_blend(RunFolder(run)) is None  # it was chosen by likelihoods
    (run / "blend.json").write_text('{"format": 2, "points": []}')
    with pytest.raises(DataError, match=r"blend\.json: damaged"):
        read_blend(RunFolder(run))
    (run / "blend.json").write_text('{"format": 7}')
    with pytest.raises(DataError, match="has format 7"):
        read_blend(RunFolder(run))


def test_the_command_tells_it_as_json(run: Path) -> None:
    called = CliRunner().invoke(app, ["blend", str(run), "--json"])
    said = json.loads(called.stdout)
    assert len(said["points"]) == 11
    assert said["saved"] == said["test"] == ""
