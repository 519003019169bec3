"""The reference model's log-probabilities, computed once before training; a run that goes on computes the rest."""

from __future__ import annotations

import itertools
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from instil.ask.journal import key_of
from instil.data.splits import Part
from instil.model.decoder import Decoder
from instil.model.find import find_model
from instil.model.load import load_decoder
from instil.model.resize import grow_vocabulary
from instil.records import EncodedPair
from instil.screen import Screen
from instil.tasks.pairs.batches import collate_pairs
from instil.tasks.pairs.losses import reference_log_probs
from instil.tasks.task import Keeps, Prepared
from instil.train.ranks import ALONE, Ranks
from instil.train.schedule import planned_steps

REFERENCE_PAIRS = 16  # in one batch: no gradient is held
REFERENCE_TOKENS = 8192  # in one batch, if more than one pair is in it


def with_reference(
    prepared: Prepared,
    decoder: Decoder,
    screen: Screen,
    *,
    all_rows: bool = False,
    journal: Keeps | None = None,
    ranks: Ranks = ALONE,
) -> Prepared:
    """The pairs with the reference model's log-probabilities, computed once.

    Where training ends within an epoch, only those are asked about that it sees, unless ``all_rows`` are wanted. What a
    ``journal`` has of the same pairs in the same batches is taken from it, and it is given the others. Of several
    processes each computes some batches, and all know all of them afterwards.
    """
    name = prepared.settings.dpo.reference
    reference = load_decoder(find_model(name), device=decoder.device) if name else decoder
    if name:
        grow_vocabulary(reference, max(reference.spec.vocab_size, prepared.spec.vocab_size))
    reference.eval()
    seen = [] if all_rows else _seen(prepared)
    asked: dict[Part, Sequence[EncodedPair]] = {
        "train": seen or prepared.usable("train"),
        "validation": prepared.usable("validation"),
    }
    pairs = dict(prepared.rows)
    with screen.bar("reference", sum(map(len, asked.values()))) as advance:
        for part, rows in asked.items():
            done: list[EncodedPair] = []
            batches = list(_at_once(rows, prepared.max_length))
            for some, by in zip(batches, _dealt(batches, prepared, journal, ranks), strict=True):
                if by == ranks.rank:
                    done += _scored_by(reference, some, prepared, journal)
                for _ in some:
                    advance()
            known = {pair.row: pair for pairs_of_one in ranks.gather(done) for pair in pairs_of_one}
            pairs[part] = [known.get(pair.row, pair) for pair in prepared.rows[part]]
    return replace(prepared, rows=pairs, looked_at=True)


def _seen(prepared: Prepared) -> list[EncodedPair]:
    """The pairs of a training that ends within its first epoch; nothing where all may be needed."""
    options, loader = prepared.settings.train, prepared.training
    if not loader.resumable or options.evaluation == "book":
        return []
    steps = planned_steps(len(loader), options)
    if steps >= len(loader):
        return []
    return [loader.rows[index] for step in range(steps) for index in loader.rows_of(0, step)]


def _at_once(pairs: Sequence[EncodedPair], max_length: int) -> Iterator[list[EncodedPair]]:
    """Pairs of one batch each, fewer where they are long."""
    some: list[EncodedPair] = []
    longest = 0
    for pair in pairs:
        longest = max(longest, min(max_length, len(pair.ids)))
        if some and (len(some) == REFERENCE_PAIRS or 2 * longest * (len(some) + 1) > REFERENCE_TOKENS):
            yield some
            some, longest = [], min(max_length, len(pair.ids))
        some.append(pair)
    if some:
        yield some


def _dealt(batches: Sequence[list[EncodedPair]], prepared: Prepared, journal: Keeps | None, ranks: Ranks) -> list[int]:
    """Which process scores each batch: one whose ``journal`` has it, or else each in turn."""
    if ranks.alone:
        return [0] * len(batches)
    own = []
    if journal is not None:
        own = [at for at, some in enumerate(batches) if journal.kept(_key(some, prepared)) is not None]
    has = {at: rank for rank, kept in enumerate(ranks.gather(own)) for at in kept}
    turns = itertools.cycle(range(ranks.world))
    return [has[at] if at in has else next(turns) for at in range(len(batches))]


def _key(pairs: list[EncodedPair], prepared: Prepared) -> str:
    layout = prepared.settings.train.layout
    return key_of("reference", layout, prepared.max_length, [_identity(pair) for pair in pairs])


def _scored_by(
    reference: Decoder, pairs: list[EncodedPair], prepared: Prepared, journal: Keeps | None
) -> list[EncodedPair]:
    key = _key(pairs, prepared) if journal is not None else ""
    found = _unpacked(journal.kept(key)) if journal is not None else None
    if found is None:
        batch = collate_pairs(pairs, prepared.tokenizer.eos_id, prepared.max_length, prepared.settings.train.layout)
        found = reference_log_probs(reference, batch)
        if journal is not None:
            journal.keep(key, [[_packed(side) for side in pair] for pair in found])
    scored = [replace(pair, reference=known) for pair, known in zip(pairs, found, strict=True)]
    others = [pair.other for pair in scored if pair.other is not None]
    if not others:
        return scored
    return [
        replace(pair, other=other)
        for pair, other in zip(scored, _scored_by(reference, others, prepared, journal), strict=True)
    ]


def _identity(pair: EncodedPair) -> list[Any]:
    spans = [[span.start, span.stop] for span in (pair.chosen_scored, pair.rejected_scored)]
    return [pair.chosen.ids, pair.rejected.ids, spans]


def _packed(values: Sequence[float]) -> str:
    return b64encode(array("d", values).tobytes()).decode("ascii")


def _unpacked(kept: Any) -> list[tuple[tuple[float, ...], tuple[float, ...]]] | None:
    if kept is None:
        return None
    sides = [[tuple(array("d", b64decode(side))) for side in pair] for pair in kept]
    return [(chosen, rejected) for chosen, rejected in sides]
