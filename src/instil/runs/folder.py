"""The run folder: where everything a run leaves lies, and how it is written.

::

    RUN/
      status.json              what it is doing, by which process, and how far it is (`instil.runs.status`)
      verdict.json             its figures, and hashes of all that they hang on (`instil.runs.verdict`)
      run.toml                 every setting as resolved, versions, hashes of data, model and template
      split.json               which row went where; held-out rows that are nearly the same as a training row
      rejected.jsonl           rows left out or cut, each with its reason; empty if there is none
      data.json                the data card: what the rows are
      metrics.jsonl            one line a step
      skipped.jsonl            with train.on_divergence=rewind: rows that training went on without, if there are any
      samples.jsonl            the same few prompts, answered as training goes on
      loss.png  loss.pdf
      model/                   a folder that transformers opens
      adapter/                 with train.method=lora: a folder that peft opens
      logs/                    with log.to: what loggers keep on this machine
      responses/base.json      the held-out rows answered before training, in the book's form
      responses/base-in-NAME.json   the same in a prompt form that scores less, where the model was asked in two
      responses/tuned.json     and after
      scores/*.jsonl           one verdict a line, keyed by row
      scores/verdicts.journal  every verdict of a judge as it came
      keep.json                what was lost and gained outside of its rows (`instil.runs.general`)
      keep/base.jsonl          what that hangs on: one text, probe or request a line
      keep/tuned.jsonl         and after
      blend.json  blend.png    with instil blend: mixtures of base and tuned model
      report.html report.json  opens offline; what it is made of besides the other files
"""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instil.data.templates import TEMPLATE_FILE, Template, read_template
from instil.errors import DataError, RunFolderTaken, TemplateMismatch, UserError
from instil.files import (
    PROBE,
    check_folder,
    free_at,
    make_folder,
    read_parsed,
    unfinished_of,
    write_whole,
)
from instil.model import find
from instil.records import Completion, Example
from instil.runs.row_files import RowFiles
from instil.runs.status import STATUS, read_status

RUN_FILE = find.RUN_FILE  # a run stands for the model in it
FACTS = "report.json"  # written when all else is
KEEP, KEEP_ROWS = "keep.json", "keep"
BLEND, BLEND_PICTURE = "blend.json", "blend.png"
OWN_FILES = (
    RUN_FILE,
    "split.json",
    "rejected.jsonl",
    "data.json",
    "metrics.jsonl",
    "samples.jsonl",
    "skipped.jsonl",
    "loss.png",
    "loss.pdf",
    "report.html",
    "verdict.json",
    KEEP,
    BLEND,
    BLEND_PICTURE,
    FACTS,
)
OWN_FOLDERS = ("adapter", "checkpoints", KEEP_ROWS, "logs", "model", "responses", "scores")


@dataclass(frozen=True, slots=True)
class RunFolder(RowFiles):
    """A run's folder by its path; nothing is created until `create`."""

    @property
    def model(self) -> Path:
        """The tuned model's folder."""
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        """What was trained with ``train.method=lora``, as PEFT has it."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """States of its training; empty when the run is finished."""
        return self.path / "checkpoints"

    @property
    def begun(self) -> bool:
        """Whether there is a run, finished or not."""
        return (self.path / RUN_FILE).is_file()

    @property
    def finished(self) -> bool:
        """Whether there is one that is finished, as it says itself; one of an earlier version says nothing."""
        status = read_status(self.path)
        return (self.path / FACTS).is_file() and (status is None or status.state == "finished")

    def leftovers(self) -> list[Path] | None:
        """What a run leaves that ends before its first file is whole: empty folders, its status; None for more."""
        if not self.path.is_dir():
            return None
        found = list(self.path.iterdir())
        own = (STATUS, unfinished_of(self.path / STATUS).name, unfinished_of(self.path / RUN_FILE).name)
        nothing = all(
            one.name in own
            or ((one.name in OWN_FOLDERS or one.name.startswith(PROBE)) and one.is_dir() and not any(one.iterdir()))
            for one in found
        )
        return found if nothing else None

    @property
    def metrics(self) -> Path:
        """One line a step."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Answers while training went on."""
        return self.path / "samples.jsonl"

    @property
    def skipped(self) -> Path:
        """Rows that training went on without, since it had diverged with them; absent where there are none."""
        return self.path / "skipped.jsonl"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    def check_free(self, *, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
        """Refuse a path that is taken or cannot be written; nothing is changed.

        Args:
            overwrite: whether an earlier run may be replaced.
            inputs: files and folders the new run reads, which must not lie inside the one to be replaced.

        Raises:
            RunFolderTaken: there is something at the path, and ``overwrite`` is off.
            UserError: the path cannot be written, ``overwrite`` would remove a folder that is not a run, or
                one that the new run reads from.
        """
        check_folder(self.path)
        if not self.path.exists() or self.leftovers() is not None:
            return
        if not overwrite:
            if self.begun and not self.finished:
                raise RunFolderTaken(
                    f"{self.path} holds a run that was not finished; add --resume to go on with it, choose another "
                    "--out, or add --overwrite"
                )
            raise RunFolderTaken(f"{self.path} is not empty; choose another --out, or add --overwrite")
        if not (self.path / RUN_FILE).is_file() and read_status(self.path) is None:
            raise UserError(f"{self.path} is not empty and holds no {RUN_FILE}; it is not a run, so it is left alone")
        for path in inputs:
            if path.resolve().is_relative_to(self.path.resolve()):
                raise UserError(
                    f"{path} lies inside {self.path}, which --overwrite would replace; choose another --out"
                )

    def check_room(self, result: int, checkpoints: int = 0) -> None:
        """Refuse a disk that cannot take so many bytes beside what is on it, but for an earlier model and checkpoints.

        Args:
            result: bytes of what a run leaves.
            checkpoints: bytes of those that are there at once while it trains.

        Raises:
            UserError: there is too little room.
        """
        existing, room = free_at(self.path)
        earlier = [*self.model.glob("*.safetensors"), *self.checkpoints.rglob("*.safetensors")]
        free = room + sum(map(_size_of, earlier))
        if result + checkpoints > free:
            of_that = f", {checkpoints / 1e9:.2f} of them for checkpoints" if checkpoints else ""
            without = ", or do without checkpoints (train.save_every=0)" if result <= free and checkpoints else ""
            raise UserError(
                f"the run needs {(result + checkpoints) / 1e9:.2f} GB on disk{of_that}, and {free / 1e9:.2f} GB are "
                f"free at {existing}; make room, or choose another --out{without}"
            )

    def create(self, *, overwrite: bool = False) -> None:
        """Make the folder; of an earlier run only what a run writes is removed, but for its status; other files stay.

        Raises:
            RunFolderTaken: something has come to lie there since `check_free`.
        """
        self.check_free(overwrite=overwrite)
        for name in OWN_FILES:
            for file in (self.path / name, unfinished_of(self.path / name)):
                file.unlink(missing_ok=True)
        for name in OWN_FOLDERS:
            for folder in (self.path / name, unfinished_of(self.path / name)):
                if folder.is_dir():
                    shutil.rmtree(folder)
        make_folder(self.path)
        for name in ("responses", "scores", "checkpoints"):
            (self.path / name).mkdir(exist_ok=True)

    def sync(self) -> None:
        """Wait until nothing that lies in it can be lost, but for checkpoints.

        Raises:
            OSError: the system cannot do it.
        """
        for path in self.path.rglob("*"):
            if path.is_file() and not path.is_symlink() and not path.is_relative_to(self.checkpoints):
                with path.open("r+b") as file:
                    os.fsync(file.fileno())

    def write_settings(self, settings: dict[str, Any]) -> None:
        """Write ``run.toml``, to disk as well: without it no checkpoint is of any use."""
        import tomli_w

        text = tomli_w.dumps(settings).encode()

        def write(path: Path) -> None:
            with path.open("wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())

        write_whole(self.path / RUN_FILE, write)

    def read_settings(self) -> dict[str, Any]:
        """Read ``run.toml``.

        Raises:
            DataError: this is not a run folder, or the file is damaged.
        """
        file = self.path / RUN_FILE
        if not file.is_file():
            raise DataError(f"{self.path}: no {RUN_FILE} in it, so it is not a run folder")
        found = read_parsed(file, tomllib.loads, "not valid TOML")
        for key, kind in {"data": str, "settings": dict, "hashes": dict}.items():
            if not isinstance(found.get(key), kind):
                raise DataError(f"{file}: damaged, it has no {key!r}")
        if not all(isinstance(section, dict) for section in found["settings"].values()):
            raise DataError(f"{file}: damaged, wanted sections in its 'settings'")
        for key in ("data_path", "model_path"):
            if not isinstance(found.get(key, ""), str):
                raise DataError(f"{file}: damaged, its {key!r} is no text")
        return found

    def base(self) -> str:
        """The model that was tuned: its path, if it has one and is there, or by name.

        Raises:
            DataError: the run does not say, or is damaged.
        """
        facts = self.read_settings()
        name, path = facts.get("model"), facts.get("model_path")
        if not isinstance(name, str):
            raise DataError(f"{self.path / RUN_FILE}: damaged, it has no 'model'")
        return path if path and (Path(path).exists() or not Path(name).exists()) else name

    def note_micro_batch(self, step: int, rows: int) -> None:
        """Write into ``run.toml`` that from a step on so many rows are computed at once, for want of memory.

        Raises:
            DataError, OSError: it is damaged, or cannot be written.
        """
        facts = self.read_settings()
        self.write_settings({**facts, "micro_batches": [*facts.get("micro_batches", []), {"step": step, "rows": rows}]})

    def template(self) -> Template:
        """The template the model was tuned with; ``run.toml`` and the model folder must agree.

        Raises:
            TemplateMismatch: they do not.
        """
        file = self.model / TEMPLATE_FILE
        template = read_template(file)
        said = self.read_settings().get("hashes", {}).get("template")
        if said and said != template.hash:
            raise TemplateMismatch(
                f"{file}: template {template.name} has hash {template.hash}, but the run was tuned with {said}"
            )
        return template

    def write_responses(self, which: str, examples: Sequence[Example], answers: Sequence[Completion]) -> None:
        """Write ``responses/WHICH.json`` in the book's form."""
        self.write_json(f"responses/{which}.json", response_rows(examples, answers))

    def forget_answers(self, which: str) -> None:
        """Remove answers and their offline verdicts, which go on under another name."""
        for file in (self.path / "responses" / f"{which}.json", self.path / "scores" / f"{which}.offline.jsonl"):
            file.unlink(missing_ok=True)


def _size_of(file: Path) -> int:
    """Bytes of a file; none of one that is gone by now, or a link that leads nowhere."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def response_rows(examples: Sequence[Example], answers: Sequence[Completion]) -> list[dict[str, Any]]:
    """Examples with their ``model_response``, as the chapter's ``instruction-data-with-response.json``.

    A row whose prompt left no room for an answer says so (``"finish": "no_room"``), since its empty text is none.
    """
    return [
        {
            **example.as_json(),
            "model_response": answer.text,
            **({"finish": answer.finish} if answer.finish == "no_room" else {}),
        }
        for example, answer in zip(examples, answers, strict=True)
    ]
