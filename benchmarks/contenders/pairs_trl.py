"""TRL's DPOTrainer, tuned for a CPU as its SFTTrainer is (`trl_sft`), on the same pairs in the same order.

``tuned`` holds a second model for the reference, which is what TRL does by default; ``precomputed`` computes the
reference's log-probabilities beforehand; ``lora`` takes the model without its adapters.
"""

from __future__ import annotations

from typing import Any

from benchmarks.contenders.track import ALPHA, RANK, Job, Track, arguments
from benchmarks.contenders.trl_sft import settings


def main(job: Job, variant: str, track: Track) -> None:
    """Train."""
    import datasets
    import transformers
    import trl

    losses: list[float] = []

    class Trainer(trl.DPOTrainer):  # type: ignore[misc]
        """Keeps the loss of each step at full precision; takes rows that are tokenized already."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            found = super().compute_loss(*args, **kwargs)
            losses.append(float((found[0] if isinstance(found, tuple) else found).detach()))
            return found

    class Steps(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            track.step(losses[-1])

    rows = []
    for step in job.steps:
        for (chosen, trained), (rejected, _) in zip(step[::2], step[1::2], strict=True):
            first = trained.index(True)
            parts = {"prompt_ids": chosen[:first], "chosen_ids": chosen[first:], "rejected_ids": rejected[first:]}
            rows.append({"prompt": "", "chosen": "", "rejected": "", **parts})
    changed = {"precompute_ref_log_probs": variant == "precomputed", "beta": 0.1}
    config = trl.DPOConfig(**{**settings(job, "tuned"), **changed})
    model = transformers.AutoModelForCausalLM.from_pretrained(str(job.folder))
    more: dict[str, Any] = {}
    if variant == "lora":
        import peft

        more = {"peft_config": peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear")}
    trainer = Trainer(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(str(job.folder)),
        callbacks=[Steps()],
        **more,
    )
    track.begin()
    trainer.train()
    told = {name: str(getattr(config, name)) for name in ("bf16", "gradient_checkpointing", "precompute_ref_log_probs")}
    track.end(trl=trl.__version__, transformers=transformers.__version__, **told)


if __name__ == "__main__":
    main(*arguments(), Track())
