"""llama.cpp in this process (`xllamacpp`), asked for ids and for its greedy tokens; and tiny files to ask it about."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from instil.model.decoder import Decoder, batch_of_ids

WIDTH = 32


class LlamaCpp:
    """A GGUF file behind llama.cpp's server."""

    def __init__(self, path: Path, context: int = 64, lora: Path | None = None) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = 1
        params.n_ctx = context
        params.verbosity = 1
        params.warmup = params.fit_params = False
        params.cpuparams.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = 0  # else attention rounds to half precision, whatever the cache holds
        if lora is not None:
            put_on = xllamacpp.CommonAdapterLoraInfo()
            put_on.path, put_on.scale = str(lora), 1.0
            params.lora_adapters = [put_on]
        self._server = xllamacpp.Server(params)
        self.greedy([0], 1)  # one that is let go before it answers for the first time waits for ever

    def post(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            self._server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=180) as reply:
            return json.load(reply)

    def ids(self, text: str, *, special: bool = False, parse: bool = False) -> list[int]:
        """Ids of a text; with ``special`` what comes before it, with ``parse`` control tokens that it spells."""
        reply = self.post("/tokenize", content=text, add_special=special, parse_special=parse)
        return [int(index) for index in reply["tokens"]]

    def rendered(self, *messages: tuple[str, str]) -> str:
        """A conversation in the file's chat template."""
        said = [{"role": role, "content": content} for role, content in messages]
        return str(self.post("/apply-template", messages=said)["prompt"])

    def greedy(self, ids: Sequence[int], count: int, **more: Any) -> dict[str, Any]:
        """The likeliest continuation: ``tokens`` and ``stop_type``."""
        usual = {
            "temperature": 0, "samplers": ["top_k"], "top_k": 1, "cache_prompt": False, "return_tokens": True,
        }  # fmt: skip
        return dict(self.post("/completion", prompt=list(ids), n_predict=count, **{**usual, **more}))

    def scores(self, ids: Sequence[int], letter: int) -> dict[int, float]:
        """Log-probabilities of all tokens that may follow; ``letter`` is the id of any whole character."""
        reply = self.post(
            "/completion", prompt=list(ids), n_predict=1, temperature=0, samplers=["top_k"], top_k=1, n_probs=100_000,
            cache_prompt=False, logit_bias=[[letter, 1e6]],
        )  # fmt: skip
        return {one["id"]: one["logprob"] for one in reply["completion_probabilities"][0]["top_logprobs"]}

    def close(self) -> None:
        self._server = None


def apart(theirs: LlamaCpp, decoder: Decoder, ids: Sequence[int], letter: int) -> float:
    """The greatest difference of the scores after some ids, of the greatest score; both without their mean."""
    found = theirs.scores(ids, letter)
    with torch.inference_mode():
        ours = decoder.logits(decoder(batch_of_ids(torch.tensor([list(ids)])))[-1:])[0]
    assert len(found) == len(ours)
    said = torch.tensor([found[index] for index in range(len(ours))])
    ours, said = ours - ours.mean(), said - said.mean()
    return float((ours - said).abs().max() / ours.abs().max())


@contextmanager
def llama_cpp(path: Path, context: int = 64, lora: Path | None = None) -> Iterator[LlamaCpp]:
    """A server for as long as it is asked, with adapters on the model if they are given."""
    server = LlamaCpp(path, context, lora)
    try:
        yield server
    finally:
        server.close()


def write_vocabulary(path: Path, tokens: Sequence[str], **values: Any) -> Path:
    """A GGUF file of a model that says nothing, with this vocabulary; values are those of ``tokenizer.ggml``."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in {"model": "gpt2", "tokens": list(tokens), **values}.items():
        name = f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, list(value))
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), WIDTH), np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.zeros(WIDTH, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((WIDTH, WIDTH), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
