"""The prompt form of a run, and that in which the model may be asked before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instil.data.encoding import check_vocabulary, encode_prompt, stop_id
from instil.data.templates import OWN, Template, carries_its_own, find_template, is_kept, kept_template, name_of_kept
from instil.data.templates.find import usual_template
from instil.data.tokenizers import Tokenizer
from instil.errors import DataError, TemplateMismatch, UserError
from instil.records import Example
from instil.settings.options import AUTO, Settings
from instil.tasks.task import Prepared


def form_of(
    model: Path, settings: Settings, tokenizer: Tokenizer, preferred: str = ""
) -> tuple[Template, str, list[str]]:
    """The template asked for, what it is called, and notes; a model that was tuned with one keeps it.

    ``preferred`` is what a model of this name takes where none is asked for.

    Raises:
        DataError: there is none of this name, or it cannot be used.
        TemplateMismatch: the model was tuned with another.
    """
    called = settings.data.template
    stored = kept_template(model)
    if stored is not None:
        if called != AUTO and not is_kept(called, stored, model, tokenizer):
            raise TemplateMismatch(
                f"{model} was tuned with the template {stored.name!r}, not {called!r}; leave data.template out"
            )
        return stored, name_of_kept(stored, model), []
    if called != AUTO:
        return find_template(called, model, tokenizer), called, []
    template, notes = usual_template(model, tokenizer, preferred)
    return template, template.name, notes


def form_before(
    model: Path, settings: Settings, tokenizer: Tokenizer, template: Template, vocab_size: int
) -> tuple[Template | None, list[str]]:
    """The model's own chat template where it is to be asked in that before training, too, and what is to be said of it.

    None where ``generate.before`` is "same", where the model carries none or was tuned here (then ``template`` is its
    own), and where its own cannot be used.
    """
    known = settings.generate.before == "same" or kept_template(model) is not None
    if known or not carries_its_own(model):
        return None, []
    try:
        own = find_template(OWN, model, tokenizer)
        check_vocabulary(own, tokenizer, vocab_size)
    except (DataError, UserError) as error:
        return None, [f"before training the model is not asked in its own chat template, which cannot be used: {error}"]
    return (None if own.hash == template.hash else own), []


def asked_before(prepared: Prepared, examples: Sequence[Example]) -> tuple[Template | None, str]:
    """The model's own form where these rows read otherwise in it, and why it is left out where it cannot say one."""
    own, tokenizer = prepared.own_template, prepared.tokenizer
    if own is None:
        return None, ""
    forms, header = (own, prepared.template), prepared.settings.generate.header
    differs = stop_id(own, tokenizer) != stop_id(prepared.template, tokenizer)
    for example in examples:  # all of them, since one that cannot be said would end the run later
        try:
            mine, runs = (encode_prompt(example, form, tokenizer, header=header) for form in forms)
        except DataError as error:
            why = f"before training the model is not asked in its own chat template, which cannot say row {example.row}"
            return None, f"{why}: {error}"
        differs = differs or mine != runs
    return (own if differs else None), ""
