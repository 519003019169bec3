"""How likely the reference answer is under the model: no judge, no sampling, every token counts.

The score is 100 times the geometric mean of the probabilities of the reference's tokens, its end included. It is the
most sensitive figure between two checkpoints of one model; models with different tokenizers cannot be compared by it.

Shape suffixes: S predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from instil.data.collate import collate
from instil.model.decoder import Decoder
from instil.records import Encoded, Verdict
from instil.train.losses import log_probs

JUDGE = "likelihood"
ROWS = 8  # side by side
VERSION = 2  # of what is computed; 1 was less exact, in float32 throughout (by 2e-5 nats a token)


def likelihoods(
    decoder: Decoder,
    rows: Sequence[Encoded],
    pad_id: int,
    max_length: int,
    on_done: Callable[[], None] = lambda: None,
    *,
    known: Mapping[int, Verdict] | None = None,
    on_verdict: Callable[[int, Verdict], None] = lambda index, verdict: None,
) -> list[Verdict]:
    """A verdict for each row, encoded with its response as target; metrics ``loss`` (nats a token) and ``tokens``.

    A row whose response lies beyond ``max_length`` is unscored.

    Args:
        decoder: the model.
        rows: the encoded rows.
        pad_id: the id that fills short rows.
        max_length: at most so many positions of each row.
        on_done: called for each row that is looked at.
        known: verdicts on the same rows from before, by their places. Rows are looked at as many together as ever,
            so that the others get the same bits.
        on_verdict: told the place and the verdict of each row that is looked at.
    """
    found: dict[int, Verdict] = {}
    known = known or {}
    for chosen in looked_at_together(rows):
        if all(index in known for index in chosen):
            found.update((index, known[index]) for index in chosen)
            continue
        here = collate([rows[index] for index in chosen], pad_id, max_length)
        counts = torch.bincount(here.rows_N[here.at_S], minlength=len(chosen)).tolist()
        batch = here.to(decoder.device)
        with decoder.without_graph():
            nll_S = -log_probs(decoder, batch).double()
        owner_S = batch.rows_N[batch.at_S]
        sums = torch.zeros(len(chosen), dtype=torch.float64, device=nll_S.device).index_add_(0, owner_S, nll_S)
        for index, total, count in zip(chosen, sums.tolist(), counts, strict=True):
            found[index] = _verdict(rows[index].row, total, count)
            on_verdict(index, found[index])
            on_done()
    return [found[index] for index in range(len(rows))]


def looked_at_together(rows: Sequence[Encoded]) -> list[list[int]]:
    """The places of rows that are computed side by side: those of like length."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    return [order[start : start + ROWS] for start in range(0, len(order), ROWS)]


def _verdict(row: int, total: float, count: int) -> Verdict:
    if not count:
        return Verdict(row, JUDGE, None, "the reference lies beyond the longest row")
    loss = total / count
    return Verdict(row, JUDGE, 100.0 * math.exp(-loss), metrics={"loss": loss, "tokens": float(count)})
