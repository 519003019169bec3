"""GGUF files as llama.cpp reads them: a tiny model of each architecture says the same there, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from instil.model.decoder import batch_of_ids
from instil.model.load import load_decoder
from tests.conftest import tiny_reference
from tests.model.family_cases import CASES, FULL, WINDOWED, rope
from tests.model.files.gguf_files import write_gguf

xllamacpp = pytest.importorskip("xllamacpp")

IDS = torch.randint(2, 97, (23,), generator=torch.Generator().manual_seed(3)).tolist()
# llama.cpp wants the heads of these to be as wide together as the model, and a head of its own.
OLMO = {"tied": False, "attention_bias": False, "hidden_size": 24, "head_dim": 8}
# Its GELU is a table of half-precision numbers.
GELU = 5e-3
LONG = {"original_max_position_embeddings": 300, "max_position_embeddings": 900}  # its own context is within 300
YARN = rope(300.0, "yarn", factor=3.0, original_max_position_embeddings=20)
LLAMA3 = rope(
    500.0, "llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
KNOWN = {WINDOWED: rope(10_000.0), FULL: rope(4000.0)}  # it knows the base of layers with a window by heart


@pytest.fixture
def vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens no file without one."""
    add = gguf.GGUFWriter.write_header_to_file

    def with_tokens(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([f"t{i}" for i in range(97)])
        writer.add_token_types([1] * 97)
        writer.add_token_merges(["t 1"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_add_bos_token(False)
        add(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_tokens)


@pytest.mark.usefixtures("vocabulary")
@pytest.mark.parametrize(
    ("case", "changes", "tolerance"),
    [
        ("llama", {}, 1e-5),
        ("gemma", {"attention_bias": False}, GELU),
        ("gemma2", {}, GELU),
        ("gemma2", {"layer_types": [FULL, FULL, WINDOWED], "rope_parameters": rope(300.0, "linear", factor=3.0)}, GELU),
        ("gemma3-capped", {"rope_parameters": KNOWN}, GELU),
        ("granite", {}, 1e-5),
        ("qwen2", {}, 1e-5),
        ("qwen2", {"rope_parameters": YARN}, 1e-5),
        ("mistral", {}, 1e-5),
        ("llama", {"rope_parameters": LLAMA3}, 1e-5),
        ("llama", {"rope_parameters": rope(300.0, "linear", factor=3.0)}, 1e-5),
        ("smollm3", {}, 1e-5),
        ("phi3", {"sliding_window": None}, 1e-5),
        ("phi3-longrope", {**LONG, "sliding_window": None}, 1e-5),
        ("starcoder2", {}, GELU),
        ("gpt_neox", {"tied": False}, GELU),
        ("gpt_neox", {"use_parallel_residual": False, "tied": False}, GELU),
        ("qwen3", {"attention_bias": False}, 1e-5),
        ("olmo2", {**OLMO, "head_dim": 4}, 1e-5),
        ("olmo3", OLMO, 1e-5),
        ("olmo3-yarn", {**OLMO, "layer_types": [FULL, WINDOWED] * 2}, 1e-5),
    ],
)
def test_llama_cpp_reads_the_same(case: str, changes: dict[str, Any], tolerance: float, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny_reference(case, **{**(CASES[case].gguf or {}), **changes}), path)
    decoder = load_decoder(path)
    with torch.inference_mode():
        ours = decoder.logits(decoder(batch_of_ids(torch.tensor([IDS]))))[-1].log_softmax(-1)
    torch.testing.assert_close(said_by_llama_cpp(path), ours, rtol=0, atol=tolerance)
    assert ours.max() - ours.min() > 0.5


def said_by_llama_cpp(path: Path) -> torch.Tensor:
    """Log-probabilities of the token after `IDS`, [V], with nothing narrower than float32."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel, params.n_ctx, params.verbosity, params.warmup = 1, 64, -1, False
    params.cpuparams.n_threads = 1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    reply = xllamacpp.Server(params).handle_completions(
        {"prompt": IDS, "n_predict": 1, "n_probs": 97, "cache_prompt": False, "temperature": 0.0}
    )
    said = {one["id"]: one["logprob"] for one in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    assert len(said) == 97
    return torch.tensor([said[id_] for id_ in range(97)])
