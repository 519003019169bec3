"""How likely the reference answer is under the model: no judge, no sampling, every token counts.

The score is 100 times the geometric mean of the probabilities of the reference's tokens, its end included. It is the
most sensitive figure between two checkpoints of one model; models with different tokenizers cannot be compared by it.

Rows that begin alike are computed together, and what they have in common once (`instil.data.together`).

Shape suffixes: S predictions · M targets of all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from instil.data.collate import collate_each, computed
from instil.data.together import groups_of, order_of
from instil.model.decoder import Decoder
from instil.records import Encoded, Verdict
from instil.train.losses import log_probs

JUDGE = "likelihood"
ROWS = 8  # side by side, at least
VERSION = 3  # of what is computed; 1 was less exact, in float32 throughout (by 2e-5 nats a token), 2 summed otherwise


def likelihoods(
    decoder: Decoder,
    rows: Sequence[Encoded],
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
        max_length: at most so many positions of each row.
        on_done: called for each row that is looked at.
        known: verdicts on the same rows from before, by their places. Rows are looked at as many together as ever,
            so that the others get the same bits.
        on_verdict: told the place and the verdict of each row that is looked at.
    """
    found: dict[int, Verdict] = {}
    known = known or {}
    for chosen in looked_at_together(rows, max_length):
        if all(index in known for index in chosen):
            found.update((index, known[index]) for index in chosen)
            continue
        for index, (total, count) in zip(
            chosen, nats_of(decoder, [rows[index] for index in chosen], max_length), strict=True
        ):
            found[index] = _verdict(rows[index].row, total, count)
            on_verdict(index, found[index])
            on_done()
    return [found[index] for index in range(len(rows))]


def nats_of(decoder: Decoder, rows: Sequence[Encoded], max_length: int | None = None) -> list[tuple[float, int]]:
    """Of each row the nats of all its targets together, and how many these are; the rows are computed at once."""
    batch, prediction_M, row_M = collate_each(rows, max_length)
    with decoder.without_graph():
        nll_S = -log_probs(decoder, batch.to(decoder.device)).double().cpu()
    sums = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, row_M, nll_S[prediction_M])
    return list(zip(sums.tolist(), torch.bincount(row_M, minlength=len(rows)).tolist(), strict=True))


def looked_at_together(rows: Sequence[Encoded], max_length: int) -> list[list[int]]:
    """The places of rows that are computed side by side: those that begin alike."""
    order = order_of([row.ids for row in rows])
    groups = groups_of(((rows[at].ids, computed(rows[at], max_length)) for at in order), least=ROWS)
    return [[order[at] for at in group] for group in groups]


def _verdict(row: int, total: float, count: int) -> Verdict:
    if not count:
        return Verdict(row, JUDGE, None, "the reference lies beyond the longest row")
    loss = total / count
    return Verdict(row, JUDGE, 100.0 * math.exp(-loss), metrics={"loss": loss, "tokens": float(count)})
