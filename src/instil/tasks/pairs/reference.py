"""The reference model's log-probabilities, computed once before training; a run that goes on computes the rest."""

from __future__ import annotations

import itertools
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instil.ask.journal import key_of
from instil.batches import PairBatch
from instil.data.splits import Part
from instil.data.subset import Lazy, chosen
from instil.data.together import SORTED, groups_of
from instil.model.decoder import Decoder
from instil.model.elsewhere import load_elsewhere
from instil.model.find import find_model
from instil.model.load import load_decoder
from instil.model.resize import grow_vocabulary
from instil.records import EncodedPair
from instil.screen import Screen
from instil.tasks.pairs.batches import PairCollator, collate_pairs
from instil.tasks.pairs.lengths import pair_lengths
from instil.tasks.pairs.log_probs import Referenced, Sides
from instil.tasks.pairs.losses import reference_log_probs
from instil.tasks.task import Keeps, Prepared, loader_for
from instil.train.losses import nll_sum
from instil.train.ranks import ALONE, Ranks
from instil.train.schedule import planned_steps

REFERENCE_PAIRS = 16  # in one batch, at least: no gradient is held
REFERENCE_TOKENS = 8192  # in one batch, if more than one pair is in it
SHARED = 256  # batches, after which processes tell one another what they have found


def with_reference(
    prepared: Prepared,
    decoder: Decoder,
    screen: Screen,
    *,
    all_rows: bool = False,
    journal: Keeps | None = None,
    ranks: Ranks = ALONE,
) -> Prepared:
    """The pairs with the reference model's log-probabilities, computed once: in ``train.precision`` of training pairs,
    where these are for steps alone, and else in float32.

    Where training ends within an epoch, only those are asked about that it sees, unless ``all_rows`` are wanted. What a
    ``journal`` has of the same pairs in the same batches is taken from it, and it is given the others. Of several
    processes each computes some batches, and all know all of them afterwards.
    """
    reference = _reference(prepared, decoder)
    reference.eval()
    collate = PairCollator(prepared.tokenizer.eos_id, prepared.max_length, prepared.settings.train.layout)
    seen = [] if all_rows else _seen(prepared)
    asked: dict[Part, Sequence[EncodedPair]] = {
        "train": seen or prepared.usable("train"),
        "validation": prepared.usable("validation"),
    }
    found: dict[Part, Sequence[EncodedPair]] = dict(prepared.rows)
    at_once = ranks if reference.elsewhere is not None else ALONE  # a whole one each process asks by itself
    with ExitStack() as stack:
        if reference.elsewhere is not None:  # each process has a part of it, and all compute at once
            reference = stack.enter_context(ranks.sharding(reference))
            stack.enter_context(ranks.together(reference, loader_for(prepared, "train", ranks)))
        advance = stack.enter_context(screen.bar("reference", sum(map(len, asked.values()))))
        for part, rows in asked.items():
            places = _places(prepared.rows[part], rows)
            known = Referenced(prepared.rows[part], prepared.max_length, places)
            batches = pairs_at_once(rows, collate)
            # Evaluations are in float32, and the book's are of training pairs, too.
            narrow = part == "train" and prepared.settings.train.evaluation != "book"
            precision = prepared.settings.train.precision if narrow else "fp32"
            dealt = list(zip(batches, _dealt(rows, batches, prepared, precision, journal, ranks), strict=True))
            for first in range(0, len(dealt), SHARED):
                some = dealt[first : first + SHARED]
                own = {batch: _of(rows, batch) for batch, by in some if by == ranks.rank}
                scores = _Scores(reference, list(own.values()), prepared, precision, journal, at_once)
                done: list[tuple[int, Sides]] = []
                for batch, _ in some:
                    if batch in own:
                        done += zip(batch, scores.of(own[batch]), strict=True)
                    advance(steps=len(batch))
                scores.end()
                for at, sides in itertools.chain.from_iterable(ranks.gather(done)):
                    known.put(int(places[at]), sides)
            found[part] = known if isinstance(prepared.rows[part], Lazy) else list(known)
    return replace(prepared, rows=found, looked_at=True)


def _reference(prepared: Prepared, decoder: Decoder) -> Decoder:
    """The model that is asked; where the weights that are trained are elsewhere, one whose weights are, too."""
    name, vocab_size = prepared.settings.dpo.reference, prepared.spec.vocab_size
    path = find_model(name) if name else prepared.model_path
    if decoder.elsewhere is not None:
        return load_elsewhere(path, vocab_size=vocab_size, device=decoder.device)
    if not name:
        return decoder
    reference = load_decoder(path, device=decoder.device)
    grow_vocabulary(reference, max(reference.spec.vocab_size, vocab_size))
    return reference


def _seen(prepared: Prepared) -> Sequence[EncodedPair]:
    """The pairs of a training that ends within its first epoch; nothing where all may be needed."""
    options, loader = prepared.settings.train, prepared.training
    if not loader.resumable or options.evaluation == "book":
        return []
    steps = planned_steps(len(loader), options)
    if steps >= len(loader):
        return []
    return chosen(loader.rows, np.array([at for step in range(steps) for at in loader.rows_of(0, step)], np.int64))


def _places(pairs: Sequence[EncodedPair], some: Sequence[EncodedPair]) -> NDArray[np.int64]:
    """Which of the pairs some of them are."""
    row_R, wanted_R = pair_lengths(pairs).row_R, pair_lengths(some).row_R
    order_R = np.argsort(row_R, kind="stable")
    return order_R[np.searchsorted(row_R, wanted_R, sorter=order_R)]


def _of(pairs: Sequence[EncodedPair], batch: range) -> list[EncodedPair]:
    return [pairs[at] for at in batch]


def pairs_at_once(pairs: Sequence[EncodedPair], collate: PairCollator) -> list[range]:
    """The numbers of pairs of one batch each: more where they begin alike, fewer where they are long.

    Of very many pairs only the lengths are looked at, which are known as columns.
    """
    if len(pairs) > SORTED:
        longest_R = pair_lengths(pairs).longest_R
        if collate.max_length is not None:
            longest_R = np.minimum(longest_R, collate.max_length)
        alone: Iterable[tuple[Sequence[int], int]] = (((), 2 * longest) for longest in longest_R.tolist())
        return groups_of(alone, least=REFERENCE_PAIRS, padded=True, most=REFERENCE_TOKENS)
    rows = ((pair.chosen.ids[: collate.max_length], collate.positions([pair])) for pair in pairs)
    return groups_of(rows, least=REFERENCE_PAIRS, padded=collate.layout == "padded", most=REFERENCE_TOKENS)


def _dealt(
    pairs: Sequence[EncodedPair],
    batches: Sequence[range],
    prepared: Prepared,
    precision: str,
    journal: Keeps | None,
    ranks: Ranks,
) -> list[int]:
    """Which process scores each batch: one whose ``journal`` has it, or else each in turn."""
    if ranks.alone:
        return [0] * len(batches)
    own = []
    if journal is not None:
        keys = (_key(_of(pairs, batch), prepared, precision) for batch in batches)
        own = [at for at, key in enumerate(keys) if journal.kept(key) is not None]
    has = {at: rank for rank, kept in enumerate(ranks.gather(own)) for at in kept}
    turns = itertools.cycle(range(ranks.world))
    return [has[at] if at in has else next(turns) for at in range(len(batches))]


def _key(pairs: list[EncodedPair], prepared: Prepared, precision: str) -> str:
    how = (prepared.settings.train.layout, *([precision] if precision != "fp32" else []))
    return key_of("reference", *how, prepared.max_length, [_identity(pair) for pair in pairs])


class _Scores:
    """What the reference says of pairs, in the order in which they were announced.

    Args:
        reference: the model.
        announced: what this process will ask about, so that all can compute at once where each has a part of the model.
        prepared: see `with_reference`.
        precision: that of what they will stand beside.
        journal: see above.
        ranks: those that compute at once.
    """

    def __init__(
        self,
        reference: Decoder,
        announced: Sequence[list[EncodedPair]],
        prepared: Prepared,
        precision: str,
        journal: Keeps | None,
        ranks: Ranks,
    ) -> None:
        self._reference, self._prepared, self._precision, self._journal = reference, prepared, precision, journal
        new = [one for some in announced for one in (some, _others(some)) if one and self._kept(one) is None]
        layout = prepared.settings.train.layout
        batches = [collate_pairs(one, prepared.tokenizer.eos_id, prepared.max_length, layout) for one in new]
        self._passes = ranks.level(batches)

    def of(self, pairs: list[EncodedPair]) -> Sequence[Sides]:
        """Of the next ones: of each pair's answers, and of those of another row where it has them."""
        found = self._kept(pairs)
        if found is None:
            batch = next(self._passes).batch
            assert isinstance(batch, PairBatch), "pairs were announced"
            found = reference_log_probs(self._reference, batch, self._precision)
            if self._journal is not None:
                key = _key(pairs, self._prepared, self._precision)
                self._journal.keep(key, [[_packed(side) for side in pair] for pair in found])
        others = _others(pairs)
        return [(*own, *more) for own, more in zip(found, self.of(others), strict=True)] if others else found

    def end(self) -> None:
        """Compute with those who have more to ask about."""
        with self._reference.without_graph():
            for one in self._passes:
                nll_sum(self._reference, one.batch.to(self._reference.device))

    def _kept(self, pairs: list[EncodedPair]) -> list[tuple[tuple[float, ...], tuple[float, ...]]] | None:
        if self._journal is None:
            return None
        return _unpacked(self._journal.kept(_key(pairs, self._prepared, self._precision)))


def _others(pairs: Sequence[EncodedPair]) -> list[EncodedPair]:
    return [pair.other for pair in pairs if pair.other is not None]


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
