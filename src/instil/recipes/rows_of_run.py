"""The rows that a run was made of, read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instil.data.sources import IN_MEMORY
from instil.data.splits import PARTS
from instil.errors import DataError, UserError
from instil.records import Example
from instil.runs.folder import RUN_FILE, RunFolder
from instil.settings.resolve import resolve
from instil.tasks.prepare import TASKS
from instil.tasks.task import Task


def rows_of_run(path: Path, split: str | None) -> tuple[Example, ...]:
    """The rows of a part of a run that can be asked, test by default, out of the run's data.

    Raises:
        UserError: it is no run, or its data are not at hand or have changed.
        DataError: there are no such rows, or they ask nothing.
    """
    if not (path / RUN_FILE).is_file():
        raise UserError(f"{path} is not a run folder, so say what to answer: --instruction TEXT or --data FILE")
    part = split or "test"
    if part not in PARTS:
        raise UserError(f"no split named {part!r}; known: {', '.join(PARTS)}")
    rows = part_of_run(RunFolder(path), part)
    if not rows:
        raise DataError(f"{path}: the run has no {part} rows")
    if all(row.text_only for row in rows):
        raise DataError(f"{path}: its {part} rows are texts without a question, so there is nothing to answer")
    return rows


def part_of_run(folder: RunFolder, part: str) -> tuple[Example, ...]:
    """The rows of a part of a run, whatever they are; there may be none.

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
