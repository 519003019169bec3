"""Run folders, as somebody may hand them on, and files of settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from instil.data import splits
from instil.data.templates.forms import TEMPLATES
from instil.errors import InstilError
from instil.evaluate.offline import score_offline
from instil.recipes.compare import compare
from instil.recipes.rows_of_run import _task_of
from instil.recipes.sweep.file import Overrides, read_sweep
from instil.recipes.sweep.rows import loss_of, row_of
from instil.records import Example
from instil.runs.answers import find_answers, read_verdicts
from instil.runs.baseline import _answers
from instil.runs.facts import read_facts
from instil.runs.folder import RunFolder
from instil.runs.identity import Identity, is_whole
from instil.runs.report import page
from instil.runs.report.report import refresh_report
from instil.settings.options import Settings
from instil.settings.resolve import idle, known_settings, resolve
from instil.train.metrics import read_metrics
from tests.fuzz.promise import Target, folder
from tests.fuzz.trees import content_of, dumped, lay_out, parsed, tree_mutator

_environment = cache(page.environment)  # as its pages take longer to make ready than all else


def read(given: bytes) -> None:
    """Everything that is read of a run that lies there."""
    try:
        files = parsed(given)
    except ValueError:
        files = {}
    fewer = patch.object(splits, "MOST_ROWS", 10_000)  # of which each reader makes a list
    with folder() as place, fewer, patch.object(page, "environment", _environment):
        lay_out(place, files)
        run = RunFolder(place)
        refused: list[InstilError] = []
        identity = Identity(Settings().model_dump(), {"data": "1", "model": "2", "template": "3"})
        readers: tuple[Callable[[], Any], ...] = (
            run.read_settings,
            run.read_split,
            run.read_leaks,
            run.read_card,
            run.held_out_rows,
            run.template,
            lambda: is_whole(run),
            lambda: identity.differences(run.read_settings()),
            lambda: resolve(config=place / "run.toml"),
            lambda: _task_of(run.read_settings()["settings"]),
            lambda: loss_of(run.read_settings()),
            lambda: read_metrics(run.metrics),
            lambda: read_facts(run),
            lambda: find_answers(place),
            lambda: find_answers(place / "responses" / "tuned.json"),
            lambda: _answers(place),
            lambda: row_of("a", run, "done", {}),
            lambda: refresh_report(run),
            lambda: compare(place, place / "responses" / "base.json").as_json(),
            *((lambda one=one: read_verdicts(one)) for one in sorted(place.glob("scores/*.jsonl"))),
        )
        for reader in readers:
            try:
                reader()
            except InstilError as error:
                refused.append(error)
        if refused:
            raise refused[0]


CARD: dict[str, Any] = {
    "name": "starter",
    "files": [{"path": "/a", "bytes": 3}],
    "task": "sft",
    "licence": "Apache-2.0",
    "rows": {"train": 4, "test": 2, "validation": 1, "all": 7, "looked_at": 7},
    "shapes": {"instruction/output": 7},
    "tokens": {"training_rows": 40, "targets": 9, "supervised_share": 0.25, "rows_trained_on_their_end": 4},
    "lengths": {"mean": 9.5, "quantiles": {"50": 9}, "longest": 12, "max_length": 1024, "keeps_99": 12, "context": 64},
    "kinds": {"train": {"sums": 2}, "test": {}, "validation": {}},
    "scripts": {"Latin": 0.9},
    "repeated": {"rows": 0, "held_out_prompts_in_training": 0},
    "hashes": {"rows": "1"},
    "rejected": {"left out": 0, "cut": 1, "reasons": {"too long": 1}},
}


def runs() -> list[Any]:
    """A finished run of two answered rows."""
    rows = [
        {"instruction": "Say hi.", "input": "", "output": "Hi 1."},
        {"instruction": "3?", "input": "a", "output": "4"},
    ]
    examples = [Example(row["instruction"], row["output"], row["input"], row=at + 5) for at, row in enumerate(rows)]
    answers = {"base": ["Hi.", "3"], "tuned": ["Hi 1.", ""]}
    settings = {
        "instil": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "data": "starter",
        "data_path": "starter",
        "model": "smollm2-135m",
        "settings": Settings().model_dump(),
        "hashes": {"data": "1", "model": "2", "template": TEMPLATES["alpaca"].hash},
        "order": "feistel",
        "versions": {"torch": "2.13"},
        "model_facts": {"family": "llama", "parameters": 5, "quantised": False, "vocabulary": 9, "new_rows": 0},
    }
    facts = {
        "part": "test",
        "preflight": ["2 rows"],
        "tasks": ["", "sums"],
        "finish": {"base": ["stop", "length"], "tuned": ["stop", "no_room"]},
        "steps": 2,
        "tokens_seen": 40,
        "train_seconds": 1.5,
        "seconds": {"training": 1.5},
        "peak_memory_gb": 0.5,
        "unended": {"base": ["row 6"]},
        "outlook": "",
        "validation_loss": 1.25,
        "diverged": "",
        "leaks": [{"row": 5, "train_row": 1, "cosine": 0.9, "part": "test", "text": "a b", "train_text": "a c"}],
        "trained_parameters": 5,
    }
    step = {
        "step": 1,
        "epoch": 0.5,
        "tokens_seen": 20,
        "train_loss": 2.5,
        "val_loss": None,
        "learning_rate": 1e-4,
        "seconds": 0.5,
        "tokens_per_second": 40.0,
    }
    sample = {"step": 0, "row": 5, "instruction": "Say hi.", "input": "", "output": "Hi 1.", "model_response": "Hi."}
    rejected = {"row": 2, "outcome": "cut", "reason": "too long", "remedy": "a larger data.max_length", "part": "train"}
    responses = {
        f"responses/{which}.json": [{**row, "model_response": text} for row, text in zip(rows, said, strict=True)]
        for which, said in answers.items()
    }
    scores = {
        f"scores/{which}.offline.jsonl": {"$lines": [asdict(one) for one in score_offline(examples, said)]}
        for which, said in answers.items()
    }
    judged = [
        {"row": at + 5, "judge": "ollama:a", "score": 50.0, "reason": "", "metrics": {}, "said": "50"} for at in (0, 1)
    ]
    return [
        {
            "run.toml": {"$toml": settings},
            "report.json": facts,
            "metrics.jsonl": {"$lines": [step, {**step, "step": 2}]},
            "split.json": {
                "train": {"ranges": [[0, 4]]},
                "validation": [4],
                "test": [5, 6],
                "near_duplicates": [{"row": 5, "train_row": 1, "cosine": 0.9}],
            },
            "data.json": CARD,
            "samples.jsonl": {"$lines": [sample]},
            "rejected.jsonl": {"$lines": [rejected]},
            "model/template.json": TEMPLATES["alpaca"].as_json(),
            "model/config.json": {},
            **responses,
            **scores,
            "scores/tuned.ollama-a.jsonl": {"$lines": judged},
        }
    ]


def read_settings(given: bytes) -> None:
    """A file of settings, and what may be typed after ``--set``."""
    found = _object(given)
    with folder() as place:
        path = place / "settings.toml"
        path.write_bytes(content_of(found.get("file", "")))
        said = found.get("set")
        idle(
            resolve(
                config=path, assignments=[one for one in said if isinstance(one, str)] if isinstance(said, list) else ()
            )
        )


def read_grid(given: bytes) -> None:
    """A file of a sweep."""
    found = _object(given)
    with folder() as place:
        path = place / "sweep.toml"
        path.write_bytes(content_of(found.get("file", "")))
        said = found.get("set")
        listed = tuple(one for one in said if isinstance(one, str)) if isinstance(said, list) else ()
        read_sweep(path, Overrides(assignments=listed))


def _object(given: bytes) -> dict[str, Any]:
    try:
        found = parsed(given)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def settings() -> list[Any]:
    """Sections, bare names, and a run's own file."""
    whole = Settings().model_dump()
    return [
        {
            "file": {"$toml": {"train": {"epochs": 2, "learning_rate": 1e-4}, "data": {"map": ["q=instruction"]}}},
            "set": ["train.seed=3", "dpo.loss=simpo"],
        },
        {
            "file": "[train]\nmethod = 'lora'\nepochs = 1\n[lora]\nrank = 4\n",
            "set": ['generate.stop=["a"]', "epochs=1"],
        },
        {"file": {"$toml": {"instil": "0.1.0", "settings": whole}}, "set": []},
    ]


def sweeps() -> list[Any]:
    """Runs by name, a grid, and both."""
    return [
        {
            "file": {
                "$toml": {
                    "data": "starter",
                    "model": "gpt2-small",
                    "out": "runs/x",
                    "judge": "offline",
                    "settings": {"epochs": 1},
                    "run": [{"name": "a", "settings": {"train": {"seed": 1}}}, {"name": "b, 2"}],
                }
            },
            "set": ["train.max_steps=1"],
        },
        {"file": {"$toml": {"grid": {"model": ["a", "b"], "learning_rate": [1e-4, 1e-3], "train": {"seed": [1, 2]}}}}},
        {"file": "[grid]\nepochs = [1, 2]\n[[run]]\nname = 'x'\n"},
    ]


WORDS = (
    *known_settings(),
    "run",
    "grid",
    "settings",
    "name",
    "model",
    "data",
    "out",
    "judge",
    "train",
    "lora",
    "dpo",
)
VALUES = (*WORDS, "lora", "dpo", "bf16", "cosine", math.inf, 1e-300, 10**30, [1, 2], ["a"], {"a": 1})
RUN_WORDS = (
    "ranges",
    "stop",
    "length",
    "no_room",
    "base",
    "tuned",
    "offline",
    "exact_match",
    "finish",
    "model_response",
)


def seeds(values: Callable[[], list[Any]]) -> Callable[[], list[bytes]]:
    """Values as inputs."""
    return lambda: [dumped(value) for value in values()]


TARGETS = {
    "run": Target(read, seeds(runs), tree_mutator((*RUN_WORDS, *Path("run.toml split.json").parts), runs)),
    "settings": Target(read_settings, seeds(settings), tree_mutator(VALUES, settings), longest=8000),
    "sweep": Target(read_grid, seeds(sweeps), tree_mutator(VALUES, sweeps), longest=8000),
}
