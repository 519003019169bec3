"""From rows and a model's name to all that a training needs but the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from instil.data.duplicates.search import STEPS
from instil.data.encoding import check_vocabulary, ends_line, mask_notes
from instil.data.leaks import Leaks
from instil.data.loader import Loader
from instil.data.preflight import check
from instil.data.spelling import spelling
from instil.data.splits import PARTS, Split, fewer
from instil.data.store.kept import in_store
from instil.data.store.results import Results
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer, load_tokenizer
from instil.errors import SettingsError, counted, verb
from instil.machine import device_for
from instil.model.decoder import Decoder
from instil.model.elsewhere import Trained, load_elsewhere
from instil.model.fast.gemm import precision_for
from instil.model.find import find_model, template_of
from instil.model.load import blank_decoder, load_decoder, open_model
from instil.model.resize import grow_vocabulary
from instil.model.spec import DecoderSpec
from instil.records import Example
from instil.screen import Screen
from instil.settings.options import DataOptions, Settings
from instil.settings.resolve import idle
from instil.tasks.adapters import adapt, not_exact, tied_head
from instil.tasks.answers import Answers
from instil.tasks.form import form_before, form_of
from instil.tasks.pairs.task import Preferences
from instil.tasks.rehearsal import unwritten
from instil.tasks.task import Data, Prepared, Task, loader_for
from instil.train.schedule import planned_steps

MANY_EVALUATED = 20_000  # validation rows

# What is learnt, by `train.objective`.
TASKS: dict[str, type[Task[Any]]] = {"sft": Answers, "dpo": Preferences}


def task_of(settings: Settings) -> Task[Any]:
    """What a run with such settings is to learn."""
    return TASKS[settings.train.objective](settings)


def prepare(
    data: Data,
    model: str | Path,
    settings: Settings,
    task: Task[Any] | None = None,
    screen: Screen | None = None,
    *,
    refuse: bool = True,
) -> Prepared:
    """Read the rows, open the model's header, and look at every row as it will be trained on.

    Args:
        data: a name, a path, an address, or the rows themselves.
        model: a name, a folder or a file.
        settings: see `instil.settings.options`.
        task: what is to be learnt; by default what ``train.objective`` says.
        screen: where progress is shown; nowhere by default.
        refuse: whether rows are refused that would make a run worthless, or only told of (`Preflight.findings`).

    Raises:
        UserError: something about data, model or settings cannot be used; nothing was written.
    """
    # Rows, model and template, each as it is found.
    task = task or task_of(settings)
    task.screen = screen = screen or Screen(quiet=True)
    source = task.read(data)
    path = find_model(model)
    reader = open_model(path)
    spec = reader.spec
    tokenizer = load_tokenizer(path)
    template, called, form_notes = form_of(path, settings, tokenizer, template_of(model))
    own, own_notes = form_before(path, settings, tokenizer, template, spec.vocab_size)
    new = max(0, tokenizer.largest_id + 1 - spec.vocab_size) if settings.model.resize else 0
    spec = replace(spec, vocab_size=spec.vocab_size + new)
    settings = _settled(settings, called)
    check_vocabulary(template, tokenizer, spec.vocab_size)

    # Rows as the model will see them, and all there is to say of them.
    results = Results(source.examples)
    marks, others = sorted(tokenizer.control_tokens), task.answers(source)
    with task.encoding(source, template, tokenizer) as encoded:
        split, leaks = _split(results, settings.data, screen)
        looked = None if others else results.look(split, settings.data, marks)
        split = fewer(split, settings.data.max_train_samples, settings.data.sample_seed)
        rows = {part: encoded(split.part(part)) for part in PARTS}
    max_length = min(settings.data.max_length, spec.context)
    measured = {part: task.measured(rows[part]) for part in PARTS}
    answered = {part: task.answered(rows[part]) for part in PARTS}
    kept = in_store(answered)
    misspelt, altered = kept.spelt() if kept else _spelt(source.examples, tokenizer)
    preflight = check(
        split,
        answered,
        max_length,
        longest=measured,
        context=spec.context,
        answers=others,
        control_tokens=marks,
        looked=looked,
        ends=ends_line(template, tokenizer),
        misspelt=misspelt,
        altered=altered,
        unusable=source.skipped,
        repeated=kept.repeated(answered) if kept else None,
        notes=[
            *source.notes,
            *split.notes,
            *leaks.lines(),
            *tokenizer.notes,
            *_resize_notes(spec, new),
            *reader.notes,
            *reader.training_notes,
            *_header_notes(template, settings),
            *form_notes,
            *own_notes,
            *(kept.mask_notes(answered) if kept else mask_notes([x for part in PARTS for x in answered[part]])),
            *idle(settings),
            *filter(None, [not_exact(settings), tied_head(settings, spec)]),
            *task.check(source, rows, max_length, template, tokenizer, path),
            *results.notes,
            *(kept.notes(source.examples) if kept else []),
        ],
    )
    prepared = Prepared(
        settings=settings,
        task=task,
        source=source,
        split=split,
        leaks=leaks,
        template=template,
        own_template=own,
        tokenizer=tokenizer,
        rows=rows,
        model_name=str(model),
        model_path=path,
        spec=spec,
        new_rows=new,
        max_length=max_length,
        preflight=preflight,
    )

    # What would end the run later is refused now, before anything is written.
    if refuse:
        preflight.refuse()
    prepared = replace(prepared, rehearsal=unwritten(prepared))
    if settings.train.batch_tokens and settings.train.order == "book":
        raise SettingsError("train.batch_tokens is for train.order=seeded; the book's order has steps of so many rows")
    loader = loader_for(prepared, "train")  # a batch larger than the data
    of_steps = [*_warmup_notes(settings, len(loader)), *_budget_notes(prepared, loader)] if loader else []
    notes = (*preflight.notes, *of_steps, *_evaluation_notes(prepared))
    prepared = replace(prepared, preflight=replace(preflight, notes=notes))
    if settings.train.method == "lora":
        blank = blank_decoder(spec)
        if settings.train.untie_head and spec.tied and settings.lora.trainable_token_indices:
            raise SettingsError(
                "lora.trainable_token_indices with train.untie_head=true would train rows of the embedding alone, and "
                "PEFT would read them as the head's, too; set train.untie_head=false"
            )
        if settings.train.untie_head:
            blank.untie()
        adapt(blank, settings)  # targets and ranks
    if settings.train.patience and loader_for(prepared, "validation") is None:
        raise SettingsError("train.patience looks at the validation loss, and no rows are held out for validation")
    if settings.train.patience and settings.train.evaluation == "book" and not settings.train.eval_every:
        raise SettingsError("train.patience looks at the validation loss; set train.eval_every, which is 0")
    return prepared


def _settled(settings: Settings, template: str) -> Settings:
    """The settings with what was found here in place of what was left open.

    Raises:
        SettingsError: a GPU is asked for and there is none.
    """
    precision = precision_for(settings.train.precision, device_for(settings.train.device))
    return _with(settings, template, precision)


def as_found(settings: Settings, prepared: Prepared) -> Settings:
    """Settings of another run on the same rows, with what was found here in place of what they leave open."""
    return _with(settings, prepared.settings.data.template, prepared.settings.train.precision)


def _with(settings: Settings, template: str, precision: Literal["fp32", "bf16", "auto"]) -> Settings:
    found: dict[str, Any] = {"data": settings.data.model_copy(update={"template": template})}
    if precision != settings.train.precision:
        found["train"] = settings.train.model_copy(update={"precision": precision})
    return settings.model_copy(update=found)


def _split(results: Results, options: DataOptions, screen: Screen) -> tuple[Split, Leaks]:
    """The rows of each part, with what parts have in common; the search for that is shown."""
    with screen.bar("looks for near-duplicates", STEPS * len(results.examples)) as advance:

        def tick(steps: int) -> None:
            advance(steps=steps)

        return results.split(options, tick)


def _resize_notes(spec: DecoderSpec, new: int) -> list[str]:
    said = verb(new, "the new one is", f"the {new:,} new are")
    return [f"the embedding grows to {spec.vocab_size:,} rows; {said} the mean of the others"] if new else []


def _spelt(examples: Sequence[Example], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Rows that the vocabulary cannot spell, and those that the tokenizer alters."""
    kinds = {example.row: spelling(example, tokenizer) for example in examples}
    misspelt, altered = ([row for row, kind in kinds.items() if kind == name] for name in ("misspelt", "altered"))
    return misspelt, altered


def _budget_notes(prepared: Prepared, loader: Loader) -> list[str]:
    """What a budget of tokens makes of the rows."""
    options = prepared.settings.train
    if loader.budget is None:
        return []
    rows = [loader.rows[int(at)].row for at in loader.budget.over_long[:20]]
    over_long = len(loader.budget.over_long)
    said = [
        f"train.batch_tokens={options.batch_tokens} makes {counted(len(loader), 'step')} of an epoch, with "
        f"{len(loader.rows) / len(loader):.1f} rows each on average"
    ]
    if over_long:
        shown = ", ".join(map(str, rows)) + (", ..." if over_long > len(rows) else "")
        have = (
            "row is longer than that and makes a step of its own"
            if over_long == 1
            else "rows are longer than that and make a step of their own each"
        )
        said.append(f"{over_long} {have}: {shown}")
    return said


def _evaluation_notes(prepared: Prepared) -> list[str]:
    """A warning where every evaluation looks at very many rows."""
    count, options = len(prepared.rows["validation"]), prepared.settings.train
    if count < MANY_EVALUATED or options.eval_batches:
        return []
    often = f"every {counted(options.eval_every, 'step')}" if options.eval_every else "at the end of every epoch"
    return [f"all {count:,} validation rows are looked at {often}; train.eval_batches=100 looks at so many batches"]


def _warmup_notes(settings: Settings, batches: int) -> list[str]:
    """A warning where the share of warmup is less than one step of so many batches an epoch."""
    train = settings.train
    steps = planned_steps(batches, train)
    if not train.warmup or not steps or int(train.warmup * steps):
        return []
    return [
        f"train.warmup={train.warmup:g} of {counted(steps, 'step')} is less than one step, so the rate does not rise; "
        f"from {1 / steps:.2g} on it does"
    ]


def _header_notes(template: Template, settings: Settings) -> list[str]:
    """A warning where the model is left to write a header that it is never trained to write."""
    if settings.generate.header or settings.data.train_on != "response" or not template.header:
        return []
    return [
        f"the header {template.header.strip()!r} is neither put into the prompt (generate.header=false) nor trained on "
        "(data.train_on=response); set generate.header=true, or data.train_on=response_with_header as the book does"
    ]


def load(prepared: Prepared, *, elsewhere: bool = False) -> Decoder:
    """The decoder with its weights, or with what gives them (`instil.model.elsewhere`)."""
    path, vocab_size = prepared.model_path, prepared.spec.vocab_size
    device = device_for(prepared.settings.train.device)
    if elsewhere:
        decoder = load_elsewhere(path, vocab_size=vocab_size, device=device)
    else:
        decoder = load_decoder(path, device=device)
        grow_vocabulary(decoder, vocab_size)
    if prepared.settings.train.untie_head:
        decoder.untie()
    return decoder


def first_weights(prepared: Prepared, *, elsewhere: bool = False) -> Mapping[str, Tensor]:
    """The weights that are trained as they are before training: those of the model, and fresh adapters.

    ``elsewhere``: one is read after another, when it is asked for.
    """
    decoder = load(prepared, elsewhere=elsewhere)
    if prepared.settings.train.method == "lora":
        adapt(decoder, prepared.settings)
    return Trained(decoder)
