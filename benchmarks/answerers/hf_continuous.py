"""transformers' continuous batching (`generate_batch`): a paged cache, prompts beginning where others have ended.

In float32, greedy. Without FlashAttention, which needs a GPU, attention goes over all rows of a batch under a mask, so
that its cost grows with their number squared: ``variant`` is how many run side by side. Pages are as short as their
bookkeeping allows, so that prompts share the whole pages of what they begin with in common.
"""

from __future__ import annotations

import torch

from benchmarks.answerers.telling import Questions, Tell, arguments

PAGE = 16  # tokens
BATCH_TOKENS = 512  # of a forward pass at most; more only enlarges the mask


def main(job: Questions, variant: str, tell: Tell) -> None:
    """Answer with ``variant`` requests side by side."""
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig

    model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = job.stop_ids or -1
    model.generation_config.do_sample = False
    tell.loaded()

    def answers(prompts: list[list[int]], limit: int) -> list[list[int]]:
        requests = min(int(variant), len(prompts))
        config = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=requests * pages(max(map(len, prompts)) + limit) + 1,
            max_batch_tokens=BATCH_TOKENS,
            max_requests_per_batch=requests,
        )
        found = model.generate_batch(prompts, continuous_batching_config=config, max_new_tokens=limit)
        if len(found) != len(prompts):
            raise RuntimeError(f"{len(found)} of {len(prompts)} prompts were answered")
        said = [list(one.generated_tokens) for one in found.values()]
        ends = [next((at for at, token in enumerate(row) if token in job.stop_ids), len(row)) for row in said]
        return [row[:end] for row, end in zip(said, ends, strict=True)]

    answers(job.prompts[:1], 1)
    tell.first()
    tell.answered(lambda: answers(job.prompts, job.max_new_tokens))
    tell.end()


def pages(tokens: int) -> int:
    """How many pages so many tokens need.

    >>> pages(16), pages(17)
    (1, 2)
    """
    return -(-tokens // PAGE)


if __name__ == "__main__":
    main(*arguments())
