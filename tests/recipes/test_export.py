"""Models taken elsewhere and brought back: the same answers, or a clear refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import instil
from instil.data.tokenizers import FastTokenizer
from instil.errors import ModelError, SettingsError, UserError
from instil.model.decoder import batch_of_ids
from instil.model.load import load_decoder
from instil.recipes.export.export import export
from instil.recipes.run.run import Run
from tests.conftest import GPT2_VOCABULARY, rows
from tests.processes import instil as command
from tests.recipes.test_export_gguf import folder_of


def gpt2_folder(folder: Path, heads: int = 2, inner: int | None = 80) -> Path:
    """A random GPT-2 with the real vocabulary; with two heads they are 64 wide, as in the book."""
    import transformers

    torch.manual_seed(4)
    config = transformers.GPT2Config(
        vocab_size=GPT2_VOCABULARY, n_embd=128, n_layer=1, n_head=heads, n_positions=256, n_inner=inner
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    FastTokenizer.gpt2().save(folder)
    return folder


@pytest.fixture(scope="module", params=["tied", "untied"])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A few steps of GPT-2, with the head as hub files have it and with the book's own."""
    folder = tmp_path_factory.mktemp(request.param)
    return instil.finetune(
        rows(20), model=gpt2_folder(folder / "gpt2"), out=folder / "run", max_steps=3, max_new_tokens=4,
        learning_rate=1e-2, untie_head=request.param == "untied",
    )  # fmt: skip


def logits(model: Path) -> torch.Tensor:
    decoder = load_decoder(model)
    with torch.no_grad():
        return decoder.logits(decoder(batch_of_ids(torch.arange(20).view(2, 10))))


def test_a_run_goes_out_as_pth_and_comes_back(tuned: Run, tmp_path: Path) -> None:
    written = export(tuned.path, "pth", tmp_path / "deep" / "gpt2-sft.pth")
    assert torch.equal(logits(written.path), logits(tuned.path / "model"))
    state = torch.load(written.path, weights_only=True)
    same = torch.equal(state["tok_emb.weight"], state["out_head.weight"])
    assert same == load_decoder(tuned.path / "model").spec.tied
    question = "Double the number 7."
    assert instil.load(written.path, max_new_tokens=4).respond(question) == instil.load(tuned.path).respond(question)


@pytest.mark.slow
def test_a_pth_file_can_be_tuned_again_and_becomes_a_folder(tuned: Run, tmp_path: Path) -> None:
    first = export(tuned.path, "pth", tmp_path / "x.pth").path
    again = instil.finetune(rows(12), model=first, out=tmp_path / "again", max_steps=1, max_new_tokens=2)
    assert again.steps == 1
    folder = export(first, "hf", tmp_path / "hub").path
    assert torch.equal(logits(folder), logits(first))
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found = theirs(torch.arange(20).view(2, 10)).logits.flatten(0, 1)
    torch.testing.assert_close(found, logits(first), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_command(tuned: Run, tmp_path: Path) -> None:
    done = command("export", tuned.path, "--to", "pth", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["out"] == "run.pth"
    assert said["bytes"] == (tmp_path / "run.pth").stat().st_size
    answer = command("respond", "run.pth", "-i", "Name a colour.", "-s", "generate.max_new_tokens=3", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    taken = command("export", tuned.path, "--to", "pth", cwd=tmp_path)
    assert taken.returncode == 2
    assert "is there already; choose another --out" in taken.stderr


def test_the_default_name_is_the_whole_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands behind a dot may be a part of it."""
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "model.v2-1.5b", "llama")
    assert str(export("model.v2-1.5b", "hf").path) == "model.v2-1.5b-hf"
    assert str(export("model.v2-1.5b-hf", "hf").path) == "model.v2-1.5b-hf-hf"


def test_a_gguf_file_has_its_own_tokenizer_whatever_it_is_called(tmp_path: Path) -> None:
    """Such as a blob of Ollama's; not the one that lies beside it."""
    folder = folder_of(tmp_path / "model", "llama", max_position_embeddings=512)
    file = export(folder, "gguf", tmp_path / "one.gguf").path
    wanted = instil.load(file).respond_all([{"instruction": "Name a colour."}], max_new_tokens=3)
    for name in ("sha256-0123", "MODEL.GGUF", "model.bin", "other/blob"):
        blob = tmp_path / name
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(file.read_bytes())
        if blob.parent != tmp_path:
            FastTokenizer.gpt2().save(blob.parent)
        assert instil.load(blob).respond_all([{"instruction": "Name a colour."}], max_new_tokens=3) == wanted


def test_a_llama_has_no_pth_of_the_book(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a llama;.*--to hf"):
        export(tiny_folder, "pth", tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


def test_heads_of_another_width_would_be_read_back_wrongly(tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path / "gpt2", heads=4)  # 32 wide, and the width of 128 is a multiple of 64
    with pytest.raises(ModelError, match="heads 32 wide"):
        export(folder, "pth", tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_what_is_there_already_is_left_alone(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for form in ("hf", "pth"):
        with pytest.raises(UserError, match="choose another --out"):
            export(tiny_folder, form, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_unknown_form_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(SettingsError, match="--to tape: wanted one of hf, gguf, pth, gguf-lora, mlx-lora"):
        export(tiny_folder, "tape")
