"""TRL's SFTTrainer, tuned for a CPU and as shipped.

``tuned`` is what one who knows it would set on a CPU: no bfloat16, no checkpointing; and, so that it computes
the same, no clipping, a constant rate and the job's decay. ``shipped`` leaves all of these at their defaults.
Both get rows that are tokenized already, in the job's order.
"""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks.contenders.track import ALPHA, RANK, Job, Track, arguments

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", WANDB_DISABLED="true")


def settings(job: Job, variant: str) -> dict[str, Any]:
    """The arguments of SFTConfig."""
    common = {
        "output_dir": str(job.scratch / "trl"),
        "per_device_train_batch_size": job.batch_size,
        "per_device_eval_batch_size": job.batch_size,
        "max_steps": len(job.steps),
        "learning_rate": job.learning_rate,
        "train_sampling_strategy": "sequential",
        "max_length": job.max_length + 1,  # of ids, of which the last is only a target
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if variant == "shipped":
        return common
    return {
        **common,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "weight_decay": job.weight_decay,
    }


def labels(ids: list[int], trained: list[bool]) -> list[int]:
    """-100 where nothing is trained on, and at the first id, which nothing predicts.

    The Trainer counts labels before they are shifted, so a first id left in would enlarge the count that the loss
    is divided by, but not the loss: about 2 % at these lengths.
    """
    wanted = [False, *trained[1:]]
    return [id_ if chosen else -100 for id_, chosen in zip(ids, wanted, strict=True)]


def main(job: Job, variant: str, track: Track) -> None:
    """Train."""
    import transformers
    import trl

    adapters = {}
    if variant == "lora":  # on every linear layer but the head, as ours
        import peft

        adapters = {"peft_config": peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear")}
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(job.folder))
    config = trl.SFTConfig(**settings(job, variant))
    train(job, track, model=str(job.folder), args=config, processing_class=tokenizer, **adapters)
    told = {name: str(getattr(config, name)) for name in ("bf16", "gradient_checkpointing", "optim", "max_grad_norm")}
    track.end(trl=trl.__version__, transformers=transformers.__version__, **told)


def train(job: Job, track: Track, **given: Any) -> None:
    """Train the job's rows with the trainer that `trl` has by now, and tell of every step."""
    import datasets
    import transformers
    import trl

    losses: list[float] = []

    class Trainer(trl.SFTTrainer):  # type: ignore[misc]
        """Keeps the loss of each step at full precision; the log rounds it."""

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            found = super().compute_loss(*args, **kwargs)
            losses.append(float((found[0] if isinstance(found, tuple) else found).detach()))
            return found

    class Steps(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            track.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            track.step(losses[-1])

    rows = [{"input_ids": ids, "labels": labels(ids, trained)} for step in job.steps for ids, trained in step]
    data = datasets.Dataset.from_list(rows)
    trainer = Trainer(train_dataset=data, eval_dataset=data if job.evaluate else None, callbacks=[Steps()], **given)
    trainer.train()
    if job.evaluate:
        started = time.perf_counter()
        found = trainer.evaluate()
        track.evaluated(found["eval_loss"], time.perf_counter() - started)


if __name__ == "__main__":
    main(*arguments(), Track())
