"""transformers: `generate` in float32, greedy, in batches padded on the left; prompts of like length together."""

from __future__ import annotations

import torch

from benchmarks.answerers.telling import Questions, Tell, arguments


def main(job: Questions, variant: str, tell: Tell) -> None:
    """Answer batch after batch of ``variant`` prompts."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = job.stop_ids or None
    model.generation_config.pad_token_id = pad = 0
    tell.loaded()

    @torch.inference_mode()
    def batch(prompts: list[list[int]], limit: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        found = model.generate(ids, attention_mask=mask, max_new_tokens=limit, do_sample=False)[:, longest:].tolist()
        said = []
        for row in found:
            ends = [at for at, token in enumerate(row) if token in job.stop_ids]
            said.append(row[: ends[0]] if ends else row)
        return said

    batch(job.prompts[:1], 1)
    tell.first()
    size = int(variant)
    order = sorted(range(len(job.prompts)), key=lambda row: len(job.prompts[row]))

    def work() -> list[list[int]]:
        answers: dict[int, list[int]] = {}
        for at in range(0, len(order), size):
            rows = order[at : at + size]
            answers.update(zip(rows, batch([job.prompts[row] for row in rows], job.max_new_tokens), strict=True))
        return [answers[row] for row in range(len(order))]

    tell.answered(work)
    tell.end()


if __name__ == "__main__":
    main(*arguments())
