"""Preference tuning of SmolLM2's real weights, of which a tenth lie exactly between two numbers of bfloat16."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from instil.data.loader import Loader
from instil.data.templates import template_named
from instil.model.find import find_model
from instil.model.load import load_decoder
from instil.settings.options import DpoOptions, TrainOptions
from instil.tasks.pairs.batches import PairCollator, collate_pairs
from instil.tasks.pairs.encoding import encode_pair
from instil.tasks.pairs.losses import Preference, reference_log_probs
from instil.tasks.pairs.source import pairs_from
from instil.train.loop import train
from tests.conftest import smollm2
from tests.tasks.pairs.test_preferences import pairs


def losses(precision: Literal["fp32", "bf16"]) -> list[float]:
    """Of each step over the same four pairs at DPO's default rate."""
    tokenizer = smollm2()
    encoded = [encode_pair(pair, template_named("alpaca"), tokenizer) for pair in pairs_from(pairs(4), "pairs").pairs]
    decoder = load_decoder(find_model("smollm2-135m"))
    batch = collate_pairs(encoded, tokenizer.eos_id, 1024, "shared")
    found = reference_log_probs(decoder, batch, precision)
    scored = [replace(pair, reference=one) for pair, one in zip(encoded, found, strict=True)]
    loader = Loader(scored, 4, pad_id=tokenizer.eos_id, shuffle=False, layout="shared", collator=PairCollator)
    options = TrainOptions(epochs=4, batch_size=4, learning_rate=5e-6, eval_every=0, precision=precision)
    records = train(decoder, loader, options, objective=Preference(DpoOptions())).records
    return [record.train_loss for record in records if record.train_loss is not None]


@pytest.mark.real
def test_updates_in_bfloat16_do_what_they_do_in_float32() -> None:
    """With weights rounded to the nearest the first update did three times as much."""
    exact, narrow = losses("fp32"), losses("bf16")
    assert exact[0] - exact[-1] > 0.1
    assert narrow == pytest.approx(exact, abs=0.1 * (exact[0] - exact[-1]))
