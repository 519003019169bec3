"""`instil keep`: what runs say of what they lost, what is told of older ones, and what cannot be told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from instil.cli import app
from instil.errors import DataError, UserError
from instil.evaluate.general import measure
from instil.evaluate.general.material import material
from instil.recipes.keep.keep import keep
from instil.recipes.run.run import finetune
from instil.recipes.run.run import run as job
from instil.recipes.verify import verify
from instil.runs.folder import RunFolder
from instil.runs.general import read_general, read_measured
from instil.settings.resolve import resolve
from tests.conftest import make_tiny, rows, single_bytes
from tests.general import little, little_material

HOW: dict[str, Any] = {"max_steps": 4, "learning_rate": 1e-2, "max_new_tokens": 3, "template": "plain"}


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run beside its base and its rows."""
    place = tmp_path_factory.mktemp("kept")
    model = Path(shutil.copytree(tiny_folder, place / "base"))
    (place / "rows.json").write_text(json.dumps(rows(40)))
    finetune(place / "rows.json", model=str(model), out=place / "run", **HOW)
    return place / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def forget(run: Path) -> None:
    """As an earlier version has left it."""
    (run / "keep.json").unlink()
    shutil.rmtree(run / "keep")


def test_a_run_says_what_it_lost(made: Path) -> None:
    found = read_general(RunFolder(made))
    assert found is not None
    assert found.sentences[0].startswith("General texts (3 texts): ")
    assert found.sentences[1].startswith("Small skills (8 probes): ")
    assert found.material == material().hash
    assert found.forms == {"chat": "", "base": "plain", "tuned": "plain"}
    assert found.notes == ["the base carries no chat template, so nothing is measured in one"]
    for side in ("base", "tuned"):
        parts = [one.part for one in read_measured(RunFolder(made), side)]
        assert parts == ["texts"] * 3 + ["skills"] * 8 + ["harmful"] * 2 + ["harmless"] * 2
    page = (made / "report.html").read_text()
    assert "What was lost outside of the rows" in page
    assert "general texts<br>" in page


def test_by_hand_it_says_the_same(run: Path) -> None:
    wanted = {file: file.read_bytes() for file in (run / "keep.json", *sorted((run / "keep").iterdir()))}
    there = keep(run)
    assert there.there
    forget(run)
    found = keep(run)
    assert not found.there
    assert found.general is not None
    assert there.general is not None
    assert found.lines() == there.lines()
    assert {file: file.read_bytes() for file in wanted} == wanted
    assert "What was lost outside of the rows" in (run / "report.html").read_text()
    assert verify(run, rows=0).good


def test_it_is_measured_anew_only_if_that_is_asked_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    call = measure.measure_texts
    monkeypatch.setattr(measure, "measure_texts", lambda *given: asked.append("") or call(*given))
    keep(run)
    assert not asked
    keep(run, again=True)
    assert len(asked) == 2


def test_of_a_base_that_is_gone_the_rest_is_told(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made, tmp_path / "run"))
    forget(run)
    settings = run / "run.toml"
    settings.write_text(settings.read_text().replace(str(made.parent / "base"), str(tmp_path / "gone")))
    found = keep(run)
    assert found.general is None
    assert found.lines()[0].startswith(f"nothing can be said of what was lost: {tmp_path / 'gone'}: no such file")
    assert found.lines()[1].startswith("general texts, bits a byte, of the tuned model alone: ")
    assert len(found.tuned) == 4
    assert not (run / "keep.json").exists()
    settings.write_text(settings.read_text().replace(str(tmp_path / "gone"), str(make_tiny(tmp_path / "gone", seed=7))))
    assert "is another model by now than the one that was tuned" in keep(run).lines()[0]


def test_of_rows_that_are_gone_it_is_said_that_no_kind_is_known(run: Path) -> None:
    forget(run)
    settings = run / "run.toml"
    settings.write_text(settings.read_text().replace("rows.json", "gone.json"))
    found = keep(run)
    assert found.general is not None
    assert any(line.startswith("no skill is left out as one that the run taught") for line in found.lines())


def test_another_tokenizer_is_told_of(run: Path, tmp_path: Path) -> None:
    forget(run)
    (run / "model" / "tokenizer.json").unlink()
    single_bytes().save(run / "model")
    found = keep(run)
    assert any(
        "cuts texts into other tokens than its base; bits a byte can be compared" in one for one in found.lines()
    )


def test_what_the_rows_teach_is_left_out(tiny_folder: Path, tmp_path: Path) -> None:
    asked = [{"instruction": f"Spell word {n}.", "input": "", "output": str(n), "task": "capital"} for n in range(30)]
    made = finetune(asked, model=str(tiny_folder), out=tmp_path / "run", **HOW)
    assert made.general is not None
    assert made.general.left_out == {"capitals": "25 of 25 training rows looked at name the task capital"}
    groups = {one.group for one in read_measured(RunFolder(made.path), "tuned") if one.part == "skills"}
    assert groups == {material().skills[1].name}
    assert "skills left out, since the run's rows teach them: capitals" in made.general.beside()
    found = keep(made.path, again=True)  # the rows were in memory
    assert found.general is not None
    assert found.general.left_out == {}
    assert "was made from rows in memory" in " ".join(found.general.notes)


def test_it_can_be_switched_off(tiny_folder: Path, tmp_path: Path) -> None:
    made = finetune(rows(40), model=str(tiny_folder), out=tmp_path / "run", measure=False, **HOW)
    assert made.general is None
    assert not (tmp_path / "run" / "keep.json").exists()
    assert "What was lost" not in (tmp_path / "run" / "report.html").read_text()
    assert verify(tmp_path / "run", rows=0).good


def test_the_base_is_measured_once_for_several_runs(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    sides: list[int] = []
    call = measure.measure_texts
    monkeypatch.setattr(measure, "measure_texts", lambda *given: sides.append(1) or call(*given))
    settings = resolve(values={**HOW, "learning_rate": 2e-2})
    second = job(made.parent / "rows.json", str(made.parent / "base"), tmp_path / "run", settings, before=[made])
    assert len(sides) == 1
    assert (tmp_path / "run" / "keep" / "base.jsonl").read_bytes() == (made / "keep" / "base.jsonl").read_bytes()
    assert second.general is not None
    (made / "keep" / "base.jsonl").write_bytes(b"")
    job(made.parent / "rows.json", str(made.parent / "base"), tmp_path / "other", settings, before=[made])
    assert len(sides) == 3
    shutil.copy(tmp_path / "run" / "keep" / "base.jsonl", made / "keep" / "base.jsonl")


def changed_rows(run: Path) -> None:
    file = run / "keep" / "tuned.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["value"] -= 0.5
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def changed_sentence(run: Path) -> None:
    said = json.loads((run / "keep.json").read_text())
    said["sentences"][0] = "Nothing was lost."
    (run / "keep.json").write_text(json.dumps(said))


def changed_figure(run: Path) -> None:
    said = json.loads((run / "keep.json").read_text())
    said["changes"][0]["tuned"]["mean"] -= 0.5
    (run / "keep.json").write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed_rows, "keep/tuned.jsonl is not the file that keep.json is of"),
        (changed_sentence, "keep.json has another sentence on general texts than its measurements give"),
        (changed_figure, "keep.json has other figures of general texts than its measurements give"),
        (lambda run: (run / "keep" / "base.jsonl").unlink(), "keep/base.jsonl is missing"),
    ],
)
def test_verify_computes_it_again(change: Callable[[Path], None], said: str, run: Path) -> None:
    assert verify(run, rows=0).good
    change(run)
    assert said in verify(run, rows=0).differs


@pytest.mark.parametrize("verb", ["keep", "blend"])
def test_what_is_no_finished_run_is_one_sentence(verb: str, run: Path, tmp_path: Path) -> None:
    called = CliRunner().invoke(app, [verb, str(tmp_path)])
    assert isinstance(called.exception, UserError)
    assert called.exception.exit_code == 2
    assert str(called.exception) == f"{tmp_path}: no run.toml in it, so it is not a run folder"
    (run / "report.json").unlink()
    called = CliRunner().invoke(app, [verb, str(run)])
    assert str(called.exception) == f"{run}: the run is not finished; go on with it (--resume), and ask then"


def test_what_is_damaged_is_told_of(run: Path) -> None:
    (run / "keep.json").write_text('{"format": 1, "material": 3}')
    with pytest.raises(DataError, match=r"keep\.json: damaged: .*; instil keep --again writes it anew"):
        keep(run)
    (run / "keep.json").write_text('{"format": 2, "material": ""}')
    with pytest.raises(DataError, match=r"keep\.json: "):
        keep(run)


def test_the_command_tells_it_as_json(run: Path) -> None:
    called = CliRunner().invoke(app, ["keep", str(run), "--json"])
    said = json.loads(called.stdout)
    assert said["there"] is True
    assert len(said["general"]["sentences"]) == 4
    lines = CliRunner().invoke(app, ["keep", str(run)]).stdout.splitlines()
    assert lines[: len(said["general"]["sentences"])] == said["general"]["sentences"]


def test_a_model_with_a_chat_template_is_measured_in_it(made: Path, tmp_path: Path) -> None:
    talker = Path(shutil.copytree(made / "model", tmp_path / "talker"))
    (talker / "template.json").unlink()
    found = finetune(rows(40), model=str(talker), out=tmp_path / "run", **{**HOW, "template": "alpaca"}).general
    assert found is not None
    assert found.forms["chat"] == "model"
    assert found.sentences[-1].startswith("Chats in the base's own template (3 chats): ")
    assert found.notes == []


def test_a_warning_says_what_is_worse(tiny_folder: Path, tmp_path: Path) -> None:
    """Rows of one letter, learnt at a rate that spoils the model."""
    with little_material(little(texts=20, probes=10, requests=8)):
        spoilt = [{"instruction": f"Say {n}.", "output": f"{n} q q q q q q q q"} for n in range(40)]
        how = {**HOW, "learning_rate": 0.3, "max_steps": 20}
        found = finetune(spoilt, model=str(tiny_folder), out=tmp_path / "run", **how).general
        assert found is not None
        assert found.warnings[0].startswith("general texts: something was lost there, +")
        assert found.lines()[-1].startswith("warning: ")
        assert '<span class="tag worse">worse</span> general texts: ' in (tmp_path / "run" / "report.html").read_text()
