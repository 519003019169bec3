"""Adapters taken to a model: it answers as the run's merged one; twice, elsewhere or damaged they are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import instil
from instil.errors import ModelError, TemplateMismatch, UserError
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.load import load_decoder
from instil.recipes.export.export import export
from instil.recipes.plan.plan import plan
from instil.settings.resolve import resolve
from tests.conftest import TINY_VOCABULARY, rows, tiny_reference
from tests.processes import instil as command
from tests.recipes.test_export_gguf import folder_of


@pytest.fixture(scope="module", params=["fp32", "nf4", "int8"])
def run(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters, beside exact weights and beside rounded ones, with a template that the model lacks."""
    return instil.finetune(
        rows(40), model=tiny_folder, out=tmp_path_factory.mktemp("adapted") / "run", method="lora",
        lora={"rank": 4, "base": request.param}, template="phi3", learning_rate=2e-2, epochs=2, max_new_tokens=4,
    ).path  # fmt: skip


def logits(decoder: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return decoder.logits(decoder(batch_of_ids(torch.arange(5, 30)[None])))


def apart(one: Decoder, other: Decoder) -> float:
    return float((logits(one) - logits(other)).abs().max() / logits(other).abs().max())


@pytest.mark.slow
def test_the_model_with_the_adapter_is_the_runs(run: Path, tiny_folder: Path, tmp_path: Path) -> None:
    merged = instil.load(run)
    for given in (run / "adapter", run):
        found = instil.load(tiny_folder, adapter=given)
        assert apart(found.decoder, merged.decoder) < 1e-5
        assert found.template.hash == merged.template.hash
    assert apart(load_decoder(tiny_folder), merged.decoder) > 1e-3
    with pytest.raises(TemplateMismatch):
        instil.load(tiny_folder, adapter=run, template="alpaca")
    export(tiny_folder, "hf", tmp_path / "hf", adapter=run / "adapter")
    assert apart(load_decoder(tmp_path / "hf"), merged.decoder) < 1e-5
    said = command("respond", str(tiny_folder), "--adapter", str(run), "-i", "Double 3.", "--json")
    wanted = command("respond", str(run), "-i", "Double 3.", "--set", "generate.max_new_tokens=256", "--json")
    assert said.returncode == wanted.returncode == 0, said.stderr
    assert json.loads(said.stdout)["model_response"].startswith(json.loads(wanted.stdout)["model_response"][:8])


def test_weights_in_few_bits_are_named(run: Path) -> None:
    settings = resolve(config=run / "run.toml")
    facts = json.loads((run / "report.json").read_text())
    note = [line for line in facts["preflight"] if "not exact" in line]
    if settings.lora.base == "fp32":
        assert not note
        assert not (run / "adapter" / "base.json").exists()
        return
    bits = {"nf4": 4, "int8": 8}[settings.lora.base]
    assert note == [f"the frozen weights are in {bits} bits (lora.base={settings.lora.base}): not exact"]
    assert note[0] in (run / "report.html").read_text()
    assert json.loads((run / "adapter" / "base.json").read_text()) == {"weights": settings.lora.base, "block": 64}


def test_what_is_in_the_model_already_is_refused(run: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run / "adapter", tmp_path / "copied")
    for model in (run, run / "model"):
        for given in (run, run / "adapter", copied):
            with pytest.raises(UserError, match=r"are in .* already"):
                instil.load(model, adapter=given)
    said = command("respond", str(run), "--adapter", str(copied), "-i", "Go.")
    assert said.returncode == 2
    assert "already" in said.stderr


OTHER_BASE = "trained beside other weights"


@pytest.mark.slow
def test_on_another_base_than_their_own_it_is_said(tmp_path: Path) -> None:
    """Put on the model that they are in already, in a copy of it elsewhere; and of a run that went on from a run."""
    base = folder_of(tmp_path / "base", "llama", max_position_embeddings=512)
    quick = {"method": "lora", "max_steps": 1, "max_new_tokens": 1}
    run = instil.finetune(rows(9), model=base, out=tmp_path / "run", **quick).path
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    for given in (run, run / "adapter"):
        assert instil.load(base, adapter=given).decoder.notes == ()
        assert instil.load(moved, adapter=given).decoder.notes == ()
    exported = export(run, "hf", tmp_path / "exported").path
    for given in (run, run / "adapter"):
        (note,) = instil.load(exported, adapter=given).decoder.notes
        assert all(part in note for part in (OTHER_BASE, str(base), str(exported)))
    again = instil.finetune(rows(9), model=run, out=tmp_path / "again", **quick)
    assert instil.load(run, adapter=again.path).decoder.notes == ()
    said = command("respond", base, "--adapter", again.path, "-i", "Go.", "--set", "generate.max_new_tokens=1")
    assert said.returncode == 0
    assert OTHER_BASE in said.stderr
    copied = shutil.copytree(run / "adapter", tmp_path / "copied")  # of which nothing is known
    assert instil.load(moved, adapter=copied).decoder.notes == ()


def test_what_does_not_fit_or_is_none_is_refused(run: Path, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter_config\.json: cannot be read"):
        instil.load(tiny_folder, adapter=tiny_folder)
    with pytest.raises(ModelError, match=r"adapter_config\.json: cannot be read"):
        instil.load(tiny_folder, adapter=tmp_path / "nowhere")
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    tiny_reference("llama", vocab_size=TINY_VOCABULARY, hidden_size=30).save_pretrained(other)
    with pytest.raises(ModelError, match="has shapes"):
        instil.load(other, adapter=run)
    damaged = Path(shutil.copytree(run / "adapter", tmp_path / "damaged"))
    (damaged / "base.json").write_text('{"weights": "nf3"}')
    with pytest.raises(ModelError, match="how the weights beside the adapters were rounded"):
        instil.load(tiny_folder, adapter=damaged)
    (damaged / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors in it"):
        instil.load(tiny_folder, adapter=damaged)


def test_an_adapter_of_peft(tiny_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    with torch.inference_mode():
        wanted = theirs(torch.arange(5, 30)[None]).logits[0]
    found = logits(instil.load(tiny_folder, adapter=tmp_path / "adapter").decoder)
    assert (found - wanted).abs().max() / wanted.abs().max() < 1e-5


@pytest.mark.slow
def test_an_adapter_with_tables_and_rows_is_taken_along(tiny_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for number, how in enumerate(({"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [7, 29]})):
        config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **how)
        theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), config).eval()
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if parameter.requires_grad and "lora" not in name:
                    parameter.mul_(1.5)
        theirs.save_pretrained(tmp_path / f"adapter{number}")
        with torch.inference_mode():
            wanted = theirs(torch.arange(5, 30)[None]).logits[0]
        export(tiny_folder, "hf", tmp_path / f"hf{number}", adapter=tmp_path / f"adapter{number}")
        for found in (instil.load(tiny_folder, adapter=tmp_path / f"adapter{number}").decoder,
                      load_decoder(tmp_path / f"hf{number}")):  # fmt: skip
            assert (logits(found) - wanted).abs().max() / wanted.abs().max() < 1e-5
            assert found.spec.tied == (number == 1)
        reopened = AutoModelForCausalLM.from_pretrained(tmp_path / f"hf{number}").eval()
        with torch.inference_mode():
            assert (reopened(torch.arange(5, 30)[None]).logits[0] - wanted).abs().max() / wanted.abs().max() < 1e-5


def test_a_plan_counts_weights_in_few_bits(tiny_folder: Path) -> None:
    made = {
        base: plan(
            rows(40), tiny_folder,
            resolve(values={"method": "lora", "lora": {"rank": 2, "base": base}, "max_new_tokens": 2}),
        ).memory
        for base in ("fp32", "nf4")
    }  # fmt: skip
    assert made["fp32"].saved == 0
    assert made["nf4"].saved > 0
    assert made["nf4"].weights == made["fp32"].weights
