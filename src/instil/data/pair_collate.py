"""Preference pairs as ids, and pairs as one batch in which nothing is computed twice.

Both rows of a pair begin with the same prompt, often with the same words of the answer, and under one template all
prompts begin alike. In the layout ``shared`` each such token is computed once (`instil.records.Forked`), for the pair
and for the batch; its log-probability counts in every row that has it. ``padded`` sets all rows side by side, as the
chapter does. Losses and gradients are the same (E1). Prefix sharing within a pair: Wang and Hegde, 2024
(arXiv 2410.20305).

Shape suffixes: N tokens · S predictions · M scored ids of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from instil.data.collate import common_prefix
from instil.data.encoding import encode, encode_prompt
from instil.data.options import TrainOn
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer
from instil.records import Encoded, EncodedPair, Forked, Grid, Layout, Pair, PairBatch

Scored = Literal["response", "book"]


def encode_pair(
    pair: Pair,
    template: Template,
    tokenizer: Tokenizer,
    train_on: TrainOn = "response",
    scored: Scored = "response",
) -> EncodedPair:
    """Both answers as ids after the same prompt.

    Args:
        pair: the prompt and its two answers.
        template: the form of the prompt.
        tokenizer: makes the ids.
        train_on: which ids of the chosen row a likelihood term is taken over.
        scored: ``response`` scores the answer and its end; ``book`` the words of the header before it, too, but not
            the end (chapter 7's bonus counts so).

    Raises:
        DataError, ModelError: as `instil.data.encoding.encode`.
    """
    chosen, rejected = (
        encode(replace(pair.example, output=text), template, tokenizer, train_on)
        for text in (pair.chosen, pair.rejected)
    )
    first = chosen.prompt_length
    if scored == "book" and template.header:
        whole = encode_prompt(pair.example, template, tokenizer)
        first = len(encode_prompt(pair.example, template, tokenizer, header=False))
        while first < len(whole) and not tokenizer.decode(whole[first : first + 1]).strip():
            first += 1  # the empty line before the header's words
    less = 1 if scored == "book" else 0
    return EncodedPair(chosen, rejected, range(first, len(chosen.ids) - less), range(first, len(rejected.ids) - less))


def with_others(pairs: Sequence[EncodedPair]) -> list[EncodedPair]:
    """The pairs, each with the answers of the next one under its own prompt (of the first for the last).

    KTO estimates from these how far the model has moved from the reference (arXiv 2402.01306, section 4.1).
    """
    mixed = []
    for pair, other in zip(pairs, [*pairs[1:], *pairs[:1]], strict=True):
        chosen, rejected = _after(pair.chosen, other.chosen), _after(pair.rejected, other.rejected)
        spans = (range(row.prompt_length, len(row.ids)) for row in (chosen, rejected))
        mixed.append(replace(pair, other=EncodedPair(chosen, rejected, next(spans), next(spans))))
    return mixed


def _after(row: Encoded, other: Encoded) -> Encoded:
    """A row's prompt with another's answer, on which nothing is trained."""
    ids = (*row.ids[: row.prompt_length], *other.ids[other.prompt_length :])
    return Encoded(ids, (False,) * len(ids), row.prompt_length, row.row)


def scored_within(pair: EncodedPair, max_length: int) -> tuple[int, int]:
    """How many ids of each answer are scored where a row has ``max_length`` positions."""
    spans = (pair.chosen_scored, pair.rejected_scored)
    return tuple(len(range(span.start, min(span.stop, max_length + 1))) for span in spans)  # type: ignore[return-value]


def collate_pairs(
    pairs: Sequence[EncodedPair],
    pad_id: int = 0,
    max_length: int | None = None,
    layout: Literal["shared", "padded"] = "shared",
) -> PairBatch:
    """Pairs as one batch.

    Args:
        pairs: at least one, each with a scored id in both of its rows.
        pad_id: fills short rows of the padded layout.
        max_length: at most so many positions of each row.
        layout: ``shared`` or ``padded``.

    Raises:
        ValueError: there are no pairs, or an answer of one has nothing to score.
    """
    limit = max_length or 1 << 62
    if not pairs or not all(all(scored_within(pair, limit)) for pair in pairs):
        raise ValueError("a batch needs at least one pair, and each answer of a pair something to score")
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    kept = [min(len(row.ids) - 1, limit) for row in rows]
    flat = _padded(rows, kept, pad_id) if layout == "padded" else _forked(rows, kept)
    at: list[int] = []
    targets: list[int] = []
    weights: list[int] = []
    known: dict[tuple[int, int], int] = {}
    predictions: list[int] = []
    scored_row: list[int] = []
    reference: list[float] = []

    def prediction(row: int, position: int) -> int:
        """The prediction of a row's id at ``position``, which rows that share it share."""
        place, target = flat.places[row][position - 1], rows[row].ids[position]
        found = known.setdefault((place, target), len(at))
        if found == len(at):
            at.append(place)
            targets.append(target)
            weights.append(0)
        return found

    for number, row in enumerate(rows):
        pair, second = pairs[number // 2], number % 2
        span = pair.rejected_scored if second else pair.chosen_scored
        scored = range(span.start, min(span.stop, kept[number] + 1))
        predictions.extend(prediction(number, position) for position in scored)
        scored_row.extend([number] * len(scored))
        reference.extend(pair.reference[second][: len(scored)] if pair.reference else [0.0] * len(scored))
        if not second:
            for position in range(1, kept[number] + 1):
                if row.trained[position]:
                    weights[prediction(number, position)] += 1
    kind = torch.get_default_dtype()
    others = [pair.other for pair in pairs if pair.other]
    return PairBatch(
        ids_N=torch.tensor(flat.ids),
        positions_N=torch.tensor(flat.positions),
        rows_N=torch.tensor(flat.rows),
        at_S=torch.tensor(at),
        targets_S=torch.tensor(targets),
        weights_S=torch.tensor(weights, dtype=kind),
        layout=flat.layout,
        examples=tuple(pair.row for pair in pairs),
        prediction_M=torch.tensor(predictions),
        row_M=torch.tensor(scored_row),
        reference_M=torch.tensor(reference, dtype=kind),
        others=collate_pairs(others, pad_id, max_length, layout) if others else None,
    )


@dataclass(frozen=True, slots=True)
class _Flat:
    """Tokens one after another; ``places`` says for each row where the token of each of its positions lies."""

    ids: list[int]
    positions: list[int]
    rows: list[int]
    places: list[list[int]]
    layout: Layout


def _padded(rows: Sequence[Encoded], kept: Sequence[int], pad_id: int) -> _Flat:
    length = max(kept)
    flat = _Flat([], [], [], [], Grid(len(rows), length))
    for number, (row, count) in enumerate(zip(rows, kept, strict=True)):
        flat.places.append(list(range(len(flat.ids), len(flat.ids) + count)))
        flat.ids.extend((*row.ids[:count], *(pad_id,) * (length - count)))
        flat.positions.extend(range(length))
        flat.rows.extend((*(number,) * count, *(-1,) * (length - count)))
    return flat


def _forked(rows: Sequence[Encoded], kept: Sequence[int]) -> _Flat:
    """Prefix, stems, branches; every branch keeps at least one token of its own."""
    prefix = common_prefix([row.ids for row in rows], min(kept) - 1)
    stems = fork_points(rows, kept, prefix)
    branches = [count - prefix - stems[number // 2] for number, count in enumerate(kept)]
    flat = _Flat(list(rows[0].ids[:prefix]), list(range(prefix)), [0] * prefix, [], Forked(prefix, stems, (*branches,)))

    def append(row: int, first: int, last: int) -> range:
        start = len(flat.ids)
        flat.ids.extend(rows[row].ids[first:last])
        flat.positions.extend(range(first, last))
        flat.rows.extend([row] * (last - first))
        return range(start, len(flat.ids))

    trunks = [append(2 * pair, prefix, prefix + stem) for pair, stem in enumerate(stems)]
    for number, count in enumerate(kept):
        trunk = trunks[number // 2]
        own = append(number, prefix + len(trunk), count)
        flat.places.append([*range(prefix), *trunk, *own])
    return flat


def fork_points(rows: Sequence[Encoded], kept: Sequence[int], prefix: int) -> tuple[int, ...]:
    """How many tokens after the prefix both rows of each pair share."""
    return tuple(
        common_prefix([rows[at].ids, rows[at + 1].ids], min(kept[at], kept[at + 1]) - 1) - prefix
        for at in range(0, len(rows), 2)
    )
