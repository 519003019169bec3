"""Chapter 7 of "Build a Large Language Model (From Scratch)", section by section, with the parts of `instil`.

    python examples/chapter7.py --data instruction-data.json --model gpt2-medium --as-in-book

Without ``--as-in-book`` the corrected defaults are used; docs/book.md explains each difference. Without any
option it tunes SmolLM2-135M on the starter rows. ``--rows``, ``--steps`` and ``--answers`` make it short.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import instil
from instil import Assistant, Completion, Decoder, Example, Loader, Template
from instil.data.encoding import check_vocabulary
from instil.data.preflight import has_target
from instil.data.sources import read_source
from instil.data.splits import PARTS, Part, Split, split_examples
from instil.data.tokenizers import Tokenizer
from instil.errors import InstilError
from instil.evaluate.offline import means
from instil.evaluate.statistics import interval
from instil.model.files.pth import load_pth, save_pth
from instil.model.find import find_model
from instil.model.load import open_model
from instil.runs.folder import response_rows
from instil.runs.observers import MetricsFile
from instil.runs.report.curves import plot_losses
from instil.settings.options import Settings
from instil.settings.resolve import resolve
from instil.train.evaluation import AsInBook, Evaluator, HeldOut
from instil.train.metrics import StepRecord
from instil.train.observer import Observer, Pause

SIZES = {"gpt2-small": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}


def section(number: str, title: str) -> None:
    """A heading."""
    print(f"\n{number} {title}\n{'-' * (len(number) + 1 + len(title))}")


def prepare_data(data: str, rows: int, template: Template, settings: Settings) -> Split:
    """Read the rows, look at two of them, put them into the prompt's form and split them."""
    section("7.2", "The rows and their form")
    examples = read_source(data).examples[: rows or None]
    print(f"Number of entries: {len(examples)}")
    for number in (50, 999):  # one with an input and, in the book's data, one without
        if number < len(examples):
            print(f"\nentry {number}: {examples[number].as_json()}\n\n{template.full_text(examples[number])}")
    split = split_examples(examples, settings.data)
    print(f"\n{len(split.train)} rows to train on, {len(split.test)} to test, {len(split.validation)} to validate")
    return split


def organise_batches(tokenizer: Tokenizer, template: Template, settings: Settings, example: Example) -> None:
    """From a row to ids, and from rows of unequal length to two tensors."""
    section("7.3", "From rows to batches")
    row = instil.encode(example, template, tokenizer, settings.data.train_on)
    print(f"A row of {len(row.ids)} ids, of which {sum(row.trained[1:])} are targets (data.train_on=", end="")
    print(f"{settings.data.train_on}):\n{list(row.ids)}")
    print(f"End of text: [{tokenizer.eos_id}]; written in a row it is plain text: {tokenizer.encode('<|endoftext|>')}")

    batch = instil.collate([[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]], pad_id=50256)
    print(f"\nDraft 1, rows padded to the longest:\n{batch.inputs}")
    everywhere = batch.targets.masked_fill(batch.targets == -100, 50256)
    print(f"\nDraft 2, targets are the inputs moved by one:\n{everywhere}")
    print(f"\nFinal, of the padding only the first is a target, the end of the text:\n{batch.targets}")
    cut = instil.collate([[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]], pad_id=50256, max_length=3)
    print(f"\nCut at max_length=3:\n{cut.inputs}\n{cut.targets}")

    two = torch.tensor([[-1.0, 1.0], [-0.5, 1.5]])
    three = torch.tensor([[-1.0, 1.0], [-0.5, 1.5], [-0.5, 1.5]])
    print("\nWhat -100 does to the cross entropy:")
    print(f"  two predictions:             {F.cross_entropy(two, torch.tensor([0, 1])):.4f}")
    print(f"  a third one:                 {F.cross_entropy(three, torch.tensor([0, 1, 1])):.4f}")
    print(f"  the third one's target -100: {F.cross_entropy(three, torch.tensor([0, 1, -100])):.4f}")


def create_loaders(
    split: Split, template: Template, tokenizer: Tokenizer, context: int, settings: Settings
) -> dict[Part, Loader]:
    """Loaders for each part that has rows."""
    section("7.4", "Loaders")
    max_length = min(settings.data.max_length, context)
    loaders: dict[Part, Loader] = {}
    for part in PARTS:
        encoded = [instil.encode(row, template, tokenizer, settings.data.train_on) for row in split.part(part)]
        kept = [row for row in encoded if has_target(row, max_length)]
        if len(kept) < len(encoded):
            print(f"{len(encoded) - len(kept)} {part} rows fill {max_length} tokens with their prompt: left out")
        if kept:
            make = partial(
                Loader,
                kept,
                settings.train.batch_size,
                pad_id=tokenizer.eos_id,
                max_length=max_length,
                micro_batch=settings.train.micro_batch,
                shuffle=part == "train",
                drop_last=settings.train.drop_last and part == "train",
                seed=settings.train.seed,
                order=settings.train.order,
            )
            loaders[part] = make(layout=settings.train.layout)
            if part == "train":
                padded = make(layout="padded")
    print(f"Train loader, the first of its {len(padded)} batches, padded as the chapter has them:")
    for batch in islice(padded.batches(), 7):
        print(f"{batch.inputs.shape} {batch.targets.shape}")
    return loaders


def load_model(model: Path, name: str, settings: Settings) -> Decoder:
    """The pretrained weights."""
    section("7.5", "The pretrained model")
    decoder = instil.load_decoder(model)
    print(f"{name}: {decoder.parameter_count:,} parameters, {decoder.spec.layers} layers of width {decoder.spec.width}")
    if settings.train.untie_head:
        decoder.untie()
        print(f"with a head of its own, as in the book: {decoder.parameter_count:,}")
    return decoder


def show_answers(assistant: Assistant, examples: Sequence[Example], when: str) -> list[Completion]:
    """Answers beside the right ones."""
    answers = assistant.respond_to(examples)
    for example, said in zip(examples, answers, strict=True):
        print("\n" + assistant.template.prompt(example, header=False))
        print(f"\nCorrect response:\n>> {example.output}\n\nModel response {when}:\n>> {said.text}\n{'-' * 37}")
    return answers


class Shown(Observer):
    """Prints the losses as the chapter does, and an answer now and then."""

    def __init__(self, assistant: Assistant, example: Example, sample: str) -> None:
        self._assistant, self._example, self._sample = assistant, example, sample

    def on_step(self, record: StepRecord) -> None:
        train_loss = record.train_loss if record.eval_train_loss is None else record.eval_train_loss
        named = {"training loss": train_loss, "validation loss": record.val_loss}
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in named.items() if loss is not None)
        if record.step == 0:
            print(f"Before training: {losses or 'no validation rows'}", flush=True)
        elif record.val_loss is not None or record.step == 1:
            print(f"Epoch {record.epoch:.2f}, step {record.step:>4}: {losses}", flush=True)

    def wants_pause(self, pause: Pause) -> bool:
        return pause.evaluated if self._sample == "evaluation" else pause.ends_epoch

    def on_pause(self, pause: Pause, decoder: Decoder) -> None:
        show_answers(self._assistant, [self._example], f"after {pause.steps} steps")


def fine_tune(assistant: Assistant, loaders: dict[Part, Loader], settings: Settings, shown: Example, out: Path) -> None:
    """Train, say how it goes, and draw the losses."""
    section("7.6", "Fine-tuning")
    show_answers(assistant, [shown], "before training")
    options, training, validation = settings.train, loaders["train"], loaders.get("validation")
    evaluator: Evaluator
    if options.evaluation == "book":
        torch.manual_seed(options.seed)
        again = validation.draw if validation else list  # every evaluation draws another order
        evaluator = AsInBook(training.draw, again, options.eval_every, options.eval_batches)
    else:
        batches = list(validation.batches()) if validation else []
        evaluator = HeldOut(batches, options.eval_every, options.eval_batches)

    with MetricsFile(out / "metrics.jsonl") as metrics:
        watching = [metrics, Shown(assistant, shown, options.sample)]
        result = instil.train(assistant.decoder, training, options, evaluator=evaluator, observers=watching)
    print(f"Training completed in {result.seconds / 60:.2f} minutes.")
    plot_losses(result.records, out)
    print(f"Losses drawn in {out / 'loss.png'} and {out / 'loss.pdf'}")


def file_name(model: str) -> str:
    """What the chapter calls the tuned model: ``gpt2-medium355M-sft.pth``."""
    return f"{Path(model).stem}{SIZES.get(model, '')}-sft.pth"


def save_and_load(assistant: Assistant, name: str, asked: Sequence[Example], out: Path) -> list[dict[str, Any]]:
    """Answer the test rows, save the weights, load them into a new model and answer again."""
    section("7.7", "Answers, and the model in a file")
    shown = show_answers(assistant, asked[:3], "after training")
    rows = response_rows(asked, assistant.respond_to(asked))
    answered = out / "instruction-data-with-response.json"
    answered.write_text(json.dumps(rows, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(rows)} answered rows in {answered}")

    file = out / file_name(name)
    save_pth(assistant.decoder, file)
    print(f"Model saved as {file}")
    again = Decoder(assistant.decoder.spec)
    load_pth(again, file)
    repeated = replace(assistant, decoder=again).respond_to(asked[:3])
    same = [answer.ids for answer in repeated] == [answer.ids for answer in shown]
    print(f"Loaded back into a new model: it gives {'the same' if same else 'OTHER'} answers.")
    return rows


def evaluate(rows: list[dict[str, Any]], judge: str) -> None:
    """Scores without a judge always, and with the chapter's question by a model, where one is running."""
    section("7.8", "Scores")
    found = means(instil.score(rows))
    print(f"Offline, over {len(rows)} rows (words and letters in common with the reference, not meaning):")
    print(f"  exact match {found['exact_match']:.1%}, chrF {found['chrf']:.1f}, agreement {found['score']:.1f} of 100")
    try:
        verdicts = instil.score(rows, judge, prompt="book")
    except InstilError as error:
        print(f"No model has judged the answers: {error}")
        return
    given = interval([verdict.score for verdict in verdicts if verdict.score is not None])
    if given is None:
        print(f"{judge}: none of the {len(verdicts)} answers got a score that can be read ({verdicts[0].reason})")
    else:
        print(f"{judge}: {given.count} of {len(verdicts)} answers scored, mean [95 %] {given.text(2)} of 100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a name, a folder, a GGUF file (%(default)s)")
    parser.add_argument("--data", default="starter", help="a name or a JSON file (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/chapter7"), help="folder for the files (%(default)s)")
    parser.add_argument("--as-in-book", action="store_true", help="the chapter's settings")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    parser.add_argument("--rows", type=int, default=0, help="use the first rows only")
    parser.add_argument("--steps", type=int, default=0, help="train for so many steps only")
    parser.add_argument("--answers", type=int, default=0, help="answer so many test rows only")
    parser.add_argument("--judge", default="ollama:llama3", help="who scores the answers (%(default)s)")
    given = parser.parse_args()

    short = [f"train.max_steps={given.steps}"] if given.steps else []
    settings = resolve(as_in_book=given.as_in_book, assignments=["train.sample=epoch", *given.set, *short])
    given.out.mkdir(parents=True, exist_ok=True)
    template = instil.template_named(settings.data.template)

    split = prepare_data(given.data, given.rows, template, settings)
    model = find_model(given.model)
    spec, tokenizer = open_model(model).spec, instil.load_tokenizer(model)
    check_vocabulary(template, tokenizer, spec.vocab_size)
    organise_batches(tokenizer, template, settings, split.train[0])
    loaders = create_loaders(split, template, tokenizer, spec.context, settings)
    assistant = Assistant(load_model(model, given.model, settings), tokenizer, template, settings.generate)
    fine_tune(assistant, loaders, settings, (split.validation or split.train)[0], given.out)
    asked = (split.test or split.validation or split.train)[: given.answers or None]
    rows = save_and_load(assistant, given.model, asked, given.out)
    evaluate(rows, given.judge)


if __name__ == "__main__":
    try:
        main()
    except InstilError as error:
        print(f"chapter7: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
