"""The engine: prompts in, new ids out, with a cache, several rows side by side.

It speaks ids only. Rows that have finished leave the batch, so that no work is spent on them.

Shape suffixes: B rows · T positions · N tokens, flat · D width · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instil.errors import DataError
from instil.generate.sampling import Pick, greedy
from instil.model.cache import Cache
from instil.model.decoder import Decoder
from instil.records import Batch, Finish, Grid


@dataclass(frozen=True, slots=True)
class Generated:
    """The new ids of one row, without the end token, and why it ended."""

    ids: tuple[int, ...]
    finish: Finish


@torch.inference_mode()
def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    pick: Pick = greedy,
    batch_size: int = 64,
    on_done: Callable[[int, Generated], None] = lambda row, generated: None,
) -> list[Generated]:
    """Continue each prompt until one of ``stop_ids`` or the limit.

    Prompts of like length are computed together; a row's answer does not depend on its neighbours
    (up to rounding in the last bits). Order of the result is that of the prompts.

    Raises:
        DataError: a prompt is empty, or leaves no room in the model's context.
    """
    context = decoder.spec.context
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompt {row} is empty")
        if len(prompt) >= context:
            raise DataError(f"prompt {row} has {len(prompt)} tokens; the model's context is {context}")
    decoder.eval()
    done: dict[int, Generated] = {}

    def finish(row: int, generated: Generated) -> None:
        done[row] = generated
        on_done(row, generated)

    by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for first in range(0, len(by_length), batch_size):
        chosen = by_length[first : first + batch_size]
        _generate_together(decoder, prompts, chosen, max_new_tokens, stop_ids, pick, finish)
    return [done[row] for row in range(len(prompts))]


def _generate_together(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    rows: list[int],
    max_new_tokens: int,
    stop_ids: frozenset[int],
    pick: Pick,
    finish: Callable[[int, Generated], None],
) -> None:
    """Generate for some rows side by side until every one of them has finished."""
    device = decoder.device
    longest = max(len(prompts[row]) for row in rows)
    room = min(longest + max_new_tokens, decoder.spec.context)
    cache = decoder.new_cache(len(rows), room)
    answers: dict[int, list[int]] = {row: [] for row in rows}
    logits_BV = _prefill(decoder, [prompts[row] for row in rows], cache)
    while rows:
        ids_B = pick(logits_BV, rows)
        going: list[int] = []
        for index, (row, token) in enumerate(zip(rows, ids_B.tolist(), strict=True)):
            if token in stop_ids:
                finish(row, Generated(tuple(answers[row]), "stop"))
                continue
            answers[row].append(token)
            full = len(prompts[row]) + len(answers[row]) >= decoder.spec.context
            if len(answers[row]) == max_new_tokens or full:
                finish(row, Generated(tuple(answers[row]), "length"))
                continue
            going.append(index)
        if len(going) < len(rows):
            kept_B = torch.tensor(going, device=device, dtype=torch.long)
            rows = [rows[index] for index in going]
            if not rows:
                return
            cache.keep(kept_B)
            ids_B = ids_B.index_select(0, kept_B)
        logits_BV = decoder.logits(decoder(_one_token_each(ids_B, cache.lengths_B), cache))


def _prefill(decoder: Decoder, prompts: Sequence[Sequence[int]], cache: Cache) -> Tensor:
    """Compute the prompts, fill the cache, and return the logits after each one's last token, [B, V]."""
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    ids: list[int] = []
    owners: list[int] = []
    for row, prompt in enumerate(prompts):
        padding = longest - len(prompt)
        ids.extend((*prompt, *(0,) * padding))
        owners.extend((*(row,) * len(prompt), *(-1,) * padding))
    batch = Batch.untargeted(
        torch.tensor(ids),
        torch.arange(longest).repeat(len(prompts)),
        torch.tensor(owners),
        Grid(len(prompts), longest),
    )
    last_B = torch.tensor([row * longest + length - 1 for row, length in enumerate(lengths)])
    return decoder.logits(decoder(batch.to(decoder.device), cache, wanted_U=last_B.to(decoder.device)))


def _one_token_each(ids_B: Tensor, lengths_B: Tensor) -> Batch:
    rows_B = torch.arange(len(ids_B), device=ids_B.device)
    return Batch.untargeted(ids_B, lengths_B.clone(), rows_B, Grid(len(ids_B), 1))
