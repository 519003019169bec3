"""Every family through the whole of it: all layouts, the cache, and transformers, say the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from instil.batches import Batch
from instil.data.collate import collate, collate_shared
from instil.generate.prompts import generate
from instil.model.decoder import Decoder
from instil.model.load import load_decoder
from instil.records import Encoded
from instil.tasks.pairs.batches import collate_pairs
from instil.tasks.pairs.losses import answers_of
from instil.train.losses import log_probs, nll_sum
from tests.closeness import assert_e1
from tests.conftest import tiny_reference
from tests.model.family_cases import CASES
from tests.parity.test_pair_layouts import pair

COMMON = (5, 9, 2, 40, 33, 7, 61)  # longer than the windows
ROWS = [(*COMMON, 8, 1, 90), (*COMMON, 77, 12), (*COMMON, 8, 4, 6, 6, 21), (3, 4)]


@pytest.mark.parametrize("case", CASES)
def test_all_layouts_have_the_losses_of_transformers(case: str, tmp_path: Path) -> None:
    """Losses and gradients in float64 of rows side by side, of rows with a shared prefix, and of forks."""
    theirs = tiny_reference(case).double()
    theirs.save_pretrained(tmp_path)
    model = load_decoder(tmp_path, dtype=torch.float64)
    rows = encoded_rows()
    wanted = torch.zeros((), dtype=torch.float64)
    for row in rows:
        targets = torch.tensor([id_ if trained else -100 for id_, trained in zip(row.ids, row.trained, strict=True)])
        scores_TV = theirs(torch.tensor([row.ids])).logits[0, :-1]
        wanted = wanted + F.cross_entropy(scores_TV, targets[1:], reduction="sum")
    found = [loss_and_gradients(model, b) for b in (collate(rows, 0), collate_shared(rows[:3]), collate_shared(rows))]
    torch.testing.assert_close(found[0][0], wanted.detach(), rtol=1e-6, atol=1e-6)  # rope is in float32 there
    assert_e1(found[2], found[0])
    alone = loss_and_gradients(model, collate(rows[3:], 0))
    assert_e1([part + more for part, more in zip(found[1], alone, strict=True)], found[0])
    assert_e1(*pairs_in_both_layouts(model))


def encoded_rows() -> list[Encoded]:
    return [Encoded(ids, tuple(n % 3 > 0 for n in range(len(ids))), 2) for ids in ROWS]


def loss_and_gradients(model: Decoder, batch: Batch) -> list[torch.Tensor]:
    loss = nll_sum(model, batch)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def pairs_in_both_layouts(model: Decoder) -> list[list[torch.Tensor]]:
    """A sum of answers' log-probabilities and its gradients: of forks, and of rows side by side."""
    pairs = [pair(COMMON, (8, 1, 90), (8, 4)), pair((*COMMON, 3, 3), (6,), (21, 5, 7, 7)), pair((5, 9), (2, 1), (4,))]
    found = []
    for layout in ("shared", "padded"):
        batch = collate_pairs(pairs, 0, None, layout)  # type: ignore[arg-type]
        answers = answers_of(batch, log_probs(model, batch))
        score = (answers.chosen_P - 2 * answers.rejected_P).sum()
        found.append([score.detach(), *torch.autograd.grad(score, list(model.parameters()))])
    return found


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    """Of prompts side by side, through our cache, against each alone, through theirs."""
    theirs = tiny_reference(case)
    theirs.save_pretrained(tmp_path)
    for ours, wanted in both_answers(theirs, tmp_path):
        assert ours == wanted


def both_answers(theirs: Any, folder: Path) -> Iterator[tuple[list[int], list[int]]]:
    """Ids of greedy answers, here and in transformers."""
    prompts = [list(COMMON), [3], [*COMMON, *COMMON[:5]]]
    found = generate(load_decoder(folder), prompts, max_new_tokens=9, stop_ids=frozenset())
    for prompt, one in zip(prompts, found, strict=True):
        with torch.inference_mode():
            wanted = theirs.generate(
                torch.tensor([prompt]), max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        yield list(one.ids), wanted[0, len(prompt) :].tolist()
