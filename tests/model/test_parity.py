"""The same logits as transformers, through the real loaders, for every family and format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from instil.model.decoder import batch_of_ids
from instil.model.files.folder import save_decoder
from instil.model.files.reader import hub_tensors
from instil.model.find import find_model
from instil.model.load import load_decoder
from tests.conftest import tiny_reference
from tests.model.family_cases import CASES
from tests.model.files.gguf_files import write_gguf

FAMILIES = list(CASES)
IN_GGUF = [name for name, case in CASES.items() if case.gguf is not None]
IDS_BT = torch.randint(0, 97, (3, 23), generator=torch.Generator().manual_seed(3))


def both_logits(model: Any, path: Path, ids: torch.Tensor = IDS_BT) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [B, T, V] of a file read here, and of a model of transformers."""
    decoder = load_decoder(path)
    with torch.no_grad():
        ours = decoder.logits(decoder(batch_of_ids(ids))).view(*ids.shape, -1)
        return ours, model(ids).logits


def assert_same_logits(model: Any, path: Path, ids: torch.Tensor = IDS_BT, tolerance: float = 1e-5) -> None:
    """Within so many parts of the greatest score, or of each: processors round in different places."""
    ours, theirs = both_logits(model, path, ids)
    greatest = max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * greatest)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_from_a_folder(family: str, tied: bool, tmp_path: Path) -> None:
    theirs = tiny_reference(family, tied=tied)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(theirs, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_from_a_sharded_folder(family: str, tmp_path: Path) -> None:
    theirs = tiny_reference(family)
    theirs.save_pretrained(tmp_path, max_shard_size="6KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert_same_logits(theirs, tmp_path)


def test_logits_from_a_gpt2_folder_of_the_hub(tmp_path: Path) -> None:
    """The hub's GPT-2 has no prefix, and carries the causal masks as tensors."""
    from safetensors.torch import save_file

    theirs = tiny_reference("gpt2")
    theirs.save_pretrained(tmp_path)
    tensors = {k.removeprefix("transformer."): v.clone() for k, v in theirs.state_dict().items() if "lm_head" not in k}
    tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(2)}
    save_file(tensors, str(tmp_path / "model.safetensors"))
    assert_same_logits(theirs, tmp_path)


def test_logits_from_a_llama_folder_of_before_rope_parameters(tmp_path: Path) -> None:
    """Older folders say only ``rope_theta``, beside the other keys."""
    import transformers

    tiny_reference("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("rope_parameters")["rope_theta"] == 5000
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_theta": 700.0, "rope_scaling": None}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_same_logits(theirs, tmp_path)
    assert load_decoder(tmp_path).spec.rope_theta == 700
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(AssertionError, match="not close"):  # the default base is another model
        assert_same_logits(theirs, tmp_path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", IN_GGUF)
def test_logits_from_gguf(family: str, tied: bool, tmp_path: Path) -> None:
    theirs = tiny_reference(family, tied=tied, **(CASES[family].gguf or {}))
    write_gguf(theirs, tmp_path / "tiny.gguf")
    assert_same_logits(theirs, tmp_path / "tiny.gguf")


def wide_llama(width: int) -> Any:
    """A Llama whose matrices are as wide as a block of a quantised format."""
    import transformers

    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=width, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        head_dim=width // 4, intermediate_size=width, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


QUANTISED = ["F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_matrices_are_read(kind: str, tmp_path: Path) -> None:
    """The model is given the dequantised values of the file, and must then have the same logits."""
    theirs = wide_llama(256 if kind.endswith("K") else 32)
    raw = write_gguf(theirs, tmp_path / "tiny.gguf", Kind[kind])
    decoder = load_decoder(tmp_path / "tiny.gguf")
    wanted = dequantize(raw["token_embd.weight"], Kind[kind])
    assert np.isfinite(wanted).all()
    assert wanted.std() > 0
    np.testing.assert_array_equal(decoder.embed.weight.detach().numpy(), wanted)
    state = {}
    for name, value in hub_tensors(decoder):
        state[name] = value
    theirs.load_state_dict(state, strict=False)
    assert_same_logits(theirs, tmp_path / "tiny.gguf")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_what_is_saved(family: str, tied: bool, tmp_path: Path) -> None:
    tiny_reference(family, tied=tied).save_pretrained(tmp_path / "theirs")
    again = saved_and_opened(tmp_path / "theirs", tmp_path / "ours")
    assert_same_logits(again, tmp_path / "theirs")
    assert again.config.eos_token_id == 1
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["tie_word_embeddings"] is tied


def saved_and_opened(folder: Path, to: Path) -> Any:
    """The model after a round through our own folder, opened by transformers, which finds all of it and no more."""
    import transformers

    to.mkdir()
    save_decoder(load_decoder(folder), to, eos_id=1)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(to, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return again


@pytest.mark.slow
@pytest.mark.real
def test_the_real_smollm2_has_the_logits_of_transformers() -> None:
    """Slow, because transformers takes long over a GGUF file; small ones of every family are compared beside it."""
    import transformers

    path = find_model("smollm2-135m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    ids = torch.randint(0, 49152, (2, 40), generator=torch.Generator().manual_seed(1))
    assert_same_logits(theirs, path, ids, tolerance=2e-4)  # logits reach 40, over thirty layers of fp32
