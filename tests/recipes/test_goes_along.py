"""What lies beside an exported model: its card, and the Modelfile of a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import instil
from instil.errors import UserError
from instil.recipes.export.export import export
from instil.runs.folder import RunFolder
from instil.runs.model_card import model_card
from tests.conftest import rows


def test_a_run_that_leaves_takes_its_card(plain_run: Path, tmp_path: Path) -> None:
    made = export(plain_run, "hf", tmp_path / "hf")
    card = (made.path / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["instil", "sft"],
    }
    report = json.loads((plain_run / "data.json").read_text())
    assert f"{report['rows']['train']} train, {report['rows']['test']} test" in text
    assert report["hashes"]["rows"] in text
    verdicts = [json.loads(line) for line in (plain_run / "scores" / "tuned.offline.jsonl").read_text().splitlines()]
    chrf = sum(verdict["metrics"]["chrf"] for verdict in verdicts) / len(verdicts)
    assert f"{chrf:.1f} [" in next(line for line in text.splitlines() if line.startswith("| chrF"))
    assert "after is" in text or "distinguish" in text
    assert "`data.template`: `plain`" in text
    assert "`train.max_steps`: `2`" in text
    assert "`train.epochs`" not in text
    assert str(plain_run) not in card
    assert str(tmp_path) not in card


def test_a_base_of_the_hub_is_named_and_a_path_is_not(plain_run: Path, copied_run: Path) -> None:
    file = copied_run / "run.toml"
    model = RunFolder(plain_run).read_settings()["model"]
    for given, wanted in (("gpt2-medium", "openai-community/gpt2-medium"), ("ORG/Name-1B", "ORG/Name-1B")):
        file.write_text((plain_run / "run.toml").read_text().replace(json.dumps(model), json.dumps(given), 1))
        head = yaml.safe_load(model_card(RunFolder(copied_run)).split("---\n", 2)[1])
        assert head["base_model"] == wanted
        assert head.get("license") == ("mit" if given == "gpt2-medium" else None)
    assert "base_model" not in model_card(RunFolder(plain_run))
    assert str(Path(model).parent) not in model_card(RunFolder(plain_run))


def test_a_card_says_what_judges_said_and_which_rows_were_left_out(plain_run: Path, copied_run: Path) -> None:
    """Of judges that were asked of both; a judge's file by its name alone."""
    settings = copied_run / "run.toml"
    settings.write_text(
        settings.read_text().replace(
            json.dumps(RunFolder(copied_run).read_settings()["data"]), '"hf:me/rows@v1/train"', 1
        )
    )
    card = json.loads((copied_run / "data.json").read_text())
    card["rejected"] |= {"left out": 3, "cut": 2}
    card["repeated"]["held_out_prompts_in_training"] = 4
    (copied_run / "data.json").write_text(json.dumps(card))
    plain = model_card(RunFolder(copied_run))
    assert "Judged by other models" not in plain
    for which, score in (("base", 20.0), ("tuned", 80.0)):
        lines = (copied_run / "scores" / f"{which}.offline.jsonl").read_text().splitlines()
        verdicts = [{**json.loads(line), "judge": "/home/me/judge.gguf", "score": score} for line in lines]
        for name in ("judge.gguf", *(["other"] if which == "tuned" else [])):
            text = "".join(f"{json.dumps(verdict)}\n" for verdict in verdicts)
            (copied_run / "scores" / f"{which}.{name}.jsonl").write_text(text)
    said = model_card(RunFolder(copied_run))
    assert yaml.safe_load(said.split("---\n", 2)[1])["datasets"] == ["me/rows"]
    (judged,) = [line for line in said.splitlines() if line.startswith("- judge.gguf: 20.0")]
    assert "80.0 [" in judged
    assert "of 100 before and after; after is not distinguishable from before" in judged  # four rows
    assert "/home/me" not in said
    assert "- left out: 3 rows, and 2 were cut" in said
    assert "- held-out prompts that are training rows', too: 4" in said
    assert "Made with instil" in said


def test_a_card_without_scores(tiny_folder: Path, tmp_path: Path) -> None:
    run = instil.finetune(rows(1), model=tiny_folder, out=tmp_path / "run", max_steps=1)
    card = model_card(RunFolder(run.path))
    assert "## Scores" not in card
    assert "1 row" in card


def test_a_modelfile_has_every_end_as_a_stop_and_no_template(plain_run: Path, tmp_path: Path) -> None:
    made = export(plain_run, "gguf", tmp_path / "mine.gguf")
    text = (tmp_path / "mine.Modelfile").read_text()
    assert text.splitlines() == ["FROM ./mine.gguf", 'PARAMETER stop "<|endoftext|>"', "PARAMETER num_ctx 512"]
    assert "TEMPLATE" not in text
    made.path.unlink()
    with pytest.raises(UserError, match=r"mine\.Modelfile.* is there already"):
        export(plain_run, "gguf", tmp_path / "mine.gguf")
    assert not made.path.exists()
