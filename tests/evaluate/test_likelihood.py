"""How likely the reference is: against the formula, whatever rows stand beside it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from instil.data.encoding import encode
from instil.data.sources import examples_from
from instil.data.templates import template_named
from instil.data.tokenizers import load_tokenizer
from instil.evaluate.likelihood import likelihoods, looked_at_together
from instil.model.decoder import batch_of_ids
from instil.model.load import load_decoder
from instil.records import Encoded
from tests.conftest import rows


def test_it_is_the_mean_over_the_responses_tokens(tiny_folder: Path) -> None:
    decoder, tokenizer = load_decoder(tiny_folder), load_tokenizer(tiny_folder)
    examples = examples_from(rows(11)).examples
    encoded = [encode(row, template_named("alpaca"), tokenizer) for row in examples]
    done: list[int] = []
    found = likelihoods(decoder, encoded, 1024, lambda: done.append(1))
    assert len(done) == 11
    for row, verdict in zip(encoded, found, strict=True):
        ids = torch.tensor([row.ids])
        with torch.inference_mode():
            scores = decoder.logits(decoder(batch_of_ids(ids))).log_softmax(-1)
        at = [n for n, trained in enumerate(row.trained) if trained]
        loss = -sum(scores[n - 1, row.ids[n]].item() for n in at) / len(at)
        assert verdict.row == row.row
        assert verdict.metrics == {"loss": pytest.approx(loss, abs=1e-5), "tokens": len(at)}
        assert verdict.score == pytest.approx(100 * math.exp(-loss), rel=1e-4)


def test_a_response_beyond_the_longest_row_is_unscored(tiny_folder: Path) -> None:
    decoder, tokenizer = load_decoder(tiny_folder), load_tokenizer(tiny_folder)
    encoded = [encode(row, template_named("alpaca"), tokenizer) for row in examples_from(rows(2)).examples]
    verdicts = likelihoods(decoder, encoded, encoded[0].prompt_length - 1)
    assert verdicts[0].score is None
    assert "beyond the longest row" in verdicts[0].reason


def test_what_rows_begin_with_in_common_is_computed_once_and_changes_nothing(tiny_folder: Path) -> None:
    """Rows that are the same, that go on alike within the answer, and that share a long prompt, in any order."""
    decoder, tokenizer = load_decoder(tiny_folder), load_tokenizer(tiny_folder)
    long = "You are one who helps. " * 20
    made = [
        {"instruction": f"{long}What is {number % 7}?", "output": f"It is {number % 5}, and no more."}
        for number in range(23)
    ]
    encoded = [encode(row, template_named("alpaca"), tokenizer) for row in examples_from(made).examples]
    alone = [likelihoods(decoder, [row], 1024)[0] for row in encoded]
    seen: list[int] = []
    hook = decoder.register_forward_pre_hook(lambda module, given: seen.append(len(given[0].ids_N)))
    try:
        together = likelihoods(decoder, encoded, 1024)
    finally:
        hook.remove()
    assert len(seen) == 1 and sum(seen) < 0.2 * sum(len(row.ids) for row in encoded)
    for one, other in zip(alone, together, strict=True):
        assert one.row == other.row and one.metrics["tokens"] == other.metrics["tokens"]
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], abs=1e-5)


def test_rows_that_share_nothing_stand_as_few_together_as_ever() -> None:
    rows = [Encoded(tuple(range(at, at + 300)), (True,) * 300, row=at) for at in range(20)]
    groups = looked_at_together(rows, 1024)
    assert [len(group) for group in groups] == [8, 8, 4]
    assert sorted(at for group in groups for at in group) == list(range(20))
    assert [len(group) for group in looked_at_together(rows, 10)] == [20]  # of which few positions are computed
