"""Supervised fine-tuning: from rows and a model's name to a tuned decoder."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import instil
from instil.data.encoding import check_vocabulary, encode, is_spellable
from instil.data.loader import BookLoader, Loader
from instil.data.pair_loader import BookPairLoader, PairLoader
from instil.data.pairs import PairSource
from instil.data.preflight import Preflight, check, has_target
from instil.data.sources import Source, examples_from, read_source
from instil.data.splits import PARTS, Part, Split, split_examples
from instil.data.templates import TEMPLATES, Template, template_named
from instil.data.tokenizers import Tokenizer, load_tokenizer
from instil.errors import ModelError, SettingsError, TemplateMismatch
from instil.export.folder import TEMPLATE_FILE
from instil.generate.answer import answer
from instil.generate.options import GenerateOptions
from instil.model.decoder import Decoder
from instil.model.hub import find_model
from instil.model.weights import blank_decoder, load_decoder, open_model
from instil.recipes import dpo
from instil.recipes.adapters import adapt, adapted, not_exact
from instil.recipes.best import BestOnDisk
from instil.recipes.dpo import Pairs
from instil.recipes.progress import Screen, clock
from instil.recipes.run_folder import RunFolder, read_template
from instil.recipes.settings import Settings, idle
from instil.records import Batch, Encoded, EncodedPair, Example
from instil.runtime import device_for
from instil.train.evaluation import AsInBook, Evaluation, Evaluator, HeldOut
from instil.train.loop import TrainResult, planned_steps, train
from instil.train.metrics import MetricsFile, StepRecord
from instil.train.objective import Likelihood, Objective
from instil.train.plot import plot_losses
from instil.train.preference import Preference

if TYPE_CHECKING:
    from instil.recipes.estimate import Forecast

Data = str | Path | Sequence[dict[str, Any]]
SAMPLE_ROWS = 2
SAMPLE_TOKENS = 48
EVALUATED_TOKENS = 1024  # in one batch of validation rows


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that is known before the first weight is loaded."""

    settings: Settings
    source: Source
    split: Split
    template: Template
    tokenizer: Tokenizer
    encoded: dict[Part, list[Encoded]]
    preflight: Preflight
    model_name: str
    model_path: Path
    max_length: int
    pairs: Pairs | None = None  # with train.objective=dpo; ``encoded`` are then the chosen answers

    @property
    def held_out(self) -> tuple[str, tuple[Example, ...]]:
        """The rows that are answered before and after: test rows, or validation rows if there are none."""
        if self.split.test:
            return "test", self.split.test
        return "validation", self.split.validation

    @property
    def sampled(self) -> tuple[Example, ...]:
        """The few rows that are answered as training goes on."""
        return (self.split.validation or self.split.test)[:SAMPLE_ROWS]


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


def loader_for(prepared: Prepared, part: Part) -> Loader | None:
    """Batches of a part, without the rows that have nothing to train on; None if there are none."""
    rows: Sequence[Encoded] | Sequence[EncodedPair]
    if prepared.pairs is not None:
        rows = dpo.usable(prepared.pairs[part], prepared.max_length, prepared.settings)
    else:
        rows = [row for row in prepared.encoded[part] if has_target(row, prepared.max_length)]
    if not rows:
        return None
    options = prepared.settings.train
    training = part == "train"
    kinds = (Loader, BookLoader) if prepared.pairs is None else (PairLoader, BookPairLoader)
    micro_batch = options.micro_batch or options.batch_size
    whole = not training and not options.eval_batches and options.evaluation == "held_out"
    if whole:  # no gradient is held, so many rows go through at once; what is counted are tokens, not batches
        longest = min(prepared.max_length, max(len(row.ids) for row in rows))
        micro_batch = max(micro_batch, EVALUATED_TOKENS // longest // (1 if prepared.pairs is None else 2))
    return kinds[options.order == "book"](
        rows,
        len(rows) if whole else options.batch_size,
        pad_id=prepared.tokenizer.eos_id,
        max_length=prepared.max_length,
        micro_batch=micro_batch,
        shuffle=training,
        drop_last=options.drop_last and training,
        seed=options.seed,
        layout=options.layout,
    )


def objective_for(prepared: Prepared) -> Objective:
    """What training makes smaller."""
    return Likelihood() if prepared.pairs is None else Preference(prepared.settings.dpo)


def evaluator_for(prepared: Prepared, loader: Loader) -> Evaluator:
    """What evaluates during training, as the settings have it."""
    options = prepared.settings.train
    held_back = loader_for(prepared, "validation")
    if options.evaluation == "book":
        rhythm = (options.eval_every, options.eval_batches)
        return AsInBook(_opener(loader), _opener(held_back), *rhythm, objective_for(prepared))
    steps = held_back.steps() if held_back else iter(())
    batches = [batch for step in islice(steps, options.eval_batches or None) for batch in step]
    return HeldOut(batches, options.eval_every, objective=objective_for(prepared))


@dataclass(frozen=True, slots=True)
class _Timed:
    """An evaluator that tells a forecast how long it took."""

    evaluator: Evaluator
    forecast: Forecast

    def __call__(self, decoder: Decoder) -> Evaluation:
        started = time.perf_counter()
        found = self.evaluator(decoder)
        self.forecast.saw_evaluation(time.perf_counter() - started)
        return found

    def due(self, done: int, ends_epoch: bool) -> bool:
        return self.evaluator.due(done, ends_epoch)


def tune(
    prepared: Prepared, decoder: Decoder, folder: RunFolder, screen: Screen, forecast: Forecast | None = None
) -> TrainResult:
    """Train, and leave ``metrics.jsonl``, ``samples.jsonl`` and the loss curves behind."""
    options = prepared.settings.train
    if prepared.pairs is not None:
        prepared = dpo.with_reference(prepared, decoder, screen, loader_for(prepared, "train"))
    loader = loader_for(prepared, "train")
    assert loader is not None, "pre-flight refuses data without a trainable row"
    if options.evaluation == "book":
        torch.manual_seed(options.seed)
    evaluator = evaluator_for(prepared, loader)
    if forecast is not None:
        evaluator = _Timed(evaluator, forecast)
    steps = planned_steps(len(loader), options)
    sampled = prepared.sampled
    records: list[StepRecord] = []
    watch = dpo.Watch()

    with (
        MetricsFile(folder.metrics) as metrics,
        folder.samples.open("w", encoding="utf-8") as samples,
        screen.bar("training", steps) as advance,
    ):

        def on_record(record: StepRecord) -> None:
            metrics.write(record)
            records.append(record)
            if record.step and forecast is not None:
                forecast.saw_step(record.seconds - records[-2].seconds)
            if record.step:
                advance(f"loss {record.train_loss:.3f}  {record.tokens_per_second:.0f} tokens/s")
            if record.val_loss is not None or record.step == steps:
                screen.say(_progress_line(records, steps))
            if warning := watch.saw(record):
                screen.say(f"  {warning}", "yellow")

        def on_sample(step: int) -> None:
            greedy = GenerateOptions(max_new_tokens=SAMPLE_TOKENS, header=prepared.settings.generate.header)
            started = time.perf_counter()
            answers = answer(decoder, prepared.tokenizer, prepared.template, sampled, greedy)
            if forecast is not None:
                forecast.saw_sample(answers, time.perf_counter() - started)
            for example, said in zip(sampled, answers, strict=True):
                line = {"step": step, "row": example.row, **example.as_json(), "model_response": said.text}
                samples.write(json.dumps(line, ensure_ascii=False) + "\n")
                samples.flush()
                if example is sampled[0]:
                    asked = " ".join(f"{example.instruction} {example.input}".split())
                    screen.say(f"    asked: {_short(asked)}\n    says:  {_short(' '.join(said.text.split()))}", "dim")

        tried = prepared.encoded["train"][0].ids[: prepared.max_length]
        kept = BestOnDisk(folder.path / "checkpoints" / "best.safetensors")
        with adapted(decoder, prepared.settings, folder.adapter, prepared.model_name, tried, screen), kept:
            result = train(
                decoder,
                loader,
                options,
                evaluator=evaluator,
                on_record=on_record,
                on_sample=on_sample if sampled else None,
                seen_ids=loader.ids(),
                keeper=kept,
                objective=objective_for(prepared),
            )
        if options.method == "lora":  # as in the model folder: it belongs to what was learnt
            folder.write_json(f"{folder.adapter.name}/{TEMPLATE_FILE}", prepared.template.as_json())
    if result.diverged:
        screen.say(f"  training diverged at {result.diverged}", "yellow")
    if result.best_step is not None:
        screen.say(f"  kept the model of step {result.best_step}, validation loss {result.validation_loss:.3f}")
    if warning := _worse(result):
        screen.say(f"  {warning}", "yellow")
    plot_losses(result.records, folder.path)
    return result


def _worse(result: TrainResult) -> str:
    """A warning where training has led away from the held-out rows; nothing otherwise."""
    before, after = result.records[0].val_loss, result.validation_loss
    if before is None or after is None or not after > before:
        return ""
    return f"the validation loss is {after:.3f}, above {before:.3f} before training; lower train.learning_rate"


def _opener(loader: Loader | None) -> Callable[[], Iterator[list[Batch]]]:
    """Opens a loader for an evaluation, in the order drawn next where there is such a thing."""
    if loader is None:
        return lambda: iter(())
    return loader.draw if isinstance(loader, BookLoader) else loader.steps


def describe(prepared: Prepared, decoder: Decoder) -> dict[str, Any]:
    """What ``run.toml`` says: settings as resolved, versions, and hashes of data, model and template."""
    return {
        "instil": instil.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": prepared.source.name,
        "data_path": str(Path(prepared.source.name).resolve()) if Path(prepared.source.name).is_file() else "",
        "model": prepared.model_name,
        "settings": prepared.settings.model_dump(),
        "model_facts": {
            "family": decoder.spec.family,
            "parameters": decoder.parameter_count,
            "file": prepared.model_path.name,
            "quantised": prepared.model_path.suffix == ".gguf",
        },
        "hashes": input_hashes(prepared),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
        },
    }


def input_hashes(prepared: Prepared) -> dict[str, str]:
    """Of rows, weights and template; of the reference's weights, too, where preference is learnt with another one."""
    hashes = {
        "data": prepared.source.sha256,
        "model": file_hash(prepared.model_path),
        "template": prepared.template.hash,
    }
    if prepared.pairs is not None and prepared.settings.dpo.reference:
        hashes["reference"] = file_hash(find_model(prepared.settings.dpo.reference))
    return hashes


def file_hash(path: Path) -> str:
    """SHA-256 of a model file, or of all weight files of a folder in order of name."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{path}: no weight files in it")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _progress_line(records: Sequence[StepRecord], steps: int) -> str:
    """Where training is: the mean of the last losses, the validation loss, speed and time left."""
    last = records[-1]
    line = f"  step {last.step:>4}/{steps}  epoch {last.epoch:.2f}"
    recent = [record.train_loss for record in records[-20:] if record.train_loss is not None]
    if last.eval_train_loss is not None:  # the book's way: what it prints instead
        line += f"  train {last.eval_train_loss:.3f}"
    elif recent:
        line += f"  train {sum(recent) / len(recent):.3f}"
    if last.val_loss is not None:
        line += f"  validation {last.val_loss:.3f}{dpo.measures(last)}"
    if last.step:
        line += f"  {last.tokens_seen / last.seconds:.0f} tokens/s"
        left = last.seconds / last.step * (steps - last.step)
        line += f"  {clock(left)} left" if left else f"  took {clock(last.seconds)}"
    return line


def _short(text: str, width: int = 100) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
