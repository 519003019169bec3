"""The book's own code (`llms-from-scratch`): its model, its loss of a batch, and the step of its training loop.

Left out are the loop's evaluations and samples, which are no part of a step. The head has a copy of the
embedding of its own, as it has after the chapter has loaded GPT-2's weights.
"""

from __future__ import annotations

import torch

from benchmarks.contenders.track import Job, Track, arguments


def main(job: Job, variant: str, track: Track) -> None:
    """Train."""
    del variant
    from llms_from_scratch.ch04 import GPTModel
    from llms_from_scratch.ch05 import calc_loss_batch

    shape = {key: int(value) for key, value in job.extra.items() if key not in ("weights", "lit")}
    model = GPTModel({**shape, "drop_rate": 0.0, "qkv_bias": True})
    left = model.load_state_dict(torch.load(job.extra["weights"], weights_only=True), strict=False)
    if left.unexpected_keys or any(not name.endswith(".mask") for name in left.missing_keys):
        raise ValueError(f"weights do not fit the book's model: {left}")
    device = torch.device("cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.learning_rate, weight_decay=job.weight_decay)
    model.train()
    track.begin()
    for step in range(len(job.steps)):
        inputs, targets = job.padded(step)
        optimizer.zero_grad()
        loss = calc_loss_batch(inputs, targets, model, device)
        loss.backward()
        optimizer.step()
        track.step(loss.item())
    track.end()


if __name__ == "__main__":
    main(*arguments(), Track())
