"""Preference pairs as ids: what of both answers is scored, and what is left of that within a length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from instil.data.encoding import encode, header_begins
from instil.data.store.pairs import unscored
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer
from instil.records import Encoded, EncodedPair, Pair
from instil.settings.options import Scored, TrainOn, Turns


def encode_pair(
    pair: Pair,
    template: Template,
    tokenizer: Tokenizer,
    train_on: TrainOn = "response",
    scored: Scored = "response",
    turns: Turns = "all",
) -> EncodedPair:
    """Both answers as ids after the same prompt.

    Args:
        pair: the prompt and its two answers.
        template: the form of the prompt.
        tokenizer: makes the ids.
        train_on: which ids of the chosen row a likelihood term is taken over.
        scored: ``response`` scores the answer and its end; ``book`` the words of the header before it, too, but not
            the end (chapter 7's bonus counts so).
        turns: of which answers of the chosen row a likelihood term is taken.

    Raises:
        DataError, ModelError: as `instil.data.encoding.encode`.
    """
    chosen, rejected = (
        encode(replace(pair.example, output=text), template, tokenizer, train_on, turns)
        for text in (pair.chosen, pair.rejected)
    )
    first = header_begins(pair.example, template, tokenizer) if scored == "book" else chosen.prompt_length
    less = unscored(scored)
    return EncodedPair(chosen, rejected, range(first, len(chosen.ids) - less), range(first, len(rejected.ids) - less))


def with_others(pairs: Sequence[EncodedPair]) -> list[EncodedPair]:
    """The pairs, each with the answers of the next one under its own prompt (of the first for the last).

    KTO estimates from these how far the model has moved from the reference (arXiv 2402.01306, section 4.1).
    """
    return [with_other(pair, other) for pair, other in zip(pairs, [*pairs[1:], *pairs[:1]], strict=True)]


def with_other(pair: EncodedPair, other: EncodedPair) -> EncodedPair:
    """A pair with the answers of another one under its own prompt."""
    chosen, rejected = _after(pair.chosen, other.chosen), _after(pair.rejected, other.rejected)
    spans = (range(row.prompt_length, len(row.ids)) for row in (chosen, rejected))
    return replace(pair, other=EncodedPair(chosen, rejected, next(spans), next(spans)))


def _after(row: Encoded, other: Encoded) -> Encoded:
    """A row's prompt with another's answer, on which nothing is trained."""
    ids = (*row.ids[: row.prompt_length], *other.ids[other.prompt_length :])
    return Encoded(ids, (False,) * len(ids), row.prompt_length, row.row)


def scored_within(pair: EncodedPair, max_length: int) -> tuple[int, int]:
    """How many ids of each answer are scored where a row has ``max_length`` positions."""
    spans = (pair.chosen_scored, pair.rejected_scored)
    return tuple(len(range(span.start, min(span.stop, max_length + 1))) for span in spans)  # type: ignore[return-value]


def is_scored(pair: EncodedPair, max_length: int) -> bool:
    """Whether something is left to score of both answers within ``max_length`` positions."""
    return all(scored_within(pair, max_length))


def is_told_apart(pair: EncodedPair, max_length: int) -> bool:
    """Whether the two answers still differ in what is scored of them within ``max_length`` positions."""
    chosen, rejected = pair.chosen_scored, pair.rejected_scored
    first, second = (min(span.stop, max_length + 1) for span in (chosen, rejected))
    return pair.chosen.ids[chosen.start : first] != pair.rejected.ids[rejected.start : second]


def is_within(pair: EncodedPair, max_length: int) -> bool:
    """`is_scored`, also of the answers of another row under its prompt, where it has them."""
    return is_scored(pair, max_length) and (pair.other is None or is_scored(pair.other, max_length))
