"""Time and memory before they are spent: a few real steps, scaled to the whole job (the chapter's table, 7.6).

Nothing is written. Time is taken from steps of typical sizes, memory from the longest rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from instil.generate.engine import PACK_AFTER, SHARE
from instil.generate.slots import most_held
from instil.machine import available_memory, device_for, machine_memory, memory_now
from instil.model.cache import position_bytes
from instil.model.fast.gemm import backend, narrow_gain
from instil.model.frozen import FrozenLinear
from instil.model.load import blank_decoder
from instil.model.lora import merge
from instil.model.spec import DecoderSpec
from instil.recipes.plan.forecast import Workload, looking_before, prompt_lengths, reference_lengths, workload
from instil.recipes.plan.timing import holds_gradients, time_answers, time_evaluation, time_steps
from instil.recipes.plan.work import answering, guessed_lengths, pace_of
from instil.screen import Screen
from instil.settings.options import Settings
from instil.tasks.adapters import adapt
from instil.tasks.form import asked_before
from instil.tasks.prepare import load, prepare
from instil.tasks.task import Data, Prepared, evaluator_for

# Minutes for two epochs over the book's 935 training rows, by machine: GPT-2 small, GPT-2 medium.
CHAPTER = {
    "M3, CPU": (5.74, 15.78),
    "M3, GPU": (3.73, 10.77),
    "L4 GPU": (0.69, 1.83),
    "A100 GPU": (0.39, 0.86),
}
CHAPTER_ROWS = 2 * 935
STAGES = {  # in their order, with what the user reads
    "prepare": "read and check the rows",
    "load model": "load the model",
    "answer before": "answer {answered} rows before training",
    "train": "train",
    "evaluate": "evaluate {work.evaluations} times",
    "sample": "sample answers {work.samples} times",
    "save": "save the model",
    "answer after": "answer them after training",
}
FLOAT = 4  # bytes; weights are trained in float32


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. ``gradients`` are those held all at once (`holds_gradients`), ``saved`` what weights in few bits save.

    ``activations`` and ``peak`` are for the longest rows, measured where they fitted.
    """

    machine: int
    now: int
    weights: int
    moments: int
    gradients: int
    activations: int
    cache: int
    others: int
    measured: bool
    saved: int = 0

    @property
    def training(self) -> int:
        """Weights, gradients, AdamW's two moments, activations, and what Python and torch need."""
        return self.weights - self.saved + self.moments + self.gradients + self.activations + self.others

    @property
    def answering(self) -> int:
        """Weights, twice where that is faster, and keys and values of all rows that are answered side by side."""
        return self.weights + self.cache + self.others

    @property
    def predicted(self) -> int:
        """The peak of the whole job."""
        return max(self.training, self.answering)

    @property
    def fits(self) -> bool:
        """Whether the machine has that much."""
        return self.predicted <= self.machine


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would take here. ``seconds`` is empty where the model does not fit, so nothing was timed.

    ``narrow_gain`` is how many times as fast products are here in bfloat16 (``train.precision=bf16``) as in float32.
    """

    model: str
    data: str
    parameters: int
    rows: dict[str, int]
    tokens: int
    answered: int
    work: Workload
    seconds: dict[str, float]
    step_seconds: float
    timed_steps: int
    memory: Memory
    narrow_gain: float = 0.0

    @property
    def total_seconds(self) -> float:
        """The whole job."""
        return sum(self.seconds.values())

    @property
    def chapter_minutes(self) -> float:
        """Training and evaluation of as many rows as the chapter's table is about."""
        seen = self.work.steps * self.rows["batch"]
        return (self.seconds["train"] + self.seconds["evaluate"]) / 60 * CHAPTER_ROWS / seen

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; sizes in bytes."""
        memory = {name: getattr(self.memory, name) for name in Memory.__slots__}
        return {
            "model": self.model,
            "data": self.data,
            "parameters": self.parameters,
            "rows": self.rows,
            "tokens": self.tokens,
            "steps": self.work.steps,
            "evaluations": self.work.evaluations,
            "seconds_per_step": round(self.step_seconds, 4),
            "timed_steps": self.timed_steps,
            "narrow_gain": round(self.narrow_gain, 2),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "total_seconds": round(self.total_seconds, 2),
            "memory": {**memory, "predicted": self.memory.predicted, "fits": self.memory.fits},
            "chapter_minutes": {
                machine: {"gpt2-small": small, "gpt2-medium": medium} for machine, (small, medium) in CHAPTER.items()
            },
        }


def plan(data: Data, model: str | Path, settings: Settings, screen: Screen | None = None) -> Plan:
    """What `run` with the same arguments would take on this machine; writes nothing.

    Raises:
        UserError: data, model or settings cannot be used.
    """
    screen = screen or Screen()
    started = time.perf_counter()
    prepared = prepare(data, model, settings, screen=screen)
    loader = prepared.training
    work = workload(prepared, loader, evaluator_for(prepared, loader))
    seconds = {"prepare": time.perf_counter() - started}

    spec = prepared.spec
    blank = blank_decoder(spec)
    if prepared.settings.train.untie_head:
        blank.untie()
    weights = FLOAT * blank.parameter_count
    parameters = blank.parameter_count
    lora = prepared.settings.train.method == "lora"
    trained = FLOAT * adapt(blank, prepared.settings) if lora else weights
    held = [layer for layer in blank.modules() if isinstance(layer, FrozenLinear)]
    saved = sum(FLOAT * layer.in_features * layer.out_features - layer.nbytes for layer in held)
    device = torch.device(device_for(prepared.settings.train.device))
    cache, others, machine = _cache_bytes(prepared, spec, weights, device), memory_now(device), machine_memory(device)
    facts: dict[str, Any] = {
        "model": prepared.model_name,
        "data": prepared.source.name,
        "parameters": parameters,
        "rows": {
            **{part: len(rows) for part, rows in prepared.rows.items()},
            "batch": round(len(loader.rows) / len(loader)) if loader.budget else loader.batch_size,
        },
        "tokens": prepared.preflight.tokens,
        "answered": len(prepared.held_out[1]),
        "work": work,
    }
    gradients = trained if holds_gradients(prepared.settings.train) else 0
    memory = Memory(machine, others, weights, 2 * trained, gradients, 0, cache, others, measured=False, saved=saved)
    if not memory.fits:  # timing it would bring the machine to a stop
        return Plan(**facts, seconds={}, step_seconds=0.0, timed_steps=0, memory=memory)

    screen.head("Timing")
    started = time.perf_counter()
    decoder = load(prepared)
    seconds["load model"] = seconds["save"] = time.perf_counter() - started
    now = memory_now(device)
    if lora:
        adapt(decoder, prepared.settings)
    steps = time_steps(prepared, decoder, loader, held=2 * trained + gradients, room=machine, screen=screen)
    others = max(now - weights, 0)
    if lora:
        merge(decoder)
    taken = steps.activations
    memory = Memory(machine, now, weights, 2 * trained, gradients, taken, cache, others, steps.measured, saved)
    pace = pace_of(steps.steps)
    seconds["train"] = work.steps * pace.seconds(work.step)
    looking = time_evaluation(prepared, decoder, loader)
    seconds["train"] += looking.seconds(looking_before(prepared))
    seconds["evaluate"] = work.evaluations * looking.seconds(work.evaluation)
    examples = prepared.held_out[1]
    answers = time_answers(prepared, decoder, examples)
    prompts, options = prompt_lengths(prepared, examples), prepared.settings.generate
    guessed = guessed_lengths(answers.ended, answers.tokens, options.max_new_tokens, len(prompts))
    seconds["sample"] = work.samples * answers.pace.seconds(work.sample)
    seconds["answer before"] = answers.pace.seconds(answering(prompts, guessed, options.batch_size))
    form, _ = asked_before(prepared, examples)
    if form:
        own = prompt_lengths(prepared, examples, form)
        seconds["answer before"] += answers.pace.seconds(answering(own, guessed, options.batch_size))
    tuned = reference_lengths(prepared, examples)
    seconds["answer after"] = answers.pace.seconds(answering(prompts, tuned, options.batch_size))
    return Plan(
        **facts,
        seconds={name: seconds[name] for name in STAGES},
        step_seconds=pace.seconds(work.step),
        timed_steps=len(steps.steps),
        memory=memory,
        narrow_gain=narrow_gain(),
    )


def _cache_bytes(prepared: Prepared, spec: DecoderSpec, weights: int, device: torch.device) -> int:
    """The most that answering takes beside the weights: keys and values, and a second copy of the weights.

    Of either the engine makes do with its share of the memory.
    """
    prompts = sorted(prompt_lengths(prepared, prepared.held_out[1]), reverse=True)
    if not prompts:
        return 0
    options = prepared.settings.generate
    rows = min(options.batch_size, len(prompts))
    length = min(prompts[0] + options.max_new_tokens, spec.context)
    each = position_bytes(spec, torch.float32)
    share = available_memory(device) // SHARE
    packed = options.max_new_tokens >= 2 * PACK_AFTER and weights < share
    packed = packed and device.type == "cpu" and backend() == "onednn"
    return min(rows * most_held(length) * each, share) + packed * weights
