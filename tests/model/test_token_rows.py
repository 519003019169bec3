"""Rows of a frozen embedding that are trained: as if the table were whole, in losses and gradients, and no others."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from instil.batches import Batch
from instil.data.collate import collate, collate_shared
from instil.errors import ModelError, SettingsError
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.files.reader import hub_tensors
from instil.model.load import load_decoder
from instil.model.lora import add_lora, merge, trained_parameters
from instil.model.token_rows import TokenHead, TokenRows, train_rows
from instil.records import Encoded
from instil.train.losses import log_probs, nll_sum
from instil.train.optimizer import AdamWInBackward
from tests.conftest import tiny_reference

FAMILIES = ("gpt2", "llama", "gemma3", "qwen3")
ROWS = (9, 40, 2, 96)  # the first is read, the second predicted only, the third both, the last neither
IDS = torch.tensor([[5, 9, 2, 40, 33, 7, 61, 3]])


def decoder_of(folder: Path, family: str, *, tied: bool, dtype: torch.dtype = torch.float64) -> Decoder:
    tiny_reference(family, tied=tied).save_pretrained(folder)
    return load_decoder(folder, dtype=dtype)


def batch(layout: str) -> Batch:
    rows = [
        Encoded(tuple(row), (False,) * 3 + (True,) * (len(row) - 3))
        for row in ([5, 9, 2, 9, 40], [5, 9, 7, 3, 1, 2, 40])
    ]
    return collate_shared(rows) if layout == "shared" else collate(rows, 0)


def scores(decoder: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return decoder.logits(decoder(batch_of_ids(IDS)))


def moved(decoder: Decoder) -> Decoder:
    torch.manual_seed(5)
    with torch.no_grad():
        decoder.embed.rows.add_(torch.randn_like(decoder.embed.rows))
    return decoder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_losses_and_gradients_are_those_of_the_whole_table(
    tmp_path: Path, family: str, tied: bool, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 to 1e-12: against the same values in one table that is trained whole; also in chunks of scores."""
    decoder = decoder_of(tmp_path, family, tied=tied)
    add_lora(decoder, rank=2, trainable_token_indices=ROWS)
    moved(decoder)
    whole = copy.deepcopy(decoder)
    merge(whole)
    wanted = nll_sum(whole, batch(layout))
    wanted.backward()
    for most in (1 << 29, 97 * 8 * 2):
        monkeypatch.setattr("instil.train.head_loss.LARGEST_SCORES", most)
        monkeypatch.setattr("instil.train.head_loss.CHEAP_SCORES", most)
        for loss in (
            lambda: nll_sum(decoder, batch(layout)),
            lambda: -(log_probs(decoder, batch(layout)) * batch(layout).weights_S).sum(),
        ):
            decoder.zero_grad()
            found = loss()
            found.backward()
            assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
            theirs, ours = whole.embed.weight.grad, decoder.embed.rows.grad
            assert theirs is not None
            assert ours is not None
            assert (ours - theirs[list(ROWS)]).abs().max() <= 1e-12 * theirs.abs().max()
            assert decoder.embed.weight.grad is decoder.head.weight.grad is None
    assert bool(ours[3].any()) == tied  # as the head it is read by every prediction
    with torch.no_grad():
        assert nll_sum(decoder, batch(layout)).item() == pytest.approx(wanted.item(), rel=1e-12)


@pytest.mark.parametrize("tied", [True, False])
def test_they_begin_as_they_are_and_merge_as_they_became(tmp_path: Path, tied: bool) -> None:
    decoder = decoder_of(tmp_path, "llama", tied=tied, dtype=torch.float32)
    plain, before = scores(decoder), decoder.embed.weight.detach().clone()
    parameters = decoder.parameter_count
    thin = add_lora(copy.deepcopy(decoder), rank=2)
    assert add_lora(decoder, rank=2, trainable_token_indices=ROWS) == thin + 4 * 24 == trained_parameters(decoder)
    assert isinstance(decoder.head, TokenHead) == tied
    assert (scores(decoder) - plain).abs().max() / plain.abs().max() < 1e-6
    with pytest.raises(ModelError, match="merge them first"):
        list(hub_tensors(decoder))
    became = scores(moved(decoder))
    merge(decoder)
    assert (scores(decoder) - became).abs().max() / became.abs().max() < 1e-6
    rest = [token for token in range(97) if token not in ROWS]
    assert torch.equal(decoder.embed.weight[rest], before[rest])
    assert (decoder.embed.weight[list(ROWS)] != before[list(ROWS)]).all()
    assert decoder.parameter_count == parameters
    assert (decoder.head.weight is decoder.embed.weight) == tied == decoder.spec.tied
    assert all(parameter.requires_grad for parameter in decoder.parameters())


def test_a_step_changes_these_rows_alone(tmp_path: Path) -> None:
    decoder = decoder_of(tmp_path, "llama", tied=True)
    add_lora(decoder, rank=2, trainable_token_indices=ROWS)
    before = {name: value.detach().clone() for name, value in decoder.named_parameters()}
    updates = AdamWInBackward(decoder.parameters(), weight_decay=0.0)
    updates.learning_rate = 0.1
    updates.backward(nll_sum(decoder, batch("padded")), last=True)
    updates.finish()
    updates.close()
    changed = {name for name, value in decoder.named_parameters() if not torch.equal(value, before[name])}
    assert "embed.rows" in changed
    trained = {name for name, value in decoder.named_parameters() if value.requires_grad}
    assert changed == {name for name in trained if "lora_a" not in name}  # whose B was zero


def test_bfloat16_products(tmp_path: Path) -> None:
    decoder = decoder_of(tmp_path, "llama", tied=True, dtype=torch.float32)
    add_lora(decoder, rank=2, trainable_token_indices=ROWS)
    moved(decoder)
    exact = nll_sum(decoder, batch("padded"))
    with torch.autocast("cpu", torch.bfloat16):
        near = nll_sum(decoder, batch("padded"))
    near.backward()
    assert decoder.embed.rows.grad is not None
    assert near.item() == pytest.approx(exact.item(), rel=0.02)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    decoder = decoder_of(tmp_path, "llama", tied=True)
    for ids, says in (((97,), "97 is no token's id"), ((-1,), "-1 is no token's id"), ((3, 3), "names a token twice")):
        with pytest.raises(SettingsError, match=rf"lora\.trainable_token_indices.*{says}"):
            add_lora(decoder, rank=2, trainable_token_indices=ids)
    assert all(parameter.requires_grad for parameter in decoder.parameters())
    with pytest.raises(SettingsError, match=r"leave head out of lora\.targets"):
        add_lora(decoder, rank=2, targets=("all", "head"), trainable_token_indices=(3,))
    train_rows(decoder, (3,))
    with pytest.raises(SettingsError, match="has adapters already"):
        add_lora(decoder, rank=2, trainable_token_indices=(3,))
    with pytest.raises(SettingsError, match="has trained rows already"):
        train_rows(decoder, (4,))
    decoder = decoder_of(tmp_path, "llama", tied=False)
    add_lora(decoder, rank=2, targets=("all", "head"), trainable_token_indices=(3,))
    assert isinstance(decoder.embed, TokenRows)
