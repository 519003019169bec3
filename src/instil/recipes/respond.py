"""Answers to one instruction, to the rows of a file, or to a split of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from instil.assistant.assistant import Assistant, load
from instil.data.shapes.reading import Offer
from instil.data.sources import read_source
from instil.errors import UserError
from instil.generate.answer import unended
from instil.recipes.base_of_run import products_of
from instil.records import Example
from instil.runs.folder import RUN_FILE, RunFolder, response_rows
from instil.screen import Screen
from instil.settings.options import Settings

OFFERS: tuple[Offer, ...] = ("map",)  # what can be said of the rows of a file


def respond_one(
    model: str,
    instruction: str,
    input_text: str,
    template: str | None,
    settings: Settings,
    *,
    int8: bool = False,
    bf16: bool = False,
    adapter: Path | None = None,
) -> dict[str, Any]:
    """The answer to one instruction, with why it ended."""
    with _products_of(model):
        assistant = _load(model, template, settings, Screen(), int8=int8, bf16=bf16, adapter=adapter)
        said = assistant.respond_all([{"instruction": instruction, "input": input_text}])[0]
    if said.finish == "no_room":
        raise UserError(
            f"the prompt has {said.prompt_tokens:,} tokens; the model's context is {assistant.decoder.spec.context:,}"
        )
    return {"model_response": said.text, "finish": said.finish}


def stream_one(
    model: str,
    instruction: str,
    input_text: str,
    template: str | None,
    settings: Settings,
    *,
    int8: bool = False,
    bf16: bool = False,
    adapter: Path | None = None,
) -> Iterator[str]:
    """The answer to one instruction in pieces, as they come."""
    with _products_of(model):
        assistant = _load(model, template, settings, Screen(), int8=int8, bf16=bf16, adapter=adapter)
        yield from assistant.stream(instruction, input_text)


def respond_rows(
    model: str,
    data: str | None,
    split: str | None,
    template: str | None,
    settings: Settings,
    screen: Screen,
    *,
    int8: bool = False,
    bf16: bool = False,
    adapter: Path | None = None,
) -> list[dict[str, Any]]:
    """Answered rows in the book's form (``model_response``).

    Raises:
        UserError: it is not clear which rows are meant, or the run's data has changed.
    """
    examples = _rows_of_run(Path(model), split) if data is None else _rows_of_file(data, split, settings, screen)
    with _products_of(model):
        assistant = _load(model, template, settings, screen, int8=int8, bf16=bf16, adapter=adapter)
        with screen.bar("answering", len(examples)) as advance:
            answers = assistant.respond_to(examples, on_done=advance)
    for line in unended(answers, assistant.options.max_new_tokens):
        screen.say(line, "yellow")
    return response_rows(examples, answers)


def _products_of(model: str) -> AbstractContextManager[None]:
    """What a run on this processor has found to be the faster product need not be measured again."""
    run = Path(model)
    return products_of(RunFolder(run), only_here=True) if (run / RUN_FILE).is_file() else nullcontext()


def _load(
    model: str,
    template: str | None,
    settings: Settings,
    screen: Screen,
    *,
    int8: bool,
    bf16: bool,
    adapter: Path | None,
) -> Assistant:
    changed = settings.generate.model_dump(exclude_unset=True)
    assistant = load(model, template=template, int8=int8, bf16=bf16, adapter=adapter, **changed)
    for note in assistant.decoder.notes:
        screen.say(note, "yellow")
    return assistant


def _rows_of_run(run: Path, split: str | None) -> tuple[Example, ...]:
    from instil.recipes.rows_of_run import rows_of_run  # all that training takes, for which one answer need not wait

    return rows_of_run(run, split)


def _rows_of_file(data: str, split: str | None, settings: Settings, screen: Screen) -> tuple[Example, ...]:
    if split:
        raise UserError("--split chooses rows of the run's own data; leave it out with --data")
    source = read_source(data, need_output=False, mapping=settings.data.map, offers=OFFERS)
    for note in source.notes:
        screen.say(note, "dim")
    return tuple(source.examples)
