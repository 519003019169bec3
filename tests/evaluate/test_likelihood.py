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
from instil.evaluate.likelihood import likelihoods
from instil.model.decoder import batch_of_ids
from instil.model.load import load_decoder
from tests.conftest import rows


def test_it_is_the_mean_over_the_responses_tokens(tiny_folder: Path) -> None:
    decoder, tokenizer = load_decoder(tiny_folder), load_tokenizer(tiny_folder)
    examples = examples_from(rows(11)).examples
    encoded = [encode(row, template_named("alpaca"), tokenizer) for row in examples]
    done: list[int] = []
    found = likelihoods(decoder, encoded, tokenizer.eos_id, 1024, lambda: done.append(1))
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
    verdicts = likelihoods(decoder, encoded, tokenizer.eos_id, encoded[0].prompt_length - 1)
    assert verdicts[0].score is None
    assert "beyond the longest row" in verdicts[0].reason
