"""Unsloth's path for a CPU (2026.10), which it takes by itself where torch finds no accelerator.

It trains with the model of transformers, adapters of PEFT and the trainer of TRL, and adds a loss that computes the
head where there are targets, some rows at a time, and AdamW in one pass. It turns packing off by itself. ``bf16`` keeps
all weights in bfloat16, its default where the processor has units for it; ``fp32`` is its ``dtype=torch.float32``,
which must log our losses. ``lora``: adapters, over frozen weights of that type. ``compiled``: each layer through
torch.compile (``UNSLOTH_CPU_COMPILE=1``, which needs a C++ compiler). Set for speed in all of them: no checkpointing
(Unsloth's default computes every layer again) and no weights of four bits.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from benchmarks.contenders import trl_sft
from benchmarks.contenders.track import ALPHA, RANK, Job, Track, arguments


def main(job: Job, variant: str, track: Track) -> None:
    """Train."""
    asked = variant.split("-")
    os.environ.update(UNSLOTH_FORCE_CPU="1", UNSLOTH_DISABLE_STATISTICS="1")
    os.environ["UNSLOTH_CPU_COMPILE"] = "1" if "compiled" in asked else "0"
    unsloth = importlib.import_module("unsloth")  # before TRL and transformers, which it changes
    import torch
    import trl

    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        str(job.folder),
        max_seq_length=job.max_length + 1,
        dtype=torch.bfloat16 if "bf16" in asked else torch.float32,
        load_in_4bit=False,
        full_finetuning="lora" not in asked,
        use_gradient_checkpointing=False,
    )
    if "lora" in asked:  # by itself on every linear layer but the head, as ours
        model = unsloth.FastLanguageModel.get_peft_model(
            model, r=RANK, lora_alpha=ALPHA, use_gradient_checkpointing=False
        )
    config = trl.SFTConfig(**settings(job, variant))
    trl_sft.train(job, track, model=model, args=config, processing_class=tokenizer)
    told = {name: str(getattr(config, name)) for name in ("bf16", "gradient_checkpointing", "optim", "packing")}
    compiled = bool(getattr(unwrapped(model), "_unsloth_cpu_compiled", False))
    track.end(unsloth=unsloth.__version__, trl=trl.__version__, dtype=str(model.dtype), compiled=compiled, **told)


def settings(job: Job, variant: str) -> dict[str, Any]:
    """The arguments of SFTConfig: those of TRL tuned, but autocast as Unsloth has it by default beside bfloat16."""
    return {**trl_sft.settings(job, "tuned"), "bf16": "bf16" in variant.split("-"), "packing": False}


def unwrapped(model: Any) -> Any:
    """The model within its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


if __name__ == "__main__":
    main(*arguments(), Track())
