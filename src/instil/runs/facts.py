"""What is known of a run: what ``run.toml`` says at its start, and ``report.json`` at its end."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch

from instil.data.files.places import absolute, on_disk
from instil.data.permutation import drawn_by
from instil.data.preflight import Preflight
from instil.errors import DataError
from instil.files import read_json, record_of
from instil.machine import processor
from instil.model.decoder import Decoder
from instil.model.fast.gemm import backend
from instil.model.load import file_hash, is_quantised
from instil.records import Completion, Example, Finish
from instil.runs.folder import FACTS, RunFolder
from instil.tasks.task import Prepared
from instil.train.observer import TrainResult
from instil.version import __version__


def keep_facts(
    folder: RunFolder,
    preflight: Preflight,
    part: str,
    examples: Sequence[Example],
    answers: Mapping[str, Sequence[Completion]],
    result: TrainResult,
    **more: Any,
) -> None:
    """Write down what the report says and no other file of the run holds (``report.json``).

    ``more`` is what is known at the end: ``seconds``, ``peak_memory_gb``, ``peak_gpu_memory_gb``, ``outlook``,
    ``leaks``, ``unended``.
    """
    folder.write_json(
        FACTS,
        {
            "part": part,
            "preflight": preflight.lines(),
            "tasks": [example.task for example in examples],
            "finish": {which: [one.finish for one in said] for which, said in answers.items()},
            "steps": result.steps,
            "tokens_seen": result.tokens_seen,
            "train_seconds": result.seconds,
            "validation_loss": result.validation_loss,
            "trained_parameters": result.trained,
            "best_step": result.best_step,
            "diverged": result.diverged,
            **more,
        },
    )


@dataclass(frozen=True, slots=True)
class Before:
    """The prompt form that counts as before, where the model was asked in two: ``form`` scores better than ``other``.

    ``answers`` is what the answers in the other form are called (``responses/NAME.json``).
    """

    form: str
    other: str
    answers: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What of ``report.json`` is read again; what has a default, earlier versions did not write."""

    part: str
    preflight: list[str]
    tasks: list[str]
    finish: dict[str, list[Finish]]
    steps: int
    tokens_seen: int
    train_seconds: float
    seconds: dict[str, float]
    peak_memory_gb: float
    unended: dict[str, list[str]]
    outlook: str
    validation_loss: float | None = None
    trained_parameters: int | None = None
    own_peak: bool = False
    peak_gpu_memory_gb: float | None = None
    before_from: str = ""
    before: dict[str, str] | None = None
    diverged: str = ""
    leaks: list[dict[str, int | float | str]] = field(default_factory=list)

    @property
    def forms(self) -> Before | None:
        """Which of two forms counts as before; None where there was one."""
        return None if self.before is None else record_of(Before, self.before)


def read_facts(folder: RunFolder) -> Facts:
    """``report.json``.

    Raises:
        DataError: it is absent or damaged.
    """
    file = folder.path / FACTS
    try:
        facts = record_of(Facts, read_json(file), strict=False)
        facts.forms  # noqa: B018  # damaged, it is told now
        return facts
    except ValueError as error:
        raise DataError(f"{file}: damaged: {error}") from error


def describe(prepared: Prepared, decoder: Decoder) -> dict[str, Any]:
    """What ``run.toml`` says: settings as resolved, versions, and hashes of data, model and template."""
    return {
        "instil": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": prepared.source.name,
        "data_path": absolute(prepared.source.name),
        "model": prepared.model_name,
        "model_path": on_disk(prepared.model_name),
        "settings": prepared.settings.model_dump(),
        "model_facts": {
            "family": decoder.spec.family,
            "parameters": decoder.parameter_count,
            "file": prepared.model_path.name,
            "quantised": is_quantised(prepared.model_path),
            "vocabulary": decoder.spec.vocab_size,
            "new_rows": prepared.new_rows,
        },
        "hashes": input_hashes(prepared),
        "order": drawn_by(len(prepared.usable("train"))) if prepared.settings.train.order == "seeded" else "book",
        "versions": versions(decoder.device),
    }


def versions(device: torch.device) -> dict[str, Any]:
    """What last bits of a result may depend on beside the settings."""
    return {
        "products": backend(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def unlike(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of these versions is another now; of what was not written down then nothing is known.

    >>> unlike({"torch": "2.12.0", "threads": 2}, {"torch": "2.13.0", "threads": 2, "device": "cpu"})
    'torch is 2.13.0 and was 2.12.0'
    """
    others = [name for name in now if name in then and then[name] != now[name]]
    return ", ".join(f"{name} is {now[name]} and was {then[name]}" for name in others)


def by_chance(now: Mapping[str, Any]) -> str:
    """Why with these versions the same step may have other last bits each time, if it may.

    >>> by_chance({"device": "cpu"}), by_chance({"device": "NVIDIA H200"})
    ('', 'a GPU (NVIDIA H200) adds gradients up in another order each time')
    """
    device = now.get("device", "cpu")
    return "" if device == "cpu" else f"a GPU ({device}) adds gradients up in another order each time"


def input_hashes(prepared: Prepared) -> dict[str, str]:
    """Of rows, weights and template, and of what else the task reads."""
    return {
        "data": prepared.source.sha256,
        "model": file_hash(prepared.model_path),
        "template": prepared.template.hash,
        **prepared.task.hashes(),
    }
