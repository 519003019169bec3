"""The run folder: where everything a run leaves lies, and how it is written.

::

    RUN/
      run.toml                 every setting as resolved, versions, hashes of data, model and template
      split.json               which row went where
      metrics.jsonl            one line a step
      samples.jsonl            the same few prompts, answered as training goes on
      loss.png  loss.pdf
      model/                   a folder that transformers opens
      responses/base.json      the held-out rows answered before training, in the book's form
      responses/tuned.json     and after
      scores/*.jsonl           one verdict a line, keyed by row
      report.html              opens offline
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instil.data.templates import Template
from instil.errors import DataError, RunFolderTaken, TemplateMismatch, UserError
from instil.export.folder import TEMPLATE_FILE
from instil.records import Completion, Example, Verdict

RUN_FILE = "run.toml"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder by its path; nothing is created until `create`."""

    path: Path

    @property
    def model(self) -> Path:
        """The tuned model's folder."""
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        """One line a step."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Answers while training went on."""
        return self.path / "samples.jsonl"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    def check_free(self, *, overwrite: bool) -> None:
        """Refuse a path that is taken; nothing is changed.

        Raises:
            RunFolderTaken: there is something at the path, and ``overwrite`` is off.
            UserError: ``overwrite`` would remove a folder that is not a run.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not self.path.is_dir():
            raise RunFolderTaken(f"{self.path} is a file; choose another --out")
        if not overwrite:
            raise RunFolderTaken(f"{self.path} is not empty; choose another --out, or add --overwrite")
        if not (self.path / RUN_FILE).is_file():
            raise UserError(f"{self.path} is not empty and holds no {RUN_FILE}; it is not a run, so it is left alone")

    def create(self) -> None:
        """Make the folder, in place of an earlier run (see `check_free`)."""
        if self.path.exists():
            shutil.rmtree(self.path)
        for name in ("responses", "scores", "checkpoints"):
            (self.path / name).mkdir(parents=True)

    def write_settings(self, settings: dict[str, Any]) -> None:
        """Write ``run.toml``."""
        import tomli_w

        self._write(RUN_FILE, tomli_w.dumps(settings))

    def read_settings(self) -> dict[str, Any]:
        """Read ``run.toml``.

        Raises:
            DataError: this is not a run folder, or the file is damaged.
        """
        file = self.path / RUN_FILE
        if not file.is_file():
            raise DataError(f"{self.path}: no {RUN_FILE} in it, so it is not a run folder")
        try:
            return tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: not valid TOML: {error}") from error

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

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the folder, readable by people."""
        self._write(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def write_responses(self, which: str, examples: Sequence[Example], answers: Sequence[Completion]) -> None:
        """Write ``responses/WHICH.json`` in the book's form."""
        self.write_json(f"responses/{which}.json", response_rows(examples, answers))

    def read_responses(self, which: str) -> list[dict[str, Any]]:
        """Rows of ``responses/WHICH.json``, or none if there is no such file."""
        file = self.path / "responses" / f"{which}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []

    def write_verdicts(self, which: str, verdicts: Sequence[Verdict]) -> None:
        """Write ``scores/WHICH.jsonl``."""
        self._write(
            f"scores/{which}.jsonl",
            "".join(json.dumps(asdict(verdict), ensure_ascii=False) + "\n" for verdict in verdicts),
        )

    def _write(self, name: str, text: str) -> None:
        target = self.path / name
        unfinished = target.with_name(target.name + ".unfinished")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(target)


def response_rows(examples: Sequence[Example], answers: Sequence[Completion]) -> list[dict[str, Any]]:
    """Examples with their ``model_response``, as the chapter's ``instruction-data-with-response.json``."""
    return [
        {**example.as_json(), "model_response": answer.text} for example, answer in zip(examples, answers, strict=True)
    ]


def read_template(file: Path) -> Template:
    """A ``template.json``.

    Raises:
        DataError: it is absent or damaged.
    """
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON: {error}") from error
    return Template.from_json(stored, str(file))
