"""Answers to one instruction, to the rows of a file, or to a split of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instil.assistant.assistant import Assistant, load
from instil.data.shapes.reading import Offer
from instil.data.sources import IN_MEMORY, read_source
from instil.data.splits import PARTS
from instil.errors import DataError, UserError
from instil.generate.answer import unended
from instil.records import Example
from instil.runs.folder import RUN_FILE, RunFolder, response_rows
from instil.screen import Screen
from instil.settings.options import Settings
from instil.settings.resolve import resolve
from instil.tasks.prepare import TASKS
from instil.tasks.task import Task

OFFERS: tuple[Offer, ...] = ("map",)  # what can be said of the rows of a file


def respond_one(
    model: str,
    instruction: str,
    input_text: str,
    template: str | None,
    settings: Settings,
    *,
    int8: bool = False,
    adapter: Path | None = None,
) -> dict[str, Any]:
    """The answer to one instruction, with why it ended."""
    assistant = _load(model, template, settings, Screen(), int8=int8, adapter=adapter)
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
    adapter: Path | None = None,
) -> Iterator[str]:
    """The answer to one instruction in pieces, as they come."""
    assistant = _load(model, template, settings, Screen(), int8=int8, adapter=adapter)
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
    adapter: Path | None = None,
) -> list[dict[str, Any]]:
    """Answered rows in the book's form (``model_response``).

    Raises:
        UserError: it is not clear which rows are meant, or the run's data has changed.
    """
    examples = _rows_of_run(Path(model), split) if data is None else _rows_of_file(data, split, settings, screen)
    assistant = _load(model, template, settings, screen, int8=int8, adapter=adapter)
    with screen.bar("answering", len(examples)) as advance:
        answers = assistant.respond_to(examples, on_done=advance)
    for line in unended(answers, assistant.options.max_new_tokens):
        screen.say(line, "yellow")
    return response_rows(examples, answers)


def _load(
    model: str, template: str | None, settings: Settings, screen: Screen, *, int8: bool, adapter: Path | None
) -> Assistant:
    changed = settings.generate.model_dump(exclude_unset=True)
    assistant = load(model, template=template, int8=int8, adapter=adapter, **changed)
    for note in assistant.decoder.notes:
        screen.say(note, "yellow")
    return assistant


def _rows_of_file(data: str, split: str | None, settings: Settings, screen: Screen) -> tuple[Example, ...]:
    if split:
        raise UserError("--split chooses rows of the run's own data; leave it out with --data")
    source = read_source(data, need_output=False, mapping=settings.data.map, offers=OFFERS)
    for note in source.notes:
        screen.say(note, "dim")
    return tuple(source.examples)


def _rows_of_run(path: Path, split: str | None) -> tuple[Example, ...]:
    if not (path / RUN_FILE).is_file():
        raise UserError(f"{path} is not a run folder, so say what to answer: --instruction TEXT or --data FILE")
    part = split or "test"
    if part not in PARTS:
        raise UserError(f"no split named {part!r}; known: {', '.join(PARTS)}")
    rows = rows_of_run(RunFolder(path), part)
    if not rows:
        raise DataError(f"{path}: the run has no {part} rows")
    if all(row.text_only for row in rows):
        raise DataError(f"{path}: its {part} rows are texts without a question, so there is nothing to answer")
    return rows


def rows_of_run(folder: RunFolder, part: str) -> tuple[Example, ...]:
    """The rows of a part of a run, read once more.

    Raises:
        UserError: they are not there any more, or are others by now.
    """
    facts = folder.read_settings()
    where = facts.get("data_path") or facts["data"]
    if where == IN_MEMORY:
        raise UserError(
            f"{folder.path} was made from rows in memory, so its {part} rows are not at hand; give --data FILE"
        )
    source = _task_of(facts["settings"]).read(where)
    if source.sha256 != facts["hashes"].get("data"):
        raise UserError(f"{where} has changed since the run; answer its rows with --data {where}")
    wanted = set(folder.read_split()[part])
    return tuple(example for example in source.examples if example.row in wanted)


def _task_of(stored: dict[str, dict[str, Any]]) -> Task[Any]:
    """What a run learnt, as far as reading its rows needs it: its other settings may be those of another version."""
    kind = TASKS.get(str(stored.get("train", {}).get("objective")), TASKS["sft"])
    skip_bad = bool(stored.get("data", {}).get("skip_bad"))
    keep_equal = bool(stored.get("dpo", {}).get("keep_equal"))
    form = "nfc" if stored.get("data", {}).get("normalise") == "nfc" else "none"
    mapping = stored.get("data", {}).get("map", [])
    data = {"skip_bad": skip_bad, "normalise": form, "map": mapping}
    return kind(resolve(values={"data": data, "dpo": {"keep_equal": keep_equal}}))
