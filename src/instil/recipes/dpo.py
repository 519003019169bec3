"""Preference tuning: pairs for rows, the reference's log-probabilities, and a watch for collapse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instil.data.encoding import check_vocabulary
from instil.data.loader import BookLoader, Loader
from instil.data.options import DataOptions
from instil.data.pair_collate import collate_pairs, encode_pair, with_others
from instil.data.pair_doctor import diagnose
from instil.data.pair_loader import is_scored, is_told_apart
from instil.data.pairs import PairSource, pairs_from, read_pairs
from instil.data.sources import Source
from instil.data.splits import PARTS, Part, Split
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer, load_tokenizer
from instil.errors import DataError, ModelError, SettingsError
from instil.model.decoder import Decoder
from instil.model.hub import find_model
from instil.model.weights import load_decoder, open_model
from instil.recipes.progress import Screen
from instil.recipes.settings import Settings
from instil.records import EncodedPair, Pair
from instil.train.loop import planned_steps
from instil.train.metrics import StepRecord
from instil.train.preference import Preference, reference_log_probs

if TYPE_CHECKING:
    from instil.recipes.sft import Prepared

Pairs = dict[Part, list[EncodedPair]]
REFERENCE_PAIRS = 16  # in one batch: no gradient is held
REFERENCE_TOKENS = 8192  # in one batch, if more than one pair is in it
LOOKED_AT = 20_000  # pairs that the doctor sees before a run
FADING = -0.5  # nats for each token by which chosen answers may become less likely before it is said
TRIED = 50  # pairs by which two vocabularies are compared


def read(data: str | Path | Sequence[dict[str, Any]], settings: Settings) -> tuple[PairSource, Source]:
    """The pairs of a file, and the same rows as examples whose wanted answer is the chosen one."""
    skip_bad, keep_equal = settings.data.skip_bad, settings.dpo.keep_equal
    if isinstance(data, str | Path):
        found = read_pairs(data, skip_bad=skip_bad, keep_equal=keep_equal)
    else:
        found = pairs_from(list(data), skip_bad=skip_bad, keep_equal=keep_equal)
    return found, as_rows(found)


def as_rows(found: PairSource) -> Source:
    """Pairs as rows whose wanted answer is the chosen one."""
    examples = tuple(replace(pair.example, output=pair.chosen) for pair in found.pairs)
    return Source(found.name, examples, found.sha256, found.skipped, found.notes)


def encoded_pairs(
    source: PairSource, split: Split, template: Template, tokenizer: Tokenizer, settings: Settings
) -> Pairs:
    """The pairs of each part as ids."""
    by_row = {pair.row: pair for pair in source.pairs}
    options: DataOptions = settings.data
    pairs: Pairs = {}
    for part in PARTS:
        rows = [
            encode_pair(by_row[example.row], template, tokenizer, options.train_on, settings.dpo.scored)
            for example in split.part(part)
        ]
        pairs[part] = with_others(rows) if settings.dpo.loss == "kto" else rows
    return pairs


def usable(pairs: Sequence[EncodedPair], max_length: int, settings: Settings) -> list[EncodedPair]:
    """Pairs of which both answers have something to score, and not the same, unless equal ones are to be kept."""
    return [
        pair
        for pair in pairs
        if _within(pair, max_length) and (settings.dpo.keep_equal or is_told_apart(pair, max_length))
    ]


def _within(pair: EncodedPair, max_length: int) -> bool:
    return is_scored(pair, max_length) and (pair.other is None or is_scored(pair.other, max_length))


def check(pairs: Pairs, max_length: int, settings: Settings, template: Template, path: Path) -> list[str]:
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
    if not any(_within(pair, max_length) for pair in pairs["train"]):
        raise DataError(f"no training pair has both answers within {max_length} tokens; raise data.max_length")
    left = usable(pairs["train"], max_length, settings)
    if not left:
        raise DataError(
            f"the two answers of every training pair are equal within {max_length} tokens, so they prefer nothing; "
            "raise data.max_length, or put what differs before the limit"
        )
    if settings.dpo.loss == "kto" and len(left) < 2:
        raise DataError(
            "dpo.loss=kto asks how likely the answers of other rows are, and only one training pair is left; "
            "add pairs, or take another loss"
        )
    lines = []
    every = [pair for part in PARTS for pair in pairs[part]]
    left_out = [pair.row for pair in every if not _within(pair, max_length)]
    if left_out:
        lines.append(
            f"{len(left_out)} pairs are skipped, an answer lies beyond {max_length} tokens: rows {left_out[:20]}"
        )
    same = [pair.row for pair in every if _within(pair, max_length) and not is_told_apart(pair, max_length)]
    if same and not settings.dpo.keep_equal:
        lines.append(
            f"{len(same)} pairs are skipped, their answers are equal within {max_length} tokens and prefer nothing: "
            f"rows {same[:20]}"
        )
    by_cut = [pair.row for pair in every if pair.row in set(same) and pair.chosen.ids != pair.rejected.ids]
    if by_cut and settings.dpo.keep_equal:  # of those that are equal in the file the source tells
        lines.append(
            f"{len(by_cut)} pairs have equal answers within {max_length} tokens, which teaches nothing: "
            f"rows {by_cut[:20]}"
        )
    cut = [pair.row for pair in every if _is_cut(pair, max_length)]
    if cut:
        lines.append(f"{len(cut)} pairs lose the end of an answer at {max_length} tokens: rows {cut[:20]}")
    if settings.dpo.reference:
        _check_reference(settings.dpo.reference, pairs, template, path, max_length)
    return lines


def _is_cut(pair: EncodedPair, max_length: int) -> bool:
    return max(len(pair.chosen.ids), len(pair.rejected.ids)) - 1 > max_length


def doubts(
    source: PairSource, pairs: Pairs, max_length: int, tokenizer: Tokenizer, settings: Settings
) -> Iterator[str]:
    """What the doctor says against the pairs as they are trained on: without those left out, and as they are cut."""
    kept = {pair.row: pair for part in PARTS for pair in usable(pairs[part], max_length, settings)}
    some = [pair for pair in source.pairs[:LOOKED_AT] if pair.row in kept]
    looked_at = [_as_cut(pair, kept[pair.row], max_length, tokenizer) for pair in some]
    for finding in diagnose(looked_at).of("warning"):
        if finding.kind != "equal":  # those have been told of
            yield finding.line()


def _as_cut(pair: Pair, encoded: EncodedPair, max_length: int, tokenizer: Tokenizer) -> Pair:
    if not _is_cut(encoded, max_length):
        return pair
    texts = (
        tokenizer.decode(list(row.ids[row.prompt_length : max_length + 1])) if len(row.ids) - 1 > max_length else text
        for row, text in ((encoded.chosen, pair.chosen), (encoded.rejected, pair.rejected))
    )
    return Pair(pair.example, *texts)


def _check_reference(name: str, pairs: Pairs, template: Template, model: Path, max_length: int) -> None:
    """The reference must read the same ids as the same text, and all of them."""
    try:
        path = find_model(name)
    except ModelError as error:
        raise ModelError(f"dpo.reference: {error}") from error
    try:  # the model before its tokenizer: of a file that is no model nothing else is worth saying
        spec, theirs = open_model(path).spec, load_tokenizer(path)
    except ModelError as error:
        raise ModelError(f"dpo.reference: {name} cannot be read as a model with its tokenizer: {error}") from error
    own, ours = open_model(model).spec, load_tokenizer(model)
    advice = "its log-probabilities would be of other texts; take a reference of the same family"
    if spec.vocab_size != own.vocab_size:
        raise ModelError(
            f"dpo.reference={name} has a vocabulary of {spec.vocab_size:,} ids, the model one of {own.vocab_size:,}; "
            + advice
        )
    longest = min(max_length, max(len(pair.ids) - 1 for part in PARTS for pair in pairs[part]))
    if longest > spec.context:
        raise ModelError(
            f"dpo.reference={name} has a context of {spec.context:,} tokens, and rows have up to {longest:,}; "
            f"set data.max_length={spec.context}, or take a reference with a longer context"
        )
    check_vocabulary(template, theirs, spec.vocab_size)
    for pair in pairs["train"][:TRIED]:
        text = ours.decode(list(pair.rejected.ids[pair.rejected.prompt_length : -1]))
        if theirs.encode(text) != ours.encode(text):
            raise ModelError(f"dpo.reference={name} has other ids for the same text (row {pair.row}); {advice}")


def with_reference(prepared: Prepared, decoder: Decoder, screen: Screen, loader: Loader | None) -> Prepared:
    """The pairs with the reference model's log-probabilities, computed once.

    ``loader`` gives the training pairs; where training ends within an epoch, only those are asked about that it sees.
    """
    assert prepared.pairs is not None
    objective = Preference(prepared.settings.dpo)
    if not objective.needs_reference:
        return prepared
    name = prepared.settings.dpo.reference
    reference = load_decoder(find_model(name), device=decoder.device) if name else decoder
    reference.eval()
    asked: Pairs = {
        "train": _seen(loader, prepared) or usable(prepared.pairs["train"], prepared.max_length, prepared.settings),
        "validation": usable(prepared.pairs["validation"], prepared.max_length, prepared.settings),
    }
    pairs: Pairs = dict(prepared.pairs)
    with screen.bar("reference", sum(map(len, asked.values()))) as advance:
        for part, rows in asked.items():
            done: list[EncodedPair] = []
            for some in _at_once(rows, prepared.max_length):
                done += _scored_by(reference, some, prepared)
                for _ in some:
                    advance()
            known = {pair.row: pair for pair in done}
            pairs[part] = [known.get(pair.row, pair) for pair in prepared.pairs[part]]
    return replace(prepared, pairs=pairs)


def _seen(loader: Loader | None, prepared: Prepared) -> list[EncodedPair]:
    """The pairs of a training that ends within its first epoch; nothing where all may be needed."""
    options = prepared.settings.train
    if loader is None or isinstance(loader, BookLoader) or options.evaluation == "book":
        return []
    steps = planned_steps(len(loader), options)
    if steps >= len(loader):
        return []
    return [loader.rows[index] for index in loader.order(0)[: steps * loader.batch_size]]


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


def _scored_by(reference: Decoder, pairs: list[EncodedPair], prepared: Prepared) -> list[EncodedPair]:
    batch = collate_pairs(pairs, prepared.tokenizer.eos_id, prepared.max_length, prepared.settings.train.layout)
    scored = [
        replace(pair, reference=found) for pair, found in zip(pairs, reference_log_probs(reference, batch), strict=True)
    ]
    others = [pair.other for pair in scored if pair.other is not None]
    if not others:
        return scored
    return [
        replace(pair, other=other) for pair, other in zip(scored, _scored_by(reference, others, prepared), strict=True)
    ]


class Watch:
    """Says it once when chosen answers fade: the margin can grow while both answers become less likely.

    So collapse begins (Pal et al., 2024, arXiv 2402.13228); the margin and the loss do not show it.
    """

    def __init__(self) -> None:
        self.warned_at: int | None = None
        self._at_first: float | None = None  # not zero under another reference, or with weights in few bits

    def saw(self, record: StepRecord) -> str | None:
        """A warning, where this record is the first to call for one."""
        found = (record.val_preference or {}).get("chosen_change")
        if found is None:
            return None
        if self._at_first is None:
            self._at_first = 0.0 if record.step else found
        change = found - self._at_first
        if self.warned_at is not None or change > FADING:
            return None
        self.warned_at = record.step
        return (
            f"chosen answers have become less likely than before training ({change:+.2f} nats a token): the model may "
            " be forgetting how to answer. Add --set dpo.nll=1, lower train.learning_rate, or stop with "
            "train.patience=2"
        )


def measures(record: StepRecord) -> str:
    """What a progress line says of the validation pairs."""
    found = record.val_preference
    if not found:
        return ""
    return f"  margin {found['margin']:+.3f}  accuracy {found['accuracy']:.0%}"
