"""``.pth`` files: the book's names both ways, and nothing in them is ever run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from instil.errors import ModelError
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.families.gpt2 import gpt2_spec
from instil.model.files.pth import load_pth, read_state, save_pth
from instil.model.load import load_decoder
from tests.train.test_training import decoder as tiny_decoder


def gpt2(tied: bool = True, seed: int = 0) -> Decoder:
    """Two heads of 64, the width by which the book's files are understood."""
    torch.manual_seed(seed)
    spec = gpt2_spec(vocab_size=31, width=128, layers=2, heads=2, mlp_width=80, context=24, norm_eps=1e-5, tied=tied)
    model = Decoder(spec)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def logits(model: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(batch_of_ids(torch.arange(20).view(2, 10))))


@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded_back(tied: bool, tmp_path: Path) -> None:
    model = gpt2(tied)
    save_pth(model, tmp_path / "x.pth")
    again = load_decoder(tmp_path / "x.pth")
    assert not again.spec.tied  # the book's head is a parameter of its own
    assert torch.equal(logits(again), logits(model))
    other = gpt2(tied, seed=9)
    load_pth(other, tmp_path / "x.pth")
    assert torch.equal(logits(other), logits(model))


def test_the_names_are_the_books(tmp_path: Path) -> None:
    save_pth(gpt2(), tmp_path / "x.pth")
    names = set(torch.load(tmp_path / "x.pth", weights_only=True))
    wanted = {"tok_emb.weight", "pos_emb.weight", "final_norm.scale", "final_norm.shift", "out_head.weight"}
    for layer in range(2):
        block = f"trf_blocks.{layer}"
        wanted |= {f"{block}.norm{n}.{part}" for n in (1, 2) for part in ("scale", "shift")}
        wanted |= {
            f"{block}.att.{w}.{p}" for w in ("W_query", "W_key", "W_value", "out_proj") for p in ("weight", "bias")
        }
        wanted |= {f"{block}.ff.layers.{n}.{part}" for n in (0, 2) for part in ("weight", "bias")}
        wanted |= {f"{block}.att.mask"}
    assert names == wanted
    # Masks and the tied head are written once, not once a layer.
    assert (tmp_path / "x.pth").stat().st_size < 1.2 * sum(p.numel() for p in gpt2().parameters()) * 4 + 24 * 24 * 4


def test_other_families_go_by_the_names_of_transformers(tmp_path: Path) -> None:
    model = tiny_decoder("llama").float()
    save_pth(model, tmp_path / "x.pth")
    assert "model.layers.0.self_attn.q_proj.weight" in torch.load(tmp_path / "x.pth", weights_only=True)
    other = tiny_decoder("llama", seed=5).float()
    load_pth(other, tmp_path / "x.pth")
    ids = batch_of_ids(torch.arange(10).view(1, 10))
    assert torch.equal(other(ids), model(ids))
    with pytest.raises(ModelError, match="carries no configuration"):
        load_decoder(tmp_path / "x.pth")


def test_a_checkpoint_of_model_and_optimizer_is_understood(tmp_path: Path) -> None:
    model = gpt2()
    save_pth(model, tmp_path / "a.pth")
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    torch.save({"model_state_dict": state, "optimizer_state_dict": {}}, tmp_path / "b.pth")
    assert torch.equal(logits(load_decoder(tmp_path / "b.pth")), logits(model))


class Evil:
    """Would leave a file behind if it were ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.path}",))


def test_a_malicious_file_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    torch.save({"tok_emb.weight": Evil(tmp_path / "owned")}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="nothing in it was run"):
        load_decoder(tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "is empty"), (b"<!DOCTYPE html><html>", "not a file of torch.save"), (b"PK\x03\x04rest", "cut off")],
)
def test_what_is_no_state_dictionary_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ModelError, match=says):
        load_decoder(tmp_path / "x.pth")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_cut_off_is_refused(share: float, tmp_path: Path) -> None:
    save_pth(gpt2(), tmp_path / "x.pth")
    raw = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(ModelError, match="cut off"):
        load_decoder(tmp_path / "x.pth")


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_pth(gpt2(), tmp_path / "x.pth")
    state = read_state(tmp_path / "x.pth")
    del state["trf_blocks.1.att.W_key.bias"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(ModelError, match=r"no tensor 'trf_blocks\.1\.att\.W_key\.bias'"):
        load_decoder(tmp_path / "less.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="dictionary of tensors"):
        load_decoder(tmp_path / "list.pth")


@pytest.mark.parametrize("before", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_that_are_wrapped(before: str, tmp_path: Path) -> None:
    """As ``torch.save(torch.compile(model).state_dict(), ...)`` leaves them."""
    model, llama = gpt2(), tiny_decoder("llama").float()
    save_pth(model, tmp_path / "x.pth")
    save_pth(llama, tmp_path / "y.pth")
    for file in ("x.pth", "y.pth"):
        state = torch.load(tmp_path / file, weights_only=True)
        torch.save({before + name: value for name, value in state.items()}, tmp_path / file)
    assert torch.equal(logits(load_decoder(tmp_path / "x.pth")), logits(model))
    other = tiny_decoder("llama", seed=5).float()
    load_pth(other, tmp_path / "y.pth")
    assert torch.equal(other.embed.weight, llama.embed.weight)
    half = {name if "norm" in name else before + name: value for name, value in state.items()}
    torch.save(half, tmp_path / "y.pth")
    with pytest.raises(ModelError, match="do not all begin alike"):
        load_pth(other, tmp_path / "y.pth")
