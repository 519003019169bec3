"""The `.pth` of an export in the book's own `GPTModel` (package `llms-from-scratch`, of the benchmarks' environment).

Skipped where the package is absent: ``pip install --no-deps llms-from-scratch==1.0.19``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import instil
from instil.model.decoder import batch_of_ids
from instil.recipes.export.export import export
from tests.conftest import GPT2_VOCABULARY, rows
from tests.recipes.test_export import gpt2_folder

SHAPE = {
    "vocab_size": GPT2_VOCABULARY, "context_length": 256, "emb_dim": 128, "n_heads": 2, "n_layers": 1,
    "drop_rate": 0.0, "qkv_bias": True,
}  # fmt: skip


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_the_books_model_takes_it(head: str, tmp_path: Path) -> None:
    """All keys, strictly, with the logits that the run's model has, and the book's own greedy tokens."""
    chapter_4 = pytest.importorskip("llms_from_scratch.ch04")
    chapter_5 = pytest.importorskip("llms_from_scratch.ch05")
    run = instil.finetune(
        rows(16), model=gpt2_folder(tmp_path / "gpt2", inner=None), out=tmp_path / "run", max_steps=3,
        learning_rate=1e-2, max_new_tokens=4, untie_head=head == "untied",
    )  # fmt: skip
    made = export(run.path, "pth", tmp_path / "x.pth")
    model = chapter_4.GPTModel(SHAPE)
    model.load_state_dict(torch.load(made.path, weights_only=True))  # strict: no key more, none less
    model.eval()
    assistant = instil.load(run.path)
    ids = torch.arange(60).view(3, 20) * 7
    with torch.no_grad():
        theirs, ours = model(ids).flatten(0, 1), assistant.decoder.logits(assistant.decoder(batch_of_ids(ids)))
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        whole = chapter_5.generate(model, ids[:1], 8, context_size=256)
        plain = ids[0].tolist()
        for _ in range(8):
            hidden = assistant.decoder(batch_of_ids(torch.tensor([plain])))
            plain.append(int(assistant.decoder.logits(hidden[-1:]).argmax()))
    assert whole[0].tolist() == plain
