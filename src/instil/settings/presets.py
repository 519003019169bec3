"""Defaults of the book, of adapters and of preference tuning, where they differ from those of the options."""

from __future__ import annotations

from typing import Any

AS_IN_BOOK: dict[str, dict[str, Any]] = {
    "data": {"template": "alpaca", "train_on": "all", "max_length": 1024, "split": "book"},
    "train": {
        "method": "full",
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 5e-5,
        "weight_decay": 0.1,
        "warmup": 0.0,
        "schedule": "constant",
        "clip": 0.0,
        "eval_every": 5,
        "eval_batches": 5,
        "evaluation": "book",
        "sample": "epoch",
        "order": "book",
        "untie_head": True,
        "drop_last": True,
        "seed": 123,
    },
    "lora": {"rank": 16, "alpha": 16.0, "targets": ("all", "head"), "scaling": "alpha"},  # exercise 7.4, appendix E
    "dpo": {"loss": "dpo", "beta": 0.1, "reduction": "mean", "scored": "book", "keep_equal": True},  # chapter 7's bonus
    "generate": {"max_new_tokens": 256, "temperature": 0.0, "top_k": 0, "header": False},
}

# What the bonus on preference tuning has otherwise, with ``train.objective=dpo``.
PREFERENCE_AS_IN_BOOK: dict[str, dict[str, Any]] = {
    "train": {"epochs": 1, "learning_rate": 5e-6, "weight_decay": 0.01},
}
# Adapters want about ten times the rate of full tuning (docs/log.md; also Schulman et al. 2025, "LoRA Without Regret"),
# unless another scaling makes each step of theirs larger.
LORA: dict[str, dict[str, Any]] = {"train": {"learning_rate": 1e-3}}
PREFERENCE_LORA: dict[str, dict[str, Any]] = {"train": {"learning_rate": 5e-5}}
# Preference tuning moves a model that can answer already: smaller steps, and fewer.
PREFERENCE: dict[str, dict[str, Any]] = {"train": {"epochs": 1, "learning_rate": 5e-6}}
