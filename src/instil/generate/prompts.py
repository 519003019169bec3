"""Many prompts through one engine: what they begin with alike once, then all of them, the longest first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from instil.data.tree import common_prefix
from instil.errors import DataError
from instil.generate.engine import Engine
from instil.generate.request import Generated, Request
from instil.generate.sampling import Sampling
from instil.model.decoder import Decoder

WORTH_SHARING = 4  # tokens that prompts begin with alike for which a pass of their own pays


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    sampling: Callable[[int], Sampling] = lambda row: Sampling(),
    batch_size: int = 128,
    on_token: Callable[[int, int], bool | None] | None = None,
    on_done: Callable[[int, Generated], None] = lambda row, generated: None,
    engine: Engine | None = None,
) -> list[Generated]:
    """Continue each prompt until one of ``stop_ids`` or the limit; results in the order of the prompts.

    A row's answer does not depend on its neighbours (sampled ones up to rounding in the last bits).

    Args:
        decoder: the model.
        prompts: ids.
        max_new_tokens: longest answer.
        stop_ids: ids that end an answer.
        sampling: how the tokens of a row, by its number, are picked.
        batch_size: rows side by side, at most.
        on_token: called with row and id of every new token; the answer ends with it if this returns true.
        on_done: called with row and result whenever one has finished.
        engine: one to use, with what it remembers; by default a new one.

    Raises:
        DataError: a prompt is empty, or leaves no room in the model's context.
    """
    context = decoder.spec.context
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompt {row} is empty")
        if len(prompt) >= context:
            raise DataError(f"prompt {row} has {len(prompt)} tokens; the model's context is {context}")
    if engine is not None:
        return _through(engine, prompts, max_new_tokens, stop_ids, sampling, on_token, on_done)
    engine = Engine(decoder, rows=batch_size)
    try:
        return _through(engine, prompts, max_new_tokens, stop_ids, sampling, on_token, on_done)
    finally:
        engine.close()


def _through(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: frozenset[int],
    sampling: Callable[[int], Sampling],
    on_token: Callable[[int, int], bool | None] | None,
    on_done: Callable[[int, Generated], None],
) -> list[Generated]:
    shared = common_prefix(prompts, min(map(len, prompts)) - 1) if len(prompts) > 1 else 0
    if shared >= WORTH_SHARING:
        engine.warm(prompts[0][:shared])
    done: dict[int, Generated] = {}
    tickets: list[int] = []
    try:
        # The longest first, so that those of like length lie side by side.
        for row in sorted(range(len(prompts)), key=lambda row: len(prompts[row]), reverse=True):
            request = Request(
                prompts[row],
                max_new_tokens,
                stop_ids,
                sampling(row),
                on_token=functools.partial(on_token, row) if on_token else lambda token: None,
                on_done=functools.partial(done.__setitem__, row),
            )
            tickets.append(engine.submit(request))
        told: set[int] = set()
        while len(told) < len(prompts):
            engine.step()
            for row in [row for row in done if row not in told]:
                told.add(row)
                on_done(row, done[row])
    finally:  # after an exception nothing of these prompts stays with the engine
        for ticket in tickets if len(done) < len(prompts) else ():
            engine.cancel(ticket)
    return [done[row] for row in range(len(prompts))]
