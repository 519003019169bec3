"""llama.cpp through the prebuilt `xllamacpp` wheel: its server, asked by as many threads as it has slots."""

from __future__ import annotations

import json
import os
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.answerers.telling import Questions, Tell, arguments

CONTEXT = 512  # of each slot


def main(job: Questions, variant: str, tell: Tell) -> None:
    """Answer with ``variant``: the file's type and the number of slots."""
    import xllamacpp

    kind, _, slots = variant.partition("-")
    params = xllamacpp.CommonParams()
    params.model.path = job.extra[kind]
    params.n_parallel = int(slots)
    params.n_ctx = CONTEXT * int(slots)
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
    params.cont_batching = True
    if kind == "F32":  # by default keys and values are rounded to half precision
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.warmup = True
    server = xllamacpp.Server(params)
    tell.loaded()

    def one(prompt: list[int], limit: int) -> list[int]:
        asked: dict[str, Any] = {
            "prompt": prompt,
            "n_predict": limit,
            "temperature": 0,
            "top_k": 1,
            "cache_prompt": True,
            "ignore_eos": not job.stop_ids,
            "return_tokens": True,
        }
        request = urllib.request.Request(
            f"{server.listening_address}/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            said: list[int] = json.load(answer)["tokens"]
        ends = [at for at, token in enumerate(said) if token in job.stop_ids]
        return said[: ends[0]] if ends else said

    one(job.prompts[0], 1)
    tell.first()
    with ThreadPoolExecutor(int(slots)) as pool:
        tell.answered(lambda: list(pool.map(lambda prompt: one(prompt, job.max_new_tokens), job.prompts)))
    tell.end(build=str(getattr(xllamacpp, "BUILD_INFO", "")))


if __name__ == "__main__":
    main(*arguments())
