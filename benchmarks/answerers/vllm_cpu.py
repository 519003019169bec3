"""vLLM's build for a CPU, through its offline interface: all prompts at once, its scheduler and its prefix cache.

``fp32`` computes throughout in float32; ``bf16`` in what the processor has units for, which is not exact. Set for
speed: all in one process, whose threads may use every core (a process for the model would leave one core of two to the
scheduler); Intel's OpenMP loaded first, as its documentation advises (it comes with the package); layers compiled,
which takes minutes once, or not (``-eager``); pages of 32 tokens instead of 128, so that prompts share the whole pages
of what they begin with in common.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.answerers.telling import Questions, Tell, arguments

CACHE_GIB = 2
PAGE = 32  # tokens; its kernels want multiples of 32


def main(job: Questions, variant: str, tell: Tell) -> None:
    """Answer with ``variant``: the type that is computed in, and ``-eager`` without compiling."""
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE=str(CACHE_GIB),
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_NO_USAGE_STATS="1",
        VLLM_DO_NOT_TRACK="1",
        HF_HUB_OFFLINE="1",
    )
    import vllm

    kind, _, eager = variant.partition("-")
    longest = max(map(len, job.prompts)) + job.max_new_tokens
    model = vllm.LLM(
        str(job.folder),
        dtype={"fp32": "float32", "bf16": "bfloat16"}[kind],
        max_model_len=longest + 1,
        max_num_seqs=min(len(job.prompts), 128),
        block_size=PAGE,
        enable_prefix_caching=True,
        enforce_eager=bool(eager),
    )
    tell.loaded()

    def answers(prompts: list[list[int]], limit: int) -> list[list[int]]:
        asked = vllm.SamplingParams(
            temperature=0.0, max_tokens=limit, ignore_eos=True, stop_token_ids=job.stop_ids, detokenize=False
        )
        found = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False)
        said = [list(one.outputs[0].token_ids) for one in found]
        ends = [next((at for at, token in enumerate(row) if token in job.stop_ids), len(row)) for row in said]
        return [row[:end] for row, end in zip(said, ends, strict=True)]

    answers(job.prompts[:1], 1)
    tell.first()
    tell.answered(lambda: answers(job.prompts, job.max_new_tokens))
    tell.end(vllm=vllm.__version__)


def preload() -> None:
    """Begin anew with Intel's OpenMP loaded before torch's, where it is there."""
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    if openmp.is_file() and "libiomp" not in os.environ.get("LD_PRELOAD", ""):
        os.environ["LD_PRELOAD"] = str(openmp)
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.answerers.vllm_cpu", *sys.argv[1:]])


if __name__ == "__main__":
    preload()
    main(*arguments())
