"""A run's adapters taken elsewhere: on its base they answer as its model, or they are refused and nothing is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import instil
from instil.errors import ModelError, SettingsError, UserError
from instil.model.files.peft import save_adapter
from instil.model.load import load_decoder
from instil.model.lora import adapters, add_lora
from instil.model.token_rows import TokenRows
from instil.recipes.export.export import FORMS, export
from instil.screen import Screen
from tests.llama_cpp import llama_cpp
from tests.recipes.conftest import tuned

FILES = {"gguf-lora": ["x", "x.jinja"], "mlx-lora": ["x"]}


class Heard(Screen):
    """What was said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str, style: str | None = None) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("form", FILES)
def test_a_run_gives_its_adapters(form: str, lora_run: Path, lora_base: Path, tmp_path: Path) -> None:
    heard = Heard()
    made = export(lora_run, form, tmp_path / "x", screen=heard)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == FILES[form]
    assert made.agreement.exact
    assert made.agreement.places > 10
    assert made.as_json()["to"] == form
    template = tmp_path / ("x.jinja" if form == "gguf-lora" else "x/chat_template.jinja")
    assert "<|im_start|>assistant" in template.read_text()
    assert str(template) in heard.lines[-1]
    (tmp_path / "other").mkdir()
    same = export(lora_base, form, tmp_path / "other" / "x", adapter=lora_run)
    for file in made.path.rglob("*") if made.path.is_dir() else [made.path]:
        assert (same.path / file.name if made.path.is_dir() else same.path).read_bytes() == file.read_bytes()


def test_llama_cpp_answers_as_the_run(lora_run: Path, lora_base: Path, tmp_path: Path) -> None:
    lora = export(lora_run, "gguf-lora", tmp_path / "lora.gguf").path
    file = export(lora_base, "gguf", tmp_path / "base.gguf", template="chatml").path
    assistant = instil.load(lora_run)
    with llama_cpp(file, context=512, lora=lora) as theirs:
        for number in (3, 8):
            asked = f"Double the number {number}."
            ids = theirs.ids(theirs.rendered(("user", asked)), special=True, parse=True)
            (said,) = assistant.respond_all([{"instruction": asked}], max_new_tokens=6)
            found = theirs.greedy(ids, 6)["tokens"]
            text = assistant.tokenizer.decode([one for one in found if one not in assistant.tokenizer.stop_ids])
            assert text.strip() == said.text
            assert len(ids) == said.prompt_tokens


def test_a_base_in_few_bits_is_told_of(lora_base: Path, tmp_path: Path) -> None:
    run, heard = tuned(lora_base, tmp_path, base="nf4"), Heard()
    export(run, "gguf-lora", tmp_path / "x.gguf", screen=heard)
    assert any("trained beside weights in few bits; others put them on the exact ones" in line for line in heard.lines)


def test_what_has_no_adapters_is_refused(plain_run: Path, lora_base: Path, tmp_path: Path) -> None:
    for model, says in (
        (plain_run, "the run has no adapter folder; it was tuned in full"),
        (lora_base, "name their folder"),
    ):
        with pytest.raises(ModelError, match=says):
            export(model, "gguf-lora", tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


def test_a_base_that_has_gone_is_asked_for(lora_run: Path, lora_base: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(lora_run, tmp_path / "run"))
    text = (copied / "run.toml").read_text()
    (copied / "run.toml").write_text(text.replace(str(lora_base), str(tmp_path / "gone")))
    with pytest.raises(ModelError, match=r"belong to is not to be found: .*gone.*instil export BASE --adapter"):
        export(copied, "mlx-lora", tmp_path / "x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("form", FILES)
def test_what_was_trained_beside_them_is_refused(form: str, lora_base: Path, tmp_path: Path) -> None:
    decoder = load_decoder(lora_base)
    add_lora(decoder, rank=2, trainable_token_indices=(5, 9))
    with torch.no_grad():
        for *_, layer in adapters(decoder):
            for n in range(len(layer.rows)):
                layer.block(n).normal_()
        assert isinstance(decoder.embed, TokenRows)
        decoder.embed.rows.add_(1)
    save_adapter(decoder, tmp_path / "adapter", "x")
    with pytest.raises(ModelError, match=r"beside the adapters: rows of model\.embed_tokens; neither llama\.cpp nor"):
        export(lora_base, form, tmp_path / "x", adapter=tmp_path / "adapter", template="alpaca")
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_one_that_says_another_thing_is_not_left(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instil.recipes.export.adapters.add_adapters", lambda *given: None)
    for form in FILES:
        with pytest.raises(ModelError, match="does not answer as the model does, so it was removed again"):
            export(lora_run, form, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_names_that_are_taken(lora_run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jinja").write_text("mine")
    with pytest.raises(UserError, match=r"x\.jinja is there already"):
        export(lora_run, "gguf-lora", tmp_path / "x.gguf")
    (tmp_path / "y.unfinished").mkdir()
    with pytest.raises(UserError, match=r"y\.unfinished is in the way"):
        export(lora_run, "mlx-lora", tmp_path / "y")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x.jinja", "y.unfinished"]
    for form in FILES:
        wrong = "q8_0"
        with pytest.raises(SettingsError, match=f"--dtype q8_0: --to {form} takes {', '.join(FORMS[form].dtypes)}"):
            export(lora_run, form, dtype=wrong)


def test_mlx_lm_is_told_the_base_without_its_path(lora_run: Path, lora_base: Path, tmp_path: Path) -> None:
    said = json.loads((export(lora_run, "mlx-lora", tmp_path / "x").path / "adapter_config.json").read_text())
    assert (said["model"], said["fine_tune_type"]) == (lora_base.name, "lora")
    assert said["num_layers"] == 2
    assert said["lora_parameters"]["rank"] == 4
