"""Supervised fine-tuning: from rows and a model's name to a tuned decoder."""

from __future__ import annotations

from pathlib import Path

from instil.data.encoding import check_vocabulary, encode, is_spellable
from instil.data.preflight import check
from instil.data.sources import examples_from, read_source
from instil.data.splits import PARTS, Part, split_examples
from instil.data.templates import TEMPLATE_FILE, TEMPLATES, Template, read_template, template_named
from instil.data.tokenizers import load_tokenizer
from instil.errors import SettingsError, TemplateMismatch
from instil.machine import device_for
from instil.model.decoder import Decoder
from instil.model.find import find_model
from instil.model.load import blank_decoder, load_decoder, open_model
from instil.records import Encoded
from instil.settings.options import Settings
from instil.settings.resolve import idle
from instil.tasks.adapters import adapt, not_exact
from instil.tasks.pairs import task as dpo
from instil.tasks.pairs.encoding import Pairs
from instil.tasks.pairs.source import PairSource
from instil.tasks.task import Data, Prepared, loader_for


def prepare(data: Data, model: str | Path, settings: Settings) -> Prepared:
    """Read the rows, open the model's header, and look at every row as it will be trained on.

    Raises:
        UserError: something about data, model or settings cannot be used; nothing was written.
    """
    options = settings.data
    preferred: PairSource | None = None
    if settings.train.objective == "dpo":
        preferred, source = dpo.read(data, settings)
    elif isinstance(data, str | Path):
        source = read_source(data, skip_bad=options.skip_bad)
    else:
        source = examples_from(list(data), skip_bad=options.skip_bad)
    path = find_model(model)
    spec = open_model(path).spec
    tokenizer = load_tokenizer(path)
    template = _template(path, settings)
    if template.name in TEMPLATES:
        options = options.model_copy(update={"template": template.name})
        settings = settings.model_copy(update={"data": options})
    check_vocabulary(template, tokenizer, spec.vocab_size)
    split = split_examples(source.examples, options)
    encoded: dict[Part, list[Encoded]] = {
        part: [encode(example, template, tokenizer, options.train_on) for example in split.part(part)] for part in PARTS
    }
    max_length = min(options.max_length, spec.context)
    notes = [*source.notes, *_header_notes(template, settings), *idle(settings), *filter(None, [not_exact(settings)])]
    pairs: Pairs | None = None
    if preferred is not None:
        pairs = dpo.encoded_pairs(preferred, split, template, tokenizer, settings)
        notes += dpo.check(pairs, max_length, settings, template, path)
        notes += dpo.doubts(preferred, pairs, max_length, tokenizer, settings)
    misspelt = [example.row for example in source.examples if not is_spellable(example, tokenizer)]
    preflight = check(
        split,
        encoded,
        max_length,
        context=spec.context,
        misspelt=misspelt,
        unusable=source.skipped,
        notes=notes,
    )
    facts = (settings, source, split, template, tokenizer, encoded, preflight, str(model), path, max_length)
    prepared = Prepared(*facts, pairs)
    device_for(settings.train.device)
    loader_for(prepared, "train")  # a batch larger than the data is refused here, before anything is written
    if settings.train.method == "lora":
        adapt(blank_decoder(spec), settings)  # so are targets and ranks
    if settings.train.patience and loader_for(prepared, "validation") is None:
        raise SettingsError("train.patience looks at the validation loss, and no rows are held out for validation")
    if settings.train.patience and settings.train.evaluation == "book" and not settings.train.eval_every:
        raise SettingsError("train.patience looks at the validation loss; set train.eval_every, which is 0")
    return prepared


def _template(model: Path, settings: Settings) -> Template:
    """The template asked for; a model that was tuned with one keeps it."""
    asked = template_named(settings.data.template)
    stored_at = model / TEMPLATE_FILE
    if not stored_at.is_file():
        return asked
    stored = read_template(stored_at)
    if "template" in settings.data.model_fields_set and asked.hash != stored.hash:
        raise TemplateMismatch(
            f"{model} was tuned with the template {stored.name!r}, not {asked.name!r}; leave data.template out"
        )
    return stored


def _header_notes(template: Template, settings: Settings) -> list[str]:
    """A warning where the model is left to write a header that it is never trained to write."""
    if settings.generate.header or settings.data.train_on != "response" or not template.header:
        return []
    return [
        f"the header {template.header.strip()!r} is neither put into the prompt (generate.header=false) nor trained on "
        "(data.train_on=response); set generate.header=true, or data.train_on=response_with_header as the book does"
    ]


def load(prepared: Prepared) -> Decoder:
    """The decoder with its weights."""
    decoder = load_decoder(prepared.model_path, device=device_for(prepared.settings.train.device))
    if prepared.settings.train.untie_head:
        decoder.untie()
    return decoder
