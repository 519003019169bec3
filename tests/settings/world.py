"""Where settings are seen to have an effect: the command line in this process, on tiny models and a judge of the tests.

A run is made once for the same assignments; what its decoder was given is noted as it passes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

import instil
from instil.assistant.assistant import Assistant
from instil.batches import Batch
from instil.cli import app
from instil.errors import InstilError
from instil.model.decoder import Block, Decoder
from instil.records import Completion
from instil.settings.resolve import resolve
from instil.train.metrics import StepRecord, read_metrics
from tests.conftest import rows
from tests.faults.judge_server import JudgeServer, judging

SAID = "based"  # what the tiny model says all the time
PROMPTS = [{"instruction": "Name a colour."}, {"instruction": SAID, "input": "n = 7"}]


@dataclass(frozen=True, eq=False)
class Pass:
    """What a decoder was given once, and how."""

    batch: Batch
    learning: bool
    in_bf16: bool
    device: str

    @property
    def layout(self) -> str:
        return type(self.batch.layout).__name__


@dataclass
class Seen:
    """What went through decoders, and how often their blocks computed."""

    passes: list[Pass] = field(default_factory=list)
    blocks: int = 0

    @property
    def steps(self) -> list[Pass]:
        """What was learnt from."""
        return [one for one in self.passes if one.learning]

    @property
    def before(self) -> list[int]:
        """The rows that were looked at before the first step."""
        first = self.passes.index(self.steps[0])
        return [row for one in self.passes[:first] for row in one.batch.examples]

    @property
    def order(self) -> list[int]:
        """The rows in the order in which they were learnt from."""
        return [row for one in self.steps for row in one.batch.examples]


@contextmanager
def watched() -> Iterator[Seen]:
    """Note what goes through every decoder."""
    seen = Seen()

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        seen.blocks += isinstance(module, Block)
        if isinstance(module, Decoder):
            bf16 = torch.is_autocast_enabled(module.device.type)
            seen.passes.append(Pass(given[0], torch.is_grad_enabled(), bf16, module.device.type))

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, what it printed, and what it complained of."""

    code: int
    out: str
    said: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Trained(Ended):
    """A run that was made by a command."""

    path: Path
    seen: Seen

    @cached_property
    def records(self) -> list[StepRecord]:
        return read_metrics(self.path / "metrics.jsonl")

    @property
    def steps(self) -> list[StepRecord]:
        return self.records[1:]

    @property
    def losses(self) -> list[float]:
        """Of each step."""
        return [one.train_loss for one in self.steps if one.train_loss is not None]

    @property
    def validation(self) -> list[float]:
        """Every validation loss."""
        return [one.val_loss for one in self.records if one.val_loss is not None]

    @property
    def metrics(self) -> dict[str, float]:
        """What is told of the first step's pairs."""
        return self.steps[0].metrics or {}

    def read(self, name: str) -> Any:
        """A JSON file of the run."""
        return json.loads((self.path / name).read_text())

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.path / "model" / "model.safetensors")

    @cached_property
    def adapter(self) -> dict[str, Tensor]:
        return load_file(self.path / "adapter" / "adapter_model.safetensors")

    @cached_property
    def sampled(self) -> list[int]:
        """The steps after which samples were written."""
        lines = (self.path / "samples.jsonl").read_text().splitlines()
        return sorted({json.loads(line)["step"] for line in lines})


class World:
    """A tiny model, another one, files of rows, and the command line."""

    def __init__(self, folder: Path, model: Path, other: Path) -> None:
        self._folder, self.model, self.other = folder, model, other
        self._runs: dict[tuple[str, ...], Trained] = {}
        self._made = 0
        self.used: set[str] = set()  # assignments that were given to something

    def new(self, suffix: str = "") -> Path:
        """A path that nothing stands at."""
        self._made += 1
        return self._folder / f"{self._made}{suffix}"

    def file(self, content: Any) -> Path:
        """A file of rows."""
        path = self.new(".json")
        path.write_text(json.dumps(content))
        return path

    @cached_property
    def forty(self) -> Path:
        """Rows of which 34 are trained on, 4 answered and 2 validated."""
        return self.file(rows(40))

    @cached_property
    def talker(self) -> Path:
        """The tiny model with a chat template of its own."""
        folder = Path(shutil.copytree(self.model, self.new()))
        template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        asks = "{% if add_generation_prompt %}assistant: {% endif %}"
        (folder / "chat_template.jinja").write_text(template + asks)
        return folder

    @cached_property
    def one(self) -> Path:
        """One row, which is trained on."""
        return self.file(rows(1))

    def pairs(self, count: int) -> Path:
        """Preference pairs; of one there is nothing but training, of three two are trained on."""
        return self._pairs.setdefault(count, self.file([pair(n) for n in range(count)]))

    @cached_property
    def _pairs(self) -> dict[int, Path]:
        return {}

    def command(self, *words: object, settings: Sequence[str] = ()) -> Ended:
        """A command in this process, as `instil.cli.main` ends it."""
        self.used |= set(settings)
        given = [str(word) for word in words] + [part for one in settings for part in ("--set", one)]
        found = CliRunner().invoke(app, given, catch_exceptions=True)
        error = found.exception
        if error is not None and not isinstance(error, InstilError | SystemExit):
            raise error
        if isinstance(error, InstilError):
            return Ended(error.exit_code, found.stdout, f"{found.stderr}\n{error}")
        return Ended(found.exit_code, found.stdout, found.stderr)

    def run(self, *settings: str, data: Path | None = None, verb: str = "train", model: Path | None = None) -> Trained:
        """A finished run with these settings."""
        data, model = data or self.forty, model or self.model
        self.used |= set(settings)
        key = (verb, str(data), str(model), *settings)
        if key not in self._runs:
            out = self.new()
            with watched() as seen:
                ended = self.command(verb, data, "--model", model, "--out", out, "--json", settings=settings)
            assert ended.code == 0, ended.said
            self._runs[key] = Trained(ended.code, ended.out, ended.said, out, seen)
        return self._runs[key]

    def looked_at(self, data: Path, *settings: str, rows: Sequence[int] = (0,), model: Path | None = None) -> Ended:
        """What ``instil inspect`` shows of some rows."""
        chosen = [word for row in rows for word in ("--row", row)]
        return self.command("inspect", data, "--model", model or self.model, "--json", *chosen, settings=settings)

    @cached_property
    def assistant(self) -> Assistant:
        """The tiny model as it is."""
        return instil.load(self.model, max_new_tokens=8)

    def answers(self, *settings: str) -> list[Completion]:
        """Its answers to the two prompts under these settings."""
        self.used |= set(settings)
        chosen = resolve(assignments=settings).generate.model_dump(exclude_unset=True)
        return self.assistant.respond_all(PROMPTS, **chosen)

    def ids(self, *settings: str) -> list[tuple[int, ...]]:
        """The same as ids."""
        return [one.ids for one in self.answers(*settings)]

    def scored(
        self, *settings: str, rows: int = 3, ollama: bool = False, judge: str = "", **how: Any
    ) -> tuple[Ended, JudgeServer]:
        """``instil score`` of a few answers, by a judge that is told how to behave."""
        answered = self.file(
            [{"instruction": f"Say {n}.", "output": f"It is {n}.", "model_response": f"{n}"} for n in range(rows)]
        )
        with judged(ollama=ollama, **how) as (server, name):
            return self.command("score", answered, "--judge", judge or name, "--json", settings=settings), server

    def made(
        self, *settings: str, count: int = 2, ollama: bool = False, telling: Callable[[JudgeServer], None], **how: Any
    ) -> tuple[Ended, JudgeServer, list[dict[str, Any]]]:
        """``instil generate --way self-instruct`` from eight rows, by a model that is told how to behave."""
        out = self.new(".json")
        with judged(ollama=ollama, **how) as (server, name):
            telling(server)
            words = ("generate", "--way", "self-instruct", "--with", name, "--out", out, "--seeds", self.seeds)
            ended = self.command(*words, "--count", count, "--json", settings=settings)
        return ended, server, json.loads(out.read_text()) if out.exists() else []

    @cached_property
    def seeds(self) -> Path:
        """Rows to make others from."""
        return self.file(rows(8))


@contextmanager
def judged(*, ollama: bool, **how: Any) -> Iterator[tuple[JudgeServer, str]]:
    """A server and the name by which it is asked."""
    import pytest

    with judging(**how) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("instil.ask.patience.FIRST_WAIT", 0.01)
        patch.setenv("OLLAMA_HOST", server.url)
        yield server, "ollama:judge" if ollama else f"{server.url}/v1"


def pair(number: int) -> dict[str, str]:
    """A pair whose answers differ."""
    return {
        "instruction": f"Double the number {number}.",
        "input": "",
        "chosen": f"It is {2 * number}, thanks for asking.",
        "rejected": f"It is {2 * number}, go away.",
    }


Check = Callable[[World], None]
Table = dict[str, tuple[str, Check]]


def seen_in(table: Table, assignment: str) -> Callable[[Check], Check]:
    """Puts a check into a table: by which change of a setting its effect is seen, and how."""

    def enter(check: Check) -> Check:
        name = assignment.partition("=")[0]
        assert name not in table, name
        table[name] = (assignment, check)
        return check

    return enter
