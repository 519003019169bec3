"""``--as-in-book`` on preference pairs gives the numbers of an independent, naive version of the chapter's bonus."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import transformers

from instil.model.load import load_decoder
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.tasks.prepare import prepare
from instil.tasks.tune import tune
from tests.conftest import rows
from tests.parity.naive_book import NaiveGPT
from tests.parity.naive_book_dpo import run_bonus
from tests.parity.test_as_in_book import BYTES, tiny_gpt2

__all__ = ["tiny_gpt2"]
STEPS = 7


def entries() -> list[dict[str, str]]:
    """80 pairs, some with equal answers, as the chapter's file has."""
    return [
        {
            "instruction": row["instruction"],
            "input": row["input"],
            "output": row["output"],
            "chosen": row["output"],
            "rejected": row["output"] if n % 20 == 7 else f"{row['output']} Obviously{'!' * (n % 4)}",
        }
        for n, row in enumerate(rows(80))
    ]


def test_every_loss_and_margin_is_the_naive_one(tiny_gpt2: Path) -> None:
    config = json.loads((tiny_gpt2 / "config.json").read_text())
    stored = dict(transformers.GPT2LMHeadModel.from_pretrained(tiny_gpt2).state_dict())
    stored.pop("lm_head.weight")
    naive = [NaiveGPT(stored, config["n_head"], config["n_layer"], config["layer_norm_epsilon"]) for _ in range(2)]
    wanted = run_bonus(*naive, entries(), BYTES.encode, end=256, steps=STEPS)

    settings = resolve(as_in_book=True, values={"objective": "dpo", "max_steps": STEPS})
    assert (settings.train.learning_rate, settings.train.epochs, settings.train.weight_decay) == (5e-6, 1, 0.01)
    prepared = prepare(entries(), tiny_gpt2, settings)
    decoder = load_decoder(tiny_gpt2, dtype=torch.float64)
    decoder.untie()
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ValueError, match="ready"):
            tune(prepared, decoder)  # never on a reference of zeros
        records = tune(prepared.task.ready(prepared, decoder, Screen(quiet=True)), decoder).records
    finally:
        torch.set_default_dtype(torch.float32)
    assert records[0].val_loss == pytest.approx(math.log(2), rel=1e-12)
    assert [record.train_loss for record in records[1:]] == pytest.approx(wanted["steps"], rel=1e-9)
    evaluated = [record for record in records if record.eval_train_loss is not None]
    assert [record.eval_train_loss for record in evaluated] == pytest.approx(wanted["train"], rel=1e-9)
    assert [record.val_loss for record in evaluated] == pytest.approx(wanted["validation"], rel=1e-9)
    margins = [record.val_metrics["margin"] for record in evaluated if record.val_metrics]
    assert margins == pytest.approx(wanted["margin"], rel=1e-6, abs=1e-12)
