"""Defaults of the book, of adapters and of preference tuning, where they differ from those of the options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from instil.settings.losses import LOSSES, PreferenceLoss

Table = dict[str, dict[str, Any]]

AS_IN_BOOK: Table = {
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
    "generate": {
        "max_new_tokens": 256,
        "temperature": 0.0,
        "top_k": 0,
        "header": False,
        "max_rows": 0,
        "before": "same",
    },
}

# Adapters want about ten times the rate of full tuning (docs/log.md; also Schulman et al. 2025, "LoRA Without Regret"),
# unless another scaling makes each step of theirs larger.
LORA: Table = {"train": {"learning_rate": 1e-3}}


@dataclass(frozen=True, slots=True)
class ObjectivePresets:
    """Defaults of an objective of its own: always, with adapters, as in the book, and of each loss."""

    always: Table
    with_adapters: Table
    as_in_book: Table
    of_losses: Mapping[str, PreferenceLoss]


OBJECTIVES: dict[str, ObjectivePresets] = {  # by ``train.objective``
    # Preference tuning moves a model that can answer already: smaller steps, and fewer.
    "dpo": ObjectivePresets(
        always={"train": {"epochs": 1, "learning_rate": 5e-6}},
        with_adapters={"train": {"learning_rate": 5e-5}},
        as_in_book={"train": {"epochs": 1, "learning_rate": 5e-6, "weight_decay": 0.01}},
        of_losses=LOSSES,
    )
}


def presets(chosen: Mapping[str, Mapping[str, Any]], *, adapters: bool, as_in_book: bool) -> list[Table]:
    """The tables of defaults that go with what was chosen; of two that say something, the later one counts."""
    tables = [AS_IN_BOOK] if as_in_book else [LORA] if adapters else []
    own = OBJECTIVES.get(str(chosen["train"].get("objective")))
    if own:
        tables += [own.as_in_book if as_in_book else own.always, own.with_adapters if adapters else {}]
        loss = own.of_losses.get(str(chosen["dpo"].get("loss")))
        tables.append({"dpo": dict(loss.defaults)} if loss else {})
    return tables
