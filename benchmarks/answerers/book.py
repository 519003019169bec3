"""The book's own code (`llms-from-scratch`): `generate` of chapter 5.

Its variant with a cache is left out: in 1.0.19 the cached GPT-2 cuts its mask along the wrong axis and ends with an
error at the second token.
"""

from __future__ import annotations

import torch

from benchmarks.answerers.telling import Questions, Tell, arguments


def main(job: Questions, variant: str, tell: Tell) -> None:
    """Answer one prompt after another."""
    del variant
    from llms_from_scratch.ch04 import GPTModel
    from llms_from_scratch.ch05 import generate

    shape = {key: int(value) for key, value in job.extra.items() if key != "weights"}
    model = GPTModel({**shape, "drop_rate": 0.0, "qkv_bias": True})
    left = model.load_state_dict(torch.load(job.extra["weights"], weights_only=True), strict=False)
    if left.unexpected_keys or any(not name.endswith("mask") for name in left.missing_keys):
        raise ValueError(f"weights do not fit the book's model: {left}")
    model.eval()
    tell.loaded()

    def one(prompt: list[int], limit: int) -> list[int]:
        ids = torch.tensor([prompt])
        end = job.stop_ids[0] if job.stop_ids else None
        whole = generate(model, ids, limit, context_size=shape["context_length"], eos_id=end)
        said: list[int] = whole[0, len(prompt) :].tolist()
        ends = [at for at, token in enumerate(said) if token in job.stop_ids]
        return said[: ends[0]] if ends else said

    one(job.prompts[0], 1)
    tell.first()
    tell.answered(lambda: [one(prompt, job.max_new_tokens) for prompt in job.prompts])
    tell.end()


if __name__ == "__main__":
    main(*arguments())
