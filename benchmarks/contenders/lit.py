"""LitGPT: its model, its loss and its step of full fine-tuning (`litgpt/finetune/full.py`) in float32.

Its default precision, bfloat16 mixed, is left for the same reason as TRL's; its warmup for equal mathematics. Its
head is trained apart from the embedding.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.contenders.track import Job, Track, arguments

NAME = "SmolLM2-135M-Instruct"


def convert(folder: Path) -> None:
    """Make LitGPT's form of a transformers folder, beside it."""
    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

    convert_hf_checkpoint(folder, model_name=NAME)


def main(job: Job, variant: str, track: Track) -> None:
    """Train."""
    del variant
    import lightning
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy, load_checkpoint

    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="32-true")
    with fabric.init_module(empty_init=False):
        model = GPT(Config.from_name(NAME))
    model = fabric.setup(model)
    optimizer = fabric.setup_optimizers(
        torch.optim.AdamW(model.parameters(), lr=job.learning_rate, weight_decay=job.weight_decay)
    )
    load_checkpoint(fabric, model, Path(job.extra["lit"]) / "lit_model.pth")
    model.max_seq_length = min(job.max_length + 1, max(len(ids) for step in job.steps for ids, _ in step))
    model.train()
    track.begin()
    for step in range(len(job.steps)):
        inputs, targets = job.padded(step)
        loss = chunked_cross_entropy(model(inputs), targets)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        track.step(loss.item())
    track.end()


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(Path(sys.argv[2]))
    else:
        main(*arguments(), Track())
