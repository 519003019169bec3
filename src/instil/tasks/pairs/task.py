"""Preferences: tuning on pairs of answers, of which the first is better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instil.data.encoding import check_vocabulary, encode_all
from instil.data.files.rows import open_rows
from instil.data.sources import Source
from instil.data.splits import PARTS, Part
from instil.data.store.build import tokens_ahead
from instil.data.store.examples import ExampleStore
from instil.data.store.pairs import EncodedPairs, PairStore
from instil.data.store.sources import stored
from instil.data.subset import Lazy, Subset, chosen
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer, load_tokenizer
from instil.errors import DataError, ModelError, SettingsError, counted
from instil.model.decoder import Decoder
from instil.model.find import find_model
from instil.model.load import file_hash, open_model
from instil.records import Encoded, EncodedPair, Example, Pair
from instil.screen import Screen
from instil.settings.options import Settings
from instil.tasks.pairs.batches import PairCollator
from instil.tasks.pairs.doctor import diagnose
from instil.tasks.pairs.encoding import encode_pair, is_told_apart, is_within, with_others
from instil.tasks.pairs.fading import FadingWatch
from instil.tasks.pairs.lengths import PairLengths, pair_lengths
from instil.tasks.pairs.losses import Preference
from instil.tasks.pairs.reference import with_reference
from instil.tasks.pairs.source import PairRows, PairSource, open_pairs
from instil.tasks.pairs.views import Longest, WithOthers, chosen_rows, longest
from instil.tasks.task import Data, Keeps, Prepared, Task, View
from instil.train.metrics import StepRecord
from instil.train.objective import Objective
from instil.train.observer import Observer
from instil.train.ranks import ALONE, Ranks

Pairs = Mapping[Part, Sequence[EncodedPair]]
LOOKED_AT = 20_000  # pairs that the doctor sees before a run
TRIED = 50  # pairs by which two vocabularies are compared


class Preferences(Task[EncodedPair]):
    """Make chosen answers likelier than rejected ones."""

    collator = PairCollator
    sequences = 2
    gentler = 20.0  # it moves a model that can answer already

    def read(self, data: Data) -> PairSource:
        options, keep_equal = self.settings.data, self.settings.dpo.keep_equal
        rows = data if isinstance(data, str | Path) else list(data)

        def read() -> PairRows:
            return open_pairs(
                rows,
                skip_bad=options.skip_bad,
                keep_equal=keep_equal,
                mapping=options.map,
                form=options.normalise,
            )

        files = open_rows(rows, skip_bad=options.skip_bad).files if isinstance(rows, str | Path) else ()
        how = {"skip_bad": options.skip_bad, "normalise": options.normalise, "map": list(options.map)}
        source = stored(read, self.screen, files=files, **how, pairs=True, keep_equal=keep_equal)
        return source if isinstance(source, PairSource) else PairSource.in_store(source)

    def encode(
        self, source: Source, examples: Sequence[Example], template: Template, tokenizer: Tokenizer
    ) -> Sequence[EncodedPair]:
        assert isinstance(source, PairSource), "pairs come from a source of pairs"
        by_row = {pair.row: pair for pair in source.pairs}
        options, scored = self.settings.data, self.settings.dpo.scored

        def encoded(row: Example) -> EncodedPair:
            return encode_pair(by_row[row.row], template, tokenizer, options.train_on, scored, options.turns)

        rows = encode_all(examples, encoded)
        return with_others(rows) if self._preference.needs_distance else rows

    @contextmanager
    def encoding(
        self, source: Source, template: Template, tokenizer: Tokenizer
    ) -> Iterator[Callable[[Sequence[Example]], Sequence[EncodedPair]]]:
        """Of pairs in a store other processes begin with all at once."""
        rows, options, scored = source.examples, self.settings.data, self.settings.dpo.scored
        if not isinstance(rows, ExampleStore):
            yield lambda examples: self.encode(source, examples, template, tokenizer)
            return
        how = template, tokenizer, options.train_on, self.screen, options.turns, scored
        with tokens_ahead(rows, *how) as tokens:

            @cache
            def stored_pairs() -> EncodedPairs:
                return EncodedPairs(tokens().folder, scored)

            def encoded(examples: Sequence[Example]) -> Sequence[EncodedPair]:
                assert isinstance(examples, Subset) and examples.rows is rows, "the parts are of this store"
                pairs = stored_pairs().subset(examples.numbers)
                return WithOthers(pairs)[:] if self._preference.needs_distance else pairs

            yield encoded

    def usable(self, rows: Sequence[EncodedPair], max_length: int) -> Sequence[EncodedPair]:
        usable_R = self._usable_R(pair_lengths(rows), max_length)
        return rows if usable_R.all() else chosen(rows, np.flatnonzero(usable_R))

    def doubtful(self, rows: Sequence[EncodedPair], max_length: int) -> Sequence[EncodedPair]:
        lengths = pair_lengths(rows)
        cut_R = lengths.longest_R - 1 > max_length
        return chosen(rows, np.flatnonzero(cut_R | ~self._usable_R(lengths, max_length)))

    def _usable_R(self, lengths: PairLengths, max_length: int) -> NDArray[np.bool_]:
        """Those of which `left_out` has nothing to say."""
        within_R = lengths.within_R(max_length)
        return within_R if self.settings.dpo.keep_equal else within_R & lengths.told_apart_R(max_length)

    def left_out(self, row: EncodedPair, max_length: int) -> str:
        """Both answers need something to score, and not the same, unless equal ones are to be kept."""
        if not is_within(row, max_length):
            return f"one of its answers lies beyond the {max_length:,} tokens that are kept"
        if not (self.settings.dpo.keep_equal or is_told_apart(row, max_length)):
            return f"its two answers are equal within {max_length:,} tokens and prefer nothing"
        return ""

    def answer(self, row: EncodedPair) -> Encoded:
        return row.chosen

    def longest(self, row: EncodedPair) -> Encoded:
        return longest(row)

    def answered(self, rows: Sequence[EncodedPair]) -> Sequence[Encoded]:
        return chosen_rows(rows)

    def measured(self, rows: Sequence[EncodedPair]) -> Sequence[Encoded]:
        return Longest(rows) if isinstance(rows, Lazy) else super().measured(rows)

    def answers(self, source: Source) -> Callable[[Example], Sequence[str]]:
        """Both of them."""
        assert isinstance(source, PairSource), "pairs come from a source of pairs"
        pairs = source.pairs
        if isinstance(pairs, PairStore):
            return pairs.answers
        by_row = {pair.row: (pair.chosen, pair.rejected) for pair in pairs}
        return lambda example: by_row[example.row]

    def objective(self) -> Objective:
        return self._preference

    @property
    def _preference(self) -> Preference:
        return Preference(self.settings.dpo)

    def check(
        self,
        source: Source,
        rows: Pairs,
        max_length: int,
        template: Template,
        tokenizer: Tokenizer,
        model: Path,
    ) -> list[str]:
        assert isinstance(source, PairSource), "pairs come from a source of pairs"
        usable = {part: self.usable(rows[part], max_length) for part in PARTS}
        lines = check(rows, usable["train"], max_length, self.settings, template, model)
        return lines + list(doubts(source, usable, max_length, tokenizer))

    @property
    def looks_before(self) -> bool:
        return self._preference.needs_reference

    def ready(
        self,
        prepared: Prepared,
        decoder: Decoder,
        screen: Screen,
        *,
        all_rows: bool = False,
        journal: Keeps | None = None,
        ranks: Ranks = ALONE,
    ) -> Prepared:
        """With the reference model's log-probabilities."""
        if not self.looks_before:
            return prepared
        return with_reference(prepared, decoder, screen, all_rows=all_rows, journal=journal, ranks=ranks)

    def observers(self, screen: Screen) -> list[Observer]:
        return [FadingWatch(screen)]

    def inputs(self) -> list[str]:
        return list(filter(None, [self.settings.dpo.reference]))

    def hashes(self) -> dict[str, str]:
        name = self.settings.dpo.reference
        return {"reference": file_hash(name)} if name else {}

    @staticmethod
    def loss_settings(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        return {f"dpo.{name}": value for name, value in stored.get("dpo", {}).items() if name != "keep_equal"}

    def shown(self, record: StepRecord) -> str:
        measured = record.val_metrics
        return f"  margin {measured['margin']:+.3f}  accuracy {measured['accuracy']:.0%}" if measured else ""

    def views(self, row: EncodedPair) -> list[View]:
        sides = (("chosen", row.chosen, row.chosen_scored), ("rejected", row.rejected, row.rejected_scored))
        return [
            View(side, [position in scored for position in range(len(side.ids))], name) for name, side, scored in sides
        ]


def check(
    pairs: Pairs, left: Sequence[EncodedPair], max_length: int, settings: Settings, template: Template, path: Path
) -> list[str]:
    """Refuse what cannot be trained on, and say what will be left out or cut.

    Raises:
        DataError: no training pair has both answers, or two different ones, within the length.
        ModelError: the reference model is absent, or of another vocabulary.
        SettingsError: settings contradict one another.
    """
    if settings.dpo.label_smoothing and settings.dpo.loss != "dpo":
        raise SettingsError("dpo.label_smoothing is for dpo.loss=dpo (which it makes cDPO); leave it at 0")
    if settings.dpo.reference and not Preference(settings.dpo).needs_reference:
        raise SettingsError(f"dpo.loss={settings.dpo.loss} has no reference; leave dpo.reference out")
    lengths = {part: pair_lengths(pairs[part]) for part in PARTS}
    if not lengths["train"].within_R(max_length).any():
        raise DataError(f"no training pair has both answers within {max_length} tokens; raise data.max_length")
    if not left:
        raise DataError(
            f"the two answers of every training pair are equal within {max_length} tokens, so they prefer nothing; "
            "raise data.max_length, or put what differs before the limit"
        )
    if Preference(settings.dpo).needs_distance and len(left) < 2:
        raise DataError(
            f"dpo.loss={settings.dpo.loss} asks how likely the answers of other rows are, and only one training "
            "pair is left; add pairs, or take another loss"
        )

    def rows(which_R: Callable[[PairLengths], NDArray[np.bool_]]) -> list[int]:
        found: list[int] = np.concatenate([one.row_R[which_R(one)] for one in lengths.values()]).tolist()
        return found

    def equal_R(one: PairLengths) -> NDArray[np.bool_]:
        return one.within_R(max_length) & ~one.told_apart_R(max_length)

    lines = []
    if left_out := rows(lambda one: ~one.within_R(max_length)):
        lines.append(
            f"{counted(len(left_out), 'pair is', 'pairs are')} skipped, an answer lies beyond {max_length} tokens: "
            f"rows {left_out[:20]}"
        )
    same = rows(equal_R)
    if same and not settings.dpo.keep_equal:
        lines.append(
            f"{counted(len(same), 'pair is', 'pairs are')} skipped, whose answers are equal within {max_length} tokens "
            f"and prefer nothing: "
            f"rows {same[:20]}"
        )
    by_cut = rows(lambda one: equal_R(one) & one.differ_R)
    if by_cut and settings.dpo.keep_equal:  # of those that are equal in the file the source tells
        lines.append(
            f"{counted(len(by_cut), 'pair has', 'pairs have')} equal answers within {max_length} tokens, which "
            f"teaches nothing: rows {by_cut[:20]}"
        )
    if cut := rows(lambda one: one.longest_R - 1 > max_length):
        lose = counted(len(cut), "pair loses", "pairs lose")
        lines.append(f"{lose} the end of an answer at {max_length} tokens: rows {cut[:20]}")
    if settings.dpo.reference:
        _check_reference(settings.dpo.reference, pairs, template, path, max_length, resize=settings.model.resize)
    return lines


def doubts(source: PairSource, usable: Pairs, max_length: int, tokenizer: Tokenizer) -> Iterator[str]:
    """What the doctor says against the pairs as they are trained on: without those left out, and as they are cut."""
    kept: set[int] = set()
    cut: dict[int, EncodedPair] = {}
    some = source.pairs[:LOOKED_AT]
    numbers = np.array([pair.row for pair in some], np.int64)
    for part in PARTS:
        lengths = pair_lengths(usable[part])
        looked_at_R = np.isin(lengths.row_R, numbers)
        kept.update(lengths.row_R[looked_at_R].tolist())
        cut_R = looked_at_R & (lengths.longest_R - 1 > max_length)
        cut |= {pair.row: pair for pair in chosen(usable[part], np.flatnonzero(cut_R))}
    found = (_as_cut(pair, cut.get(pair.row), max_length, tokenizer) for pair in some if pair.row in kept)
    for finding in diagnose(list(found)).of("warning"):
        if finding.kind != "equal":  # those have been told of
            yield finding.line()


def _as_cut(pair: Pair, encoded: EncodedPair | None, max_length: int, tokenizer: Tokenizer) -> Pair:
    if encoded is None:
        return pair
    texts = (
        tokenizer.decode(list(row.ids[row.prompt_length : max_length + 1])) if len(row.ids) - 1 > max_length else text
        for row, text in ((encoded.chosen, pair.chosen), (encoded.rejected, pair.rejected))
    )
    return Pair(pair.example, *texts)


def _check_reference(
    name: str, pairs: Pairs, template: Template, model: Path, max_length: int, *, resize: bool
) -> None:
    """The reference must read the same ids as the same text, and all of them."""
    try:
        path = find_model(name)
    except ModelError as error:
        raise ModelError(f"dpo.reference: {error}") from error
    try:  # the model before its tokenizer: of a file that is no model nothing else is worth saying
        spec, theirs = open_model(path).spec, load_tokenizer(path)
    except ModelError as error:
        raise ModelError(f"dpo.reference: {name} cannot be read as a model with its tokenizer: {error}") from error
    own, ours = open_model(model).spec.vocab_size, load_tokenizer(model)
    grown = max(own, ours.largest_id + 1) if resize else own
    advice = "its log-probabilities would be of other texts; take a reference of the same family"
    if spec.vocab_size not in (own, grown):
        raise ModelError(
            f"dpo.reference={name} has a vocabulary of {spec.vocab_size:,} ids, the model one of {grown:,}; " + advice
        )
    longest = min(max_length, max(int(pair_lengths(pairs[part]).longest_R.max(initial=0)) - 1 for part in PARTS))
    if longest > spec.context:
        raise ModelError(
            f"dpo.reference={name} has a context of {spec.context:,} tokens, and rows have up to {longest:,}; "
            f"set data.max_length={spec.context}, or take a reference with a longer context"
        )
    check_vocabulary(template, theirs, max(spec.vocab_size, grown))
    for pair in pairs["train"][:TRIED]:
        text = ours.decode(list(pair.rejected.ids[pair.rejected.prompt_length : -1]))
        if theirs.encode(text) != ours.encode(text):
            raise ModelError(f"dpo.reference={name} has other ids for the same text (row {pair.row}); {advice}")
